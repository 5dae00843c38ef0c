//! Questions to the owner of a partition, answered from its fold.

use qiyu_nats::service::{Answering, Refusal};
use qiyu_schema::{
    AppId, ClientMsgId, MsgId, Partition, UserId,
    command::{
        FindSent, FoldSurvey, Kept, ListMembers, ListWaiting, Members, SurveyFold, Waiting, fold_of,
    },
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{deliver::Deliverer, fold::Fold};

/// Questions waiting for one owner; further askers wait for a place.
const QUESTIONS_MAX: usize = 256;

/// What an owner can be asked.
pub(crate) enum Question {
    Sent {
        app: AppId,
        user: Option<UserId>,
        name: ClientMsgId,
        answer: oneshot::Sender<Option<MsgId>>,
    },
    Members {
        asked: ListMembers,
        answer: oneshot::Sender<Members>,
    },
    /// A copy of the fold and the sequence of its last event.
    Copy {
        answer: oneshot::Sender<(u64, Fold)>,
    },
    Waiting {
        asked: ListWaiting,
        answer: oneshot::Sender<(Vec<MsgId>, bool)>,
    },
}

/// Answers questions about `partition` until `stop`: the owner takes them from
/// the returned end, between events.
///
/// # Errors
///
/// When the connection is closed.
pub(crate) async fn answer_questions(
    answering: &Answering,
    partition: Partition,
    deliverer: &Deliverer,
    stop: &CancellationToken,
) -> Result<mpsc::Receiver<Question>, Box<dyn std::error::Error + Send + Sync>> {
    let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
    let group = fold_of(partition);
    let asking = ask.clone();
    answering
        .endpoint_until::<FindSent, _, _>(&group, stop.clone(), move |command| {
            let ask = asking.clone();
            async move {
                let FindSent { app, user, client_msg_id: name } = command;
                let (answer, answered) = oneshot::channel();
                let question = Question::Sent { app, user, name, answer };
                ask.send(question).await.map_err(|_| gone())?;
                answered.await.map_err(|_| gone())
            }
        })
        .await?;
    let asking = ask.clone();
    answering
        .endpoint_until::<ListMembers, _, _>(&group, stop.clone(), move |asked| {
            let ask = asking.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                ask.send(Question::Members { asked, answer }).await.map_err(|_| gone())?;
                answered.await.map_err(|_| gone())
            }
        })
        .await?;
    let asking = ask.clone();
    answering
        .endpoint_until::<SurveyFold, _, _>(&group, stop.clone(), move |asked: SurveyFold| {
            let ask = asking.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                ask.send(Question::Copy { answer }).await.map_err(|_| gone())?;
                let (position, fold) = answered.await.map_err(|_| gone())?;
                // Off the owner's loop and off the runtime: hashing a large room takes a while.
                let surveyed = tokio::task::spawn_blocking(move || survey(position, &fold, &asked));
                surveyed.await.map_err(|_| gone())?
            }
        })
        .await?;
    let deliverer = deliverer.clone();
    answering
        .endpoint_until::<ListWaiting, _, _>(&group, stop.clone(), move |asked: ListWaiting| {
            let (ask, deliverer) = (ask.clone(), deliverer.clone());
            async move {
                let (answer, answered) = oneshot::channel();
                let (app, user) = (asked.app, asked.user);
                ask.send(Question::Waiting { asked, answer }).await.map_err(|_| gone())?;
                let (msg_ids, has_next) = answered.await.map_err(|_| gone())?;
                // Off the owner's loop: reading what they say takes a while.
                let mut contents = deliverer.contents(app, user, &msg_ids).await;
                let kept = |msg_id| {
                    let (biz_code, data) = contents.remove(&msg_id)?;
                    Some(Kept { msg_id, biz_code, data })
                };
                Ok(Waiting { messages: msg_ids.into_iter().filter_map(kept).collect(), has_next })
            }
        })
        .await?;
    Ok(questions)
}

/// Things in one answer: 30 bytes each, so below half of what a message may have.
const THINGS_MAX: usize = 10_000;

fn survey(position: u64, fold: &Fold, asked: &SurveyFold) -> Result<FoldSurvey, Refusal> {
    let after = asked.after.as_ref().map(|name| name.parse()).transpose();
    let after = after.map_err(|_| Refusal { code: 400, message: "no such thing".into() })?;
    let limit = usize::try_from(asked.limit).unwrap_or(1).clamp(1, THINGS_MAX);
    let (things, has_next) = fold.survey(asked.at_ms, after, limit);
    let things = things.into_iter().map(|(thing, hash)| (thing.to_string(), hash)).collect();
    Ok(FoldSurvey { position, things, has_next })
}

fn gone() -> Refusal {
    Refusal { code: 503, message: "the partition is changing hands".into() }
}
