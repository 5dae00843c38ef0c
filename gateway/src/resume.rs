//! Coming back: exactly what was missed, or an explicit "not recovered".

use std::sync::Arc;

use qiyu_nats::{
    MsgId, RoomId, chain,
    event::Event,
    log::{LogEntry, ReadError},
};
use tracing::{debug, warn};

use crate::{
    connection::Connection,
    delivery::room_filters,
    entry::{Entry, Source},
    frame::Message,
    serving::Serving,
};

/// Messages a resume brings at most. Whoever missed more reads the history.
const RESUME_MESSAGES_MAX: usize = 500;
/// How far back a resume reaches.
const RESUME_AGE_MAX_MS: u64 = 24 * 3600 * 1000;

/// The messages of `room` in (after, position], less the user's own, ready to
/// be sent. `None`: not to be had without a gap.
///
/// Each entry expects `connection` and is not sealed.
pub(crate) async fn missed(
    serving: &Serving,
    connection: &Arc<Connection>,
    room: RoomId,
    after: MsgId,
    position: MsgId,
) -> Option<Vec<Arc<Entry>>> {
    if position < after {
        debug!(%room, %after, %position, "the log has lost its tail: not recovered");
        return None;
    }
    let found = match read(serving, connection, room, after, position).await {
        Ok(found) => found?,
        Err(error) => {
            warn!(%room, error = %chain(&error), "the log does not answer: not recovered");
            return None;
        }
    };
    let who = &connection.who;
    let mut missed = Vec::with_capacity(found.len());
    for entry in found {
        let msg_id = entry.msg_id();
        let Ok(record) = entry.record() else { continue }; // fan-out has set it aside, too
        let Event::RoomMessageSent { app, sender, biz_code, data, .. } = record.event else {
            continue;
        };
        if sender.user == who.user {
            continue;
        }
        let message = Message::new(app, biz_code, &data, Some(msg_id));
        let (settled, metrics) = (serving.settled.clone(), serving.metrics.clone());
        metrics.envelopes_pending.inc();
        let source = Source::Resume;
        let entry =
            Entry::open(app, Some(room), msg_id, Arc::new(message), source, settled, metrics);
        entry.expect(connection);
        missed.push(entry);
    }
    Some(missed)
}

/// `Ok(None)`: too far back, or too much.
async fn read(
    serving: &Serving,
    connection: &Connection,
    room: RoomId,
    after: MsgId,
    position: MsgId,
) -> Result<Option<Vec<LogEntry>>, ReadError> {
    // What stands at the cursor must still be there: otherwise what followed
    // it may be gone as well, and nobody could tell.
    let Some(cursor) = serving.bus.read_one(after).await? else { return Ok(None) };
    let written_ms = cursor.record().map_or(0, |record| record.at_ms);
    if RESUME_AGE_MAX_MS < qiyu_nats::now_ms().saturating_sub(written_ms) {
        return Ok(None);
    }
    let filters = room_filters((connection.who.app, room));
    let is_message = |entry: &LogEntry| entry.subject.ends_with(".msg");
    let (from, max) = (after.seq(), RESUME_MESSAGES_MAX);
    let range = serving.bus.read_range(filters, from, position, max, is_message).await?;
    Ok(range.complete.then_some(range.entries))
}
