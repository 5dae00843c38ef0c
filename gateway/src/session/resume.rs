//! Coming back: exactly what was missed, or an explicit "not recovered".

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
    delivery::connection::Connection,
    delivery::in_flight::{Entry, Source},
    delivery::room_filters,
    frame::EncodedMessage,
    instance::GatewayInstance,
};

/// Messages a resume brings at most. Whoever missed more reads the history.
const RESUME_MESSAGES_MAX: usize = 500;
/// Messages of the user's own that are passed over at most. They are not sent,
/// but they are read, and nobody should wait for a day of them.
const OWN_MESSAGES_MAX: usize = 10_000;
/// How far back a resume reaches.
const RESUME_AGE_MAX_MS: u64 = 24 * 3600 * 1000;

/// The messages of `room` in (after, position], less the user's own, ready to
/// be sent. `None`: not to be had without a gap.
///
/// Each entry expects `connection` and is not sealed.
pub(crate) async fn missed(
    instance: &GatewayInstance,
    connection: &Arc<Connection>,
    room: RoomId,
    after: MsgId,
    position: MsgId,
) -> Option<Vec<Arc<Entry>>> {
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
    let mut missed = Vec::with_capacity(found.len());
    for entry in found {
        let msg_id = entry.msg_id();
        let Ok(record) = entry.record() else { continue }; // fan-out has set it aside, too
        let Event::RoomMessageSent { app, biz_code, data, .. } = record.event else { continue };
        let message = EncodedMessage::new(app, biz_code, &data, Some(msg_id));
        let (message, source, desk) = (Arc::new(message), Source::Resume, instance.desk.clone());
        let entry = Entry::open(app, Some(room), msg_id, message, source, None, desk);
        entry.expect(connection);
        missed.push(entry);
    }
    Some(missed)
}

/// `Ok(None)`: too far back, or too much.
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
        let mine = matches!(&record, Ok(Record { event: Event::RoomMessageSent { sender, .. }, .. })
            if sender.user == Some(connection.identity.user));
        !mine || OWN_MESSAGES_MAX <= own.fetch_add(1, Ordering::Relaxed)
    };
    let max = RESUME_MESSAGES_MAX;
    let range = instance.bus.read_range(filters, from, position, max, is_missed).await?;
    Ok(range.complete.then_some(range.entries))
}

/// Behind which entry of the log to read, so that nothing after the cursor can
/// be missing. `Ok(None)`: nobody could tell, or it is too long ago.
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
    // What stands at the cursor must still be there: otherwise what followed
    // it may be gone as well, and nobody could tell.
    if 0 < cursor
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
