//! An open room, as this crate holds it, and the claim behind it.

use qiyu_nats::log::LogEntry;
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId,
    command::RoomView,
    event::{Event, Record},
    room::{RoomCounts, RoomEntry},
};
use serde::{Deserialize, Serialize};

/// The types there are: 1 ordinary, 2 pk.
pub(crate) const ROOM_TYPES: [u8; 2] = [1, 2];

/// An open room. Nothing in it changes while it is open, but the likes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Room {
    pub(crate) app: AppId,
    pub(crate) room: RoomId,
    pub(crate) anchor: UserId,
    pub(crate) room_type: u8,
    pub(crate) name: String,
    pub(crate) cover: String,
    pub(crate) good_num: u64,
    /// The opening's place in the log.
    pub(crate) opened: MsgId,
    pub(crate) opened_at_ms: u64,
}

impl Room {
    /// The room this entry of the log opened. `None`: it opened none.
    pub(crate) fn opened_by(entry: &LogEntry, record: Record) -> Option<Self> {
        let Event::RoomOpened { app, room, anchor, room_type, name, cover } = record.event else {
            return None;
        };
        let (opened, opened_at_ms) = (entry.msg_id(), record.at_ms);
        Some(Self { app, room, anchor, room_type, name, cover, good_num: 0, opened, opened_at_ms })
    }

    /// As gateways read it.
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

    /// The room a bucket entry describes.
    pub(crate) fn of_entry(app: AppId, room: RoomId, entry: RoomEntry) -> Self {
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

    /// As its visitors see it.
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

/// What the bucket `anchors` holds: the one room an anchor has, or is about to have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// Which room.
    pub room: RoomId,
    /// When it was claimed, by the claimer's clock, ms since 1970.
    pub at_ms: u64,
}

/// An anchor's key in the bucket `anchors`.
pub(crate) fn claim_key(app: AppId, anchor: UserId) -> String {
    format!("{app}.{anchor}")
}
