//! The values of the buckets `rooms` and `watch`, and their keys.
//!
//! A room is open as long as its key exists in `rooms`. Closing a room removes
//! the key before the close command returns. The log holds the same facts; the
//! buckets are the copy that can be looked up by room.

use serde::{Deserialize, Serialize};

use crate::id::{AppId, MsgId, RoomId, UserId};

/// An open room, as the bucket `rooms` holds it under [`key`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomEntry {
    pub anchor: UserId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    pub name: String,
    /// Cover image URL; may be empty.
    pub cover: String,
    /// Position of the `opened` event in the log.
    pub opened: MsgId,
    /// Writer's clock, ms since 1970. For display only.
    pub opened_at_ms: u64,
}

/// Returns a room's key in the buckets `rooms` and `watch`.
pub fn key(app: AppId, room: RoomId) -> String {
    format!("{app}.{room}")
}

/// Returns the room that [`key`] made `key` for.
pub fn parse_key(key: &str) -> Option<(AppId, RoomId)> {
    let (app, room) = key.split_once('.')?;
    Some((app.parse().ok()?, room.parse().ok()?))
}

/// The counts of one room, as the bucket `watch` holds them under [`key`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomCounts {
    /// Users in the room; a user with several connections counts once.
    pub watch_num: u64,
    /// Likes.
    pub good_num: u64,
    /// Largest `watch_num` the room ever had. `None`: written by an older build.
    #[serde(default)]
    pub peak: Option<u64>,
}
