//! `/im/history`: the chat messages of a room, page by page towards the past.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use qiyu_nats::{
    bucket::BucketError,
    chain,
    log::{LogEntry, ReadError},
    stream::BucketName,
};
use qiyu_schema::{
    AppId, MsgId, RoomId,
    event::Event,
    ledger::ReadPage,
    room,
    subject::{self, RoomKind},
};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::parameters::{malformed, message_limit, room_id};
use crate::{
    caller::LoggedIn,
    context::ApiContext,
    messages::{CHAT, Message, MessagePage},
    params::{Params, RequestedId},
    response::{ApiError, ResponseBody, Success},
    texts,
};

/// Returns a page of a room's messages to a logged-in user, also of a closed room.
#[utoipa::path(post, path = "/im/history", summary = "Answers whoever is logged in; a closed room is readable, too.", tag = "im", security(("login" = [])), params(
    ("roomId" = u64, Query, description = "The room"),
    ("before" = Option<u64>, Query, description = "Only messages with a msgId under this one"),
    ("limit" = Option<u32>, Query, description = "1 to 100; absent: 50"),
), responses(
    (status = 200, description = "The newest of them, oldest first; code 404: never a room", body = ResponseBody<MessagePage>),
))]
pub(crate) async fn history(
    State(context): State<Arc<ApiContext>>,
    LoggedIn(identity): LoggedIn,
    params: Params,
) -> Result<Success<MessagePage>, ApiError> {
    let requested = room_id(&params)?;
    let before = params.parsed::<MsgId>("before").map_err(|_| malformed())?;
    let limit = message_limit(&params)?;
    let RequestedId::Valid(room) = requested else { return Err(unknown_room()) };
    if !ever_opened(&context, room).await? {
        return Err(unknown_room());
    }
    let subject = subject::room(context.app, room, RoomKind::Msg);
    let before = before.map_or(u64::MAX, MsgId::seq_not_below);
    // One message more than requested shows whether there is a further page.
    let found = retry_read(|| context.bus.read_back(&subject, before, limit + 1, is_chat)).await?;
    let has_next = found.len() > limit;
    let page = &found[usize::from(has_next)..];
    if let (Some(first), Some(last)) = (page.first(), page.last()) {
        let (app, user, room) = (context.app, identity.user, Some(room));
        context.page_reads.record(ReadPage {
            app,
            user,
            room,
            first: first.msg_id(),
            last: last.msg_id(),
        });
    }
    let list = page
        .iter()
        .filter_map(chat_of)
        .map(|(app, msg_id, data)| Message::new(app, identity.user, CHAT, data, msg_id))
        .collect();
    Ok(Success(MessagePage { list, has_next }))
}

fn is_chat(entry: &LogEntry) -> bool {
    chat_of(entry).is_some()
}

fn chat_of(entry: &LogEntry) -> Option<(AppId, MsgId, String)> {
    match entry.record().ok()?.event {
        Event::RoomMessageSent { app, biz_code: CHAT, data, .. } => {
            Some((app, entry.msg_id(), data))
        }
        _ => None,
    }
}

/// Returns whether the log or the bucket of open rooms has the room.
async fn ever_opened(context: &ApiContext, room: RoomId) -> Result<bool, ApiError> {
    for kind in [RoomKind::Opened, RoomKind::Closed] {
        let subject = subject::room(context.app, room, kind);
        if retry_read(|| context.bus.read_last(&subject)).await?.is_some() {
            return Ok(true);
        }
    }
    let rooms = context.bus.bucket(BucketName::Rooms);
    let kv_entry =
        rooms.read(&room::key(context.app, room)).await.map_err(|error: BucketError| {
            warn!(error = %chain(&error), "rooms not read");
            ApiError::system()
        })?;
    Ok(kv_entry.value.is_some())
}

fn unknown_room() -> ApiError {
    ApiError::new(404, texts::UNKNOWN_ROOM)
}

/// How long a page waits for the log, which elects a new leader after the death of one of three
/// servers.
const READ_TIMEOUT: Duration = Duration::from_secs(6);
/// Pause between attempts.
const READ_RETRY_INTERVAL: Duration = Duration::from_millis(300);

/// Repeats a read until it succeeds, for [`READ_TIMEOUT`].
async fn retry_read<T, F>(read: impl Fn() -> F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ReadError>>,
{
    let deadline = Instant::now() + READ_TIMEOUT;
    loop {
        let error = match timeout_at(deadline, read()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => ReadError::Timeout,
        };
        if deadline < Instant::now() + READ_RETRY_INTERVAL {
            warn!(error = %chain(&error), "history not read");
            return Err(ApiError::system());
        }
        debug!(error = %chain(&error), "history not read yet, trying again");
        sleep(READ_RETRY_INTERVAL).await;
    }
}
