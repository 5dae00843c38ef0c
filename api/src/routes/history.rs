//! `/im/history`: what was said in a room, page by page towards the past.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use qiyu_nats::{
    bucket::BucketError,
    log::{LogEntry, ReadError},
    stream::BucketName,
};
use qiyu_schema::{
    AppId, MsgId, RoomId,
    event::Event,
    ledger::Page,
    room,
    subject::{self, RoomKind},
};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use crate::{
    answer::{Answer, Body, Refused},
    edge::Edge,
    identity::LoggedIn,
    messages::{CHAT, Message, MessagePage, page_size},
    params::{Asked, Params},
};

/// Answers whoever is logged in; a closed room is readable, too.
#[utoipa::path(post, path = "/im/history", tag = "im", security(("login" = [])), params(
    ("roomId" = u64, Query, description = "The room"),
    ("before" = Option<u64>, Query, description = "Only messages with a msgId under this one"),
    ("limit" = Option<u32>, Query, description = "1 to 100; absent: 50"),
), responses(
    (status = 200, description = "The newest of them, oldest first; code 404: never a room", body = Body<MessagePage>),
))]
pub(crate) async fn history(
    State(edge): State<Arc<Edge>>,
    LoggedIn(who): LoggedIn,
    params: Params,
) -> Result<Answer<MessagePage>, Refused> {
    let missing = || Refused::parameter("需要给定直播间id");
    let asked = params.asked::<RoomId>("roomId").map_err(|_| missing())?.ok_or_else(missing)?;
    let before =
        params.parsed::<MsgId>("before").map_err(|_| Refused::parameter("参数格式错误"))?;
    let limit = page_size(&params)?;
    let Asked::Id(room) = asked else { return Err(never_a_room()) };
    if !ever_opened(&edge, room).await? {
        return Err(never_a_room());
    }
    let subject = subject::room(edge.app, room, RoomKind::Msg);
    let before = before.map_or(u64::MAX, MsgId::seq_not_below);
    // One more than asked for tells whether there is a further page.
    let found = patiently(|| edge.bus.read_back(&subject, before, limit + 1, is_chat)).await?;
    let has_next = limit < found.len();
    let page = &found[usize::from(has_next)..];
    if let (Some(first), Some(last)) = (page.first(), page.last()) {
        let (app, user, room) = (edge.app, who.user, Some(room));
        edge.reads.note(Page { app, user, room, first: first.msg_id(), last: last.msg_id() });
    }
    let list = page
        .iter()
        .filter_map(chat_of)
        .map(|(app, msg_id, data)| Message::new(app, who.user, CHAT, data, msg_id))
        .collect();
    Ok(Answer(MessagePage { list, has_next }))
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

/// Whether the log, or the list of open rooms, knows the room at all.
async fn ever_opened(edge: &Edge, room: RoomId) -> Result<bool, Refused> {
    for kind in [RoomKind::Opened, RoomKind::Closed] {
        let subject = subject::room(edge.app, room, kind);
        if patiently(|| edge.bus.read_last(&subject)).await?.is_some() {
            return Ok(true);
        }
    }
    let rooms = edge.bus.bucket(BucketName::Rooms);
    let slot = rooms.read(&room::key(edge.app, room)).await.map_err(|error: BucketError| {
        warn!(error = &error as &dyn std::error::Error, "rooms not read");
        Refused::system()
    })?;
    Ok(slot.value.is_some())
}

fn never_a_room() -> Refused {
    Refused::new(404, "直播间不存在")
}

/// How long a page waits for the log, which after the death of one of three
/// servers elects a new leader first.
const PATIENCE: Duration = Duration::from_secs(6);
const AGAIN_AFTER: Duration = Duration::from_millis(300);

/// Reads until that succeeds, or for as long as somebody waits for a page.
async fn patiently<T, F>(read: impl Fn() -> F) -> Result<T, Refused>
where
    F: Future<Output = Result<T, ReadError>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        let why = match timeout_at(deadline, read()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => ReadError::Silent,
        };
        if deadline < Instant::now() + AGAIN_AFTER {
            warn!(error = &why as &dyn std::error::Error, "history not read");
            return Err(Refused::system());
        }
        debug!(error = &why as &dyn std::error::Error, "history not read yet, trying again");
        sleep(AGAIN_AFTER).await;
    }
}
