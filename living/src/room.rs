//! The types of this crate: an open room, its closing, the lists of rooms, and an anchor's claim.

use std::{collections::HashMap, sync::Arc};

use qiyu_nats::log::LogEntry;
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId,
    command::RoomView,
    event::{Event, Record},
    room::{RoomCounts, RoomEntry},
};
use serde::{Deserialize, Serialize};

/// The types of a room: 1 ordinary, 2 pk.
pub(crate) const ROOM_TYPES: [u8; 2] = [1, 2];
/// Rooms of one type in a list. Older ones are found by their id only.
pub(crate) const LISTED_MAX: u32 = 1000;

/// The lists of open rooms by app and type, newest first.
pub(crate) type ListsByType = HashMap<(AppId, u8), Vec<Arc<Room>>>;

/// An open room. Only the likes change while it is open.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Room {
    pub(crate) app: AppId,
    pub(crate) room: RoomId,
    pub(crate) anchor: UserId,
    pub(crate) room_type: u8,
    pub(crate) name: String,
    pub(crate) cover: String,
    pub(crate) good_num: u64,
    /// The position of the `opened` event in the log.
    pub(crate) opened: MsgId,
    pub(crate) opened_at_ms: u64,
}

impl Room {
    /// Returns the room that this log entry opened. `None`: it is another kind of event.
    pub(crate) fn opened_by(entry: &LogEntry, record: Record) -> Option<Self> {
        let Event::RoomOpened { app, room, anchor, room_type, name, cover } = record.event else {
            return None;
        };
        let (opened, opened_at_ms) = (entry.msg_id(), record.at_ms);
        Some(Self { app, room, anchor, room_type, name, cover, good_num: 0, opened, opened_at_ms })
    }

    /// Returns the value for the bucket `rooms`, which gateways read.
    pub(crate) fn entry(&self) -> RoomEntry {
        RoomEntry {
            anchor: self.anchor,
            room_type: self.room_type,
            name: self.name.clone(),
            cover: self.cover.clone(),
            opened: self.opened,
            opened_at_ms: self.opened_at_ms,
        }
    }

    /// Returns the room that an entry of the bucket `rooms` describes.
    pub(crate) fn from_entry(app: AppId, room: RoomId, entry: RoomEntry) -> Self {
        Self {
            app,
            room,
            anchor: entry.anchor,
            room_type: entry.room_type,
            name: entry.name,
            cover: entry.cover,
            good_num: 0,
            opened: entry.opened,
            opened_at_ms: entry.opened_at_ms,
        }
    }

    /// Returns the reply to a client's query for this room.
    pub(crate) fn view(&self, counts: RoomCounts) -> RoomView {
        RoomView {
            room: self.room,
            anchor: self.anchor,
            room_type: self.room_type,
            name: self.name.clone(),
            cover: self.cover.clone(),
            watch_num: counts.watch_num,
            good_num: counts.good_num.max(self.good_num),
        }
    }
}

/// The end of a room, as its `closed` event has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoomClosing {
    pub(crate) app: AppId,
    pub(crate) room: RoomId,
    pub(crate) closed: MsgId,
    pub(crate) closed_at_ms: u64,
    /// The most users inside at once. `None`: the process that closed the room did not know.
    pub(crate) peak: Option<u64>,
    /// The likes. `None`: the process that closed the room did not know.
    pub(crate) good_num: Option<u64>,
}

impl RoomClosing {
    /// Reads the `closed` event of a room. An event with unreadable details has ended the room all
    /// the same.
    pub(crate) fn from_log(app: AppId, room: RoomId, entry: &LogEntry) -> Self {
        let record = entry.record().ok();
        let closed_at_ms = record.as_ref().map_or(0, |record| record.at_ms);
        let (peak, good_num) = match record.map(|record| record.event) {
            Some(Event::RoomClosed { peak, good_num, .. }) => (peak, good_num),
            _ => (None, None),
        };
        Self { app, room, closed: entry.msg_id(), closed_at_ms, peak, good_num }
    }
}

/// An entry of the bucket `anchors`: the one room that an anchor has, or is about to open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    pub room: RoomId,
    /// When it was claimed, by the clock of the claiming process, ms since 1970.
    pub at_ms: u64,
}

/// Returns an anchor's key in the bucket `anchors`.
pub(crate) fn claim_key(app: AppId, anchor: UserId) -> String {
    format!("{app}.{anchor}")
}
