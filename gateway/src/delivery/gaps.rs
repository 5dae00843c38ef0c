//! What was lost on the way to a room, read from the log.
//!
//! An envelope that never came is missed when a later one names it, or when the
//! rooms are compared with the log because the bus was away.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use qiyu_nats::{
    Bus, chain,
    log::{LogEntry, ReadError},
};
use qiyu_schema::{
    MsgId,
    event::Event,
    subject::{self, RoomKind},
};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    DeliveryTask, Order, RoomKey,
    retry::From,
    rooms::{Room, What},
};

/// After a failed reading of the log.
pub(super) const GAP_RETRY: Duration = Duration::from_millis(500);
/// After the bus was away, before the rooms are compared with the log: longer
/// than workers take to be back, so that what is only late comes by itself.
pub(super) const COMPARE_AFTER: Duration = Duration::from_secs(5);
/// Rooms compared at once.
const COMPARED_AT_ONCE: usize = 16;
/// Messages read from the log at once for one gap.
const GAP_MAX: usize = 1_000;

impl DeliveryTask {
    /// The missing envelope has had its time: if it is still missing, the log is read.
    pub(super) fn look_for_gap(&mut self, key: RoomKey) {
        let Some(room) = self.rooms.get_mut(&key) else { return };
        room.looking = false;
        let (Some(last), Some((_, first))) = (room.last, room.waiting.first_key_value()) else {
            return;
        };
        let until = first.prev;
        if until <= last {
            return; // it has come meanwhile
        }
        room.looking = true;
        let (bus, orders) = (self.with.bus.clone(), self.with.orders.clone());
        self.with.tasks.spawn(async move {
            let found = read_gap(&bus, room_filters(key), last.seq(), until).await;
            let order = match found {
                Ok((found, until)) => Order::RoomFilled { room: key, until, found },
                Err(error) => {
                    warn!(room = %key.1, error = %chain(&error), "lost messages not read yet, trying again");
                    tokio::time::sleep(GAP_RETRY).await;
                    Order::RoomGap(key)
                }
            };
            orders.send(order).await.ok(); // the life is over
        });
    }

    /// What was missing up to `until` is dealt with as if its envelopes had come.
    pub(super) fn fill(&mut self, key: RoomKey, until: MsgId, found: Vec<LogEntry>) {
        for entry in found {
            let msg_id = entry.msg_id();
            let missed = |room: &Room| room.last.is_some_and(|last| last < msg_id);
            if !self.rooms.get(&key).is_some_and(missed) {
                continue;
            }
            if let Ok(record) = entry.record()
                && let Event::RoomMessageSent { sender, biz_code, data, .. } = record.event
            {
                debug!(room = %key.1, %msg_id, "its envelope was lost, read from the log");
                self.with.desk.metrics.gap_fills.inc();
                // The envelope may still be on its way, or wait here: it is a repeat then.
                let at_ms = Some(record.at_ms);
                let what = What::Said { from: sender.user, biz_code, data, at_ms };
                self.expand(key, msg_id, what, From::Log);
            }
        }
        if let Some(room) = self.rooms.get_mut(&key) {
            room.looking = false;
            // Unknown stays unknown: the room may have been left and entered anew.
            room.last = room.last.map(|last| last.max(until));
        }
        self.advance(key);
    }

    /// A queue that lost its tail has lost the sign that something is missing,
    /// too: for rooms in which nothing more is said, only the log has it.
    pub(super) fn compare(&self) {
        let known = |(key, room): (&RoomKey, &Room)| {
            (!room.closed && !room.members.is_empty()).then_some((*key, room.last?))
        };
        let rooms: Vec<(RoomKey, MsgId)> = self.rooms.iter().filter_map(known).collect();
        let (bus, orders) = (self.with.bus.clone(), self.with.orders.clone());
        self.with.tasks.spawn(async move {
            stream::iter(rooms)
                .for_each_concurrent(COMPARED_AT_ONCE, async |(key, last)| {
                    if let Err(error) = compare_one(&bus, &orders, key, last).await {
                        // The bus is away again; when it is back this is done again.
                        debug!(room = %key.1, error = %chain(&error), "room not compared");
                    }
                })
                .await;
        });
    }

    /// The room was closed at `position`, and nobody here has heard of it.
    pub(super) fn end_late(&mut self, key: RoomKey, position: MsgId) {
        let late = |room: &Room| !room.closed && room.last.is_some_and(|last| last < position);
        if self.rooms.get(&key).is_some_and(late) {
            debug!(room = %key.1, "the envelope of its closing was lost");
            self.with.desk.metrics.gap_fills.inc();
            self.expand(key, position, What::Closed, From::Log);
        }
    }
}

/// Brings what the log has of a room above `last`: messages, then its end.
async fn compare_one(
    bus: &Bus,
    orders: &mpsc::Sender<Order>,
    (app, room): RoomKey,
    last: MsgId,
) -> Result<(), ReadError> {
    let newest = |kind| async move {
        let entry = bus.read_last(&subject::room(app, room, kind)).await?;
        Ok::<_, ReadError>(entry.map(|entry| entry.msg_id()))
    };
    let closed = newest(RoomKind::Closed).await?;
    let said = newest(RoomKind::Msg).await?;
    let mut after = last;
    while let Some(until) = said.filter(|said| after < *said) {
        let (mut found, reached) =
            read_gap(bus, room_filters((app, room)), after.seq(), until).await?;
        // What was stored after the end is for nobody.
        found.retain(|entry| closed.is_none_or(|closed| entry.msg_id() < closed));
        let until = match closed {
            Some(closed) if closed <= reached => found.last().map_or(after, LogEntry::msg_id),
            _ => reached,
        };
        let key = (app, room);
        orders.send(Order::RoomFilled { room: key, until, found }).await.ok(); // the life is over
        after = reached;
    }
    if let Some(position) = closed {
        let room = (app, room);
        orders.send(Order::RoomEnded { room, position }).await.ok(); // the life is over
    }
    Ok(())
}

/// What is missing in (after, until], and how far that reaches.
pub(super) async fn read_gap(
    bus: &Bus,
    filters: Vec<String>,
    after: u64,
    until: MsgId,
) -> Result<(Vec<LogEntry>, MsgId), ReadError> {
    let is_message = LogEntry::is_message;
    let range = bus.read_range(filters, after, until, GAP_MAX, is_message).await?;
    // The rest of a very large gap is found missing again, and read next.
    let reached = match range.entries.last() {
        Some(last) if !range.complete => last.msg_id(),
        _ => until,
    };
    Ok((range.entries, reached))
}

/// What can stand between two messages of a room, or at either end.
pub(crate) fn room_filters((app, room): RoomKey) -> Vec<String> {
    vec![
        subject::room(app, room, RoomKind::Msg),
        subject::room(app, room, RoomKind::Members), // a join may be what `prev` names
    ]
}
