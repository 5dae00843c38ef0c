//! Reading the log for gaps. The results are inputs of the core.

use futures_util::{StreamExt, stream};
use qiyu_nats::{
    Bus, chain,
    log::{LogEntry, ReadError},
};
use qiyu_schema::{
    AppId, ConnId, MsgId, UserId,
    event::Event,
    subject::{self, RoomKind, UserKind},
};
use tracing::{debug, warn};

use super::{
    handle::DeliveryHandle,
    ids::RoomKey,
    input::{Input, LoggedMessage},
};

/// Rooms compared with the log at once.
const COMPARED_AT_ONCE_MAX: usize = 16;
/// Messages read from the log at once for one gap.
const GAP_MESSAGES_MAX: usize = 1_000;

/// Returns the subjects of everything that `prev` of a room's envelope may name.
pub(crate) fn room_filters((app, room): RoomKey) -> Vec<String> {
    vec![
        subject::room(app, room, RoomKind::Msg),
        subject::room(app, room, RoomKind::Members), // a join
    ]
}

/// Reads the messages of a room in (after, until].
pub(super) async fn read_room(
    bus: Bus,
    delivery: DeliveryHandle,
    room: RoomKey,
    after: MsgId,
    until: MsgId,
) {
    let input = match read_gap(&bus, room_filters(room), after.seq(), until).await {
        Ok((found, until)) => Input::RoomRead { room, until, found: logged(&found) },
        Err(error) => {
            warn!(room = %room.1, error = %chain(&error), "lost messages not read yet, trying again");
            Input::RoomReadFailed { room }
        }
    };
    delivery.apply(input).await;
}

/// Reads the direct messages of a connection's user in (after, until].
pub(super) async fn read_direct(
    bus: Bus,
    delivery: DeliveryHandle,
    connection: ConnId,
    (app, user): (AppId, UserId),
    after: u64,
    until: MsgId,
) {
    let filters = vec![subject::user(app, user, UserKind::Msg)];
    let input = match read_gap(&bus, filters, after, until).await {
        Ok((found, until)) => Input::DirectRead { connection, until, found: logged(&found) },
        Err(error) => {
            warn!(%connection, error = %chain(&error), "lost direct messages not read yet, trying again");
            Input::DirectReadFailed { connection }
        }
    };
    delivery.apply(input).await;
}

/// Compares rooms with the log, each from its last delivered message on.
pub(super) async fn compare_rooms(
    bus: Bus,
    delivery: DeliveryHandle,
    rooms: Vec<(RoomKey, MsgId)>,
) {
    stream::iter(rooms)
        .for_each_concurrent(COMPARED_AT_ONCE_MAX, async |(room, last)| {
            if let Err(error) = compare_room(&bus, &delivery, room, last).await {
                // NATS is away again. When it is back, all rooms are compared again.
                debug!(room = %room.1, error = %chain(&error), "room not compared");
            }
        })
        .await;
}

/// Passes on the messages of a room that the log has above `last`, then its end.
async fn compare_room(
    bus: &Bus,
    delivery: &DeliveryHandle,
    room: RoomKey,
    last: MsgId,
) -> Result<(), ReadError> {
    let newest = |kind| async move {
        let entry = bus.read_last(&subject::room(room.0, room.1, kind)).await?;
        Ok::<_, ReadError>(entry.map(|entry| entry.msg_id()))
    };
    let closed = newest(RoomKind::Closed).await?;
    let newest_message = newest(RoomKind::Msg).await?;
    let mut after = last;
    while let Some(until) = newest_message.filter(|newest| after < *newest) {
        let (mut found, reached) = read_gap(bus, room_filters(room), after.seq(), until).await?;
        // A message that was stored after the end is delivered to no connection.
        found.retain(|entry| closed.is_none_or(|closed| entry.msg_id() < closed));
        let until = match closed {
            Some(closed) if closed <= reached => found.last().map_or(after, LogEntry::msg_id),
            _ => reached,
        };
        delivery.apply(Input::RoomRead { room, until, found: logged(&found) }).await;
        after = reached;
    }
    if let Some(position) = closed {
        delivery.apply(Input::RoomClosedInLog { room, position }).await;
    }
    Ok(())
}

/// Reads the messages of a room or a user in (after, until]. Returns them, and how
/// far they reach.
async fn read_gap(
    bus: &Bus,
    filters: Vec<String>,
    after: u64,
    until: MsgId,
) -> Result<(Vec<LogEntry>, MsgId), ReadError> {
    let range =
        bus.read_range(filters, after, until, GAP_MESSAGES_MAX, LogEntry::is_message).await?;
    // The rest of a very large gap is found missing again, and read next.
    let reached = match range.entries.last() {
        Some(last) if !range.complete => last.msg_id(),
        _ => until,
    };
    Ok((range.entries, reached))
}

/// Decodes messages. Undecodable ones are passed over, as in fan-out.
fn logged(entries: &[LogEntry]) -> Vec<LoggedMessage> {
    let decode = |entry: &LogEntry| {
        let record = entry.record().ok()?;
        let (from, biz_code, data) = match record.event {
            Event::RoomMessageSent { sender, biz_code, data, .. } => (sender.user, biz_code, data),
            Event::DirectMessageSent { biz_code, data, .. } => (None, biz_code, data),
            _ => return None,
        };
        Some(LoggedMessage { msg_id: entry.msg_id(), from, biz_code, data, at_ms: record.at_ms })
    };
    entries.iter().filter_map(decode).collect()
}
