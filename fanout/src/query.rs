//! Questions to the owner of a partition, answered from its fold.

use qiyu_nats::service::{CommandRefusal, CommandService};
use qiyu_schema::{
    AppId, ClientMsgId, MsgId, Namespace, Partition,
    command::{
        FindDuplicate, FoldSurvey, InboxMessage, ListMembers, ListPendingMessages, Members,
        PendingMessages, SurveyFold, fold_group,
    },
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{deliver::Deliverer, fold::Fold};

/// Questions waiting for one owner; further askers wait for a place.
const QUESTIONS_MAX: usize = 256;

/// A query to an owner.
pub(crate) enum Question {
    Sent {
        app: AppId,
        namespace: Namespace,
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
    Pending {
        asked: ListPendingMessages,
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
    answering: &CommandService,
    partition: Partition,
    deliverer: &Deliverer,
    stop: &CancellationToken,
) -> Result<mpsc::Receiver<Question>, Box<dyn std::error::Error + Send + Sync>> {
    let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
    let group = answering.group(fold_group(partition)).until(stop.clone());
    group.endpoint(&ask, find_duplicate).await?;
    group.endpoint(&ask, list_members).await?;
    group.endpoint(&ask, survey_fold).await?;
    group.endpoint(&(ask, deliverer.clone()), list_pending_messages).await?;
    Ok(questions)
}

type Asking = mpsc::Sender<Question>;

async fn find_duplicate(
    ask: Asking,
    command: FindDuplicate,
) -> Result<Option<MsgId>, CommandRefusal> {
    let FindDuplicate { app, namespace, client_msg_id: name } = command;
    let (answer, answered) = oneshot::channel();
    let question = Question::Sent { app, namespace, name, answer };
    ask.send(question).await.map_err(|_| gone())?;
    answered.await.map_err(|_| gone())
}

async fn list_members(ask: Asking, asked: ListMembers) -> Result<Members, CommandRefusal> {
    let (answer, answered) = oneshot::channel();
    ask.send(Question::Members { asked, answer }).await.map_err(|_| gone())?;
    answered.await.map_err(|_| gone())
}

async fn survey_fold(ask: Asking, asked: SurveyFold) -> Result<FoldSurvey, CommandRefusal> {
    let (answer, answered) = oneshot::channel();
    ask.send(Question::Copy { answer }).await.map_err(|_| gone())?;
    let (position, fold) = answered.await.map_err(|_| gone())?;
    // Off the owner's loop and off the runtime: hashing a large room takes a while.
    let surveyed = tokio::task::spawn_blocking(move || survey(position, &fold, &asked));
    surveyed.await.map_err(|_| gone())?
}

async fn list_pending_messages(
    (ask, deliverer): (Asking, Deliverer),
    asked: ListPendingMessages,
) -> Result<PendingMessages, CommandRefusal> {
    let (answer, answered) = oneshot::channel();
    let (app, user) = (asked.app, asked.user);
    ask.send(Question::Pending { asked, answer }).await.map_err(|_| gone())?;
    let (msg_ids, has_next) = answered.await.map_err(|_| gone())?;
    // Off the owner's loop: reading the contents takes a while.
    let mut contents = deliverer.contents(app, user, &msg_ids).await;
    let message = |msg_id| {
        let (biz_code, data) = contents.remove(&msg_id)?;
        Some(InboxMessage { msg_id, biz_code, data })
    };
    Ok(PendingMessages { messages: msg_ids.into_iter().filter_map(message).collect(), has_next })
}

/// Things in one answer: 30 bytes each, so below half of what a message may have.
const THINGS_MAX: usize = 10_000;

fn survey(position: u64, fold: &Fold, asked: &SurveyFold) -> Result<FoldSurvey, CommandRefusal> {
    let after = asked.after.as_ref().map(|name| name.parse()).transpose();
    let after = after.map_err(|_| CommandRefusal { code: 400, message: "no such thing".into() })?;
    let limit = usize::try_from(asked.limit).unwrap_or(1).clamp(1, THINGS_MAX);
    let (things, has_next) = fold.survey(asked.at_ms, after, limit);
    let things = things.into_iter().map(|(thing, hash)| (thing.to_string(), hash)).collect();
    Ok(FoldSurvey { position, things, has_next })
}

fn gone() -> CommandRefusal {
    CommandRefusal { code: 503, message: "the partition is changing hands".into() }
}
