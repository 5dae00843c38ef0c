//! `/im/offline/pull`: direct messages without an acknowledgement. Reading them here acknowledges
//! nothing.

use std::sync::Arc;

use axum::extract::State;
use qiyu_nats::chain;
use qiyu_schema::{MsgId, Partition, command::ListPendingMessages, ledger::ReadPage};
use tracing::warn;

use super::parameters::{malformed, message_limit};
use crate::{
    caller::LoggedIn,
    context::ApiContext,
    messages::{Message, MessagePage},
    params::Params,
    response::{ApiError, ResponseBody, Success},
};

/// Returns the unacknowledged direct messages of a logged-in user.
#[utoipa::path(post, path = "/im/offline/pull", summary = "Answers whoever is logged in, about their own.", tag = "im", security(("login" = [])), params(
    ("after" = Option<u64>, Query, description = "Only messages with a msgId over this one"),
    ("limit" = Option<u32>, Query, description = "1 to 100; absent: 50"),
), responses(
    (status = 200, description = "1:1 messages the caller has not acknowledged, oldest first", body = ResponseBody<MessagePage>),
))]
pub(crate) async fn offline_pull(
    State(context): State<Arc<ApiContext>>,
    LoggedIn(identity): LoggedIn,
    params: Params,
) -> Result<Success<MessagePage>, ApiError> {
    let after = match params.text("after") {
        None | Some("0") => None,
        Some(id) => Some(id.parse::<MsgId>().map_err(|_| malformed())?),
    };
    let limit = u32::try_from(message_limit(&params)?).unwrap_or(u32::MAX);
    let (app, user) = (context.app, identity.user);
    let partition = Partition::of_user(app, user);
    let waiting = context
        .bus
        .request_owner(partition, &ListPendingMessages { app, user, after, limit })
        .await;
    let waiting = waiting.map_err(|error| {
        warn!(%user, error = %chain(&error), "pending messages not read");
        ApiError::system()
    })?;
    if let (Some(first), Some(last)) = (waiting.messages.first(), waiting.messages.last()) {
        let (first, last) = (first.msg_id, last.msg_id);
        context.page_reads.record(ReadPage { app, user, room: None, first, last });
    }
    let list = waiting
        .messages
        .into_iter()
        .map(|message| Message::new(app, user, message.biz_code, message.data, message.msg_id))
        .collect();
    Ok(Success(MessagePage { list, has_next: waiting.has_next }))
}
