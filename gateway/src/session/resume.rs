//! Resuming: exactly the missed messages, or an explicit "not recovered".

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use qiyu_nats::{
    chain,
    log::{LogEntry, ReadError},
};
use qiyu_schema::{
    MsgId, RoomId,
    event::{Event, Record},
    subject::{self, RoomKind},
};
use tracing::{debug, warn};

use crate::{
    delivery::{MissedMessage, connection::Connection, room_filters},
    frame::EncodedMessage,
    instance::GatewayInstance,
};

/// Messages that a resume brings at most. A client that missed more reads the history.
const RESUME_MESSAGES_MAX: usize = 500;
/// Messages of the user's own that are passed over at most. They are not sent,
/// but they are read, and no login should wait for a day of them.
const OWN_MESSAGES_MAX: usize = 10_000;
/// How far back a resume reaches.
const RESUME_AGE_MAX_MS: u64 = 24 * 3600 * 1000;

/// Returns the messages of `room` in (after, position], without those that the
/// user sent. `None`: they cannot be had without a gap.
pub(crate) async fn missed(
    instance: &GatewayInstance,
    connection: &Connection,
    room: RoomId,
    after: MsgId,
    position: MsgId,
) -> Option<Vec<MissedMessage>> {
    if position < after {
        debug!(%room, %after, %position, "the log has lost its tail: not recovered");
        return None;
    }
    let found = match read(instance, connection, room, after, position).await {
        Ok(found) => found?,
        Err(error) => {
            warn!(%room, error = %chain(&error), "the log does not answer: not recovered");
            return None;
        }
    };
    Some(found.iter().filter_map(encode).collect())
}

/// Encodes a message. `None`: it cannot be decoded, and fan-out dead-lettered it.
fn encode(entry: &LogEntry) -> Option<MissedMessage> {
    let msg_id = entry.msg_id();
    let Event::RoomMessageSent { app, biz_code, data, .. } = entry.record().ok()?.event else {
        return None;
    };
    let message = Arc::new(EncodedMessage::new(app, biz_code, &data, Some(msg_id)));
    Some(MissedMessage { msg_id, message })
}

/// Reads the missed messages. `Ok(None)`: they are too old, or too many.
async fn read(
    instance: &GatewayInstance,
    connection: &Connection,
    room: RoomId,
    after: MsgId,
    position: MsgId,
) -> Result<Option<Vec<LogEntry>>, ReadError> {
    let Some(from) = start(instance, connection, room, after.seq_not_above()).await? else {
        return Ok(None);
    };
    let filters = room_filters((connection.identity.app, room));
    let own = AtomicUsize::new(0);
    let is_missed = |entry: &LogEntry| {
        if !entry.is_message() {
            return false;
        }
        let record = entry.record();
        let is_own = matches!(&record, Ok(Record { event: Event::RoomMessageSent { sender, .. }, .. })
            if sender.user == Some(connection.identity.user));
        !is_own || own.fetch_add(1, Ordering::Relaxed) >= OWN_MESSAGES_MAX
    };
    let max = RESUME_MESSAGES_MAX;
    let range = instance.bus.read_range(filters, from, position, max, is_missed).await?;
    Ok(range.complete.then_some(range.entries))
}

/// Returns the sequence after which to read, so that nothing after the cursor can
/// be missing. `Ok(None)`: that cannot be told, or it is too long ago.
async fn start(
    instance: &GatewayInstance,
    connection: &Connection,
    room: RoomId,
    cursor: u64,
) -> Result<Option<u64>, ReadError> {
    let recent = |entry: &LogEntry| {
        let written_ms = entry.record().map_or(0, |record| record.at_ms);
        qiyu_nats::now_ms().saturating_sub(written_ms) <= RESUME_AGE_MAX_MS
    };
    // The entry at the cursor must still be there: otherwise entries after it may
    // be gone as well, and nothing would show it.
    if cursor > 0
        && let Some(entry) = instance.bus.read_one(MsgId::at(cursor)).await?
        && recent(&entry)
    {
        return Ok(Some(cursor));
    }
    // A cursor from before the room began misses all of it, and no more.
    let opened = subject::room(connection.identity.app, room, RoomKind::Opened);
    let opened = instance.bus.read_last(&opened).await?;
    let opened = opened.filter(|opened| cursor < opened.seq && recent(opened));
    Ok(opened.map(|opened| opened.seq))
}
