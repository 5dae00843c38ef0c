//! `/im/offline/pull`: 1:1 messages nobody has acknowledged yet. Reading them
//! here acknowledges nothing.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::{MsgId, Partition, command::ListWaiting, ledger::Page};
use tracing::warn;

use crate::{
    answer::{Answer, Body, Refused},
    edge::Edge,
    identity::LoggedIn,
    messages::{Message, MessagePage, page_size},
    params::Params,
};

/// Answers whoever is logged in, about their own.
#[utoipa::path(post, path = "/im/offline/pull", tag = "im", security(("login" = [])), params(
    ("after" = Option<u64>, Query, description = "Only messages with a msgId over this one"),
    ("limit" = Option<u32>, Query, description = "1 to 100; absent: 50"),
), responses(
    (status = 200, description = "1:1 messages the caller has not acknowledged, oldest first", body = Body<MessagePage>),
))]
pub(crate) async fn offline_pull(
    State(edge): State<Arc<Edge>>,
    LoggedIn(who): LoggedIn,
    params: Params,
) -> Result<Answer<MessagePage>, Refused> {
    let after = match params.text("after") {
        None | Some("0") => None,
        Some(id) => {
            let id = id.parse::<MsgId>().map_err(|_| Refused::parameter("参数格式错误"))?;
            Some(id)
        }
    };
    let limit = u32::try_from(page_size(&params)?).unwrap_or(u32::MAX);
    let (app, user) = (edge.app, who.user);
    let partition = Partition::of_user(app, user);
    let waiting = edge.bus.ask_owner(partition, &ListWaiting { app, user, after, limit }).await;
    let waiting = waiting.map_err(|error| {
        warn!(%user, error = &error as &dyn std::error::Error, "waiting messages not read");
        Refused::system()
    })?;
    if let (Some(first), Some(last)) = (waiting.messages.first(), waiting.messages.last()) {
        let (first, last) = (first.msg_id, last.msg_id);
        edge.reads.note(Page { app, user, room: None, first, last });
    }
    let list = waiting
        .messages
        .into_iter()
        .map(|kept| Message::new(app, user, kept.biz_code, kept.data, kept.msg_id))
        .collect();
    Ok(Answer(MessagePage { list, has_next: waiting.has_next }))
}
