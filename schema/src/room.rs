//! What the bucket `rooms` says of an open room.
//!
//! A room is open while its key exists; closing removes the key before the
//! closer hears of it. The log says the same: this is the copy that can be
//! looked up.

use serde::{Deserialize, Serialize};

use crate::id::{AppId, MsgId, RoomId, UserId};

/// An open room, as the bucket `rooms` holds it under [`key`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomEntry {
    /// Whose room.
    pub anchor: UserId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    /// As listed.
    pub name: String,
    /// Cover image URL; may be empty.
    pub cover: String,
    /// The opening's place in the log.
    pub opened: MsgId,
    /// When, ms since 1970. For people.
    pub opened_at_ms: u64,
}

/// A room's key in the buckets `rooms` and `watch`.
pub fn key(app: AppId, room: RoomId) -> String {
    format!("{app}.{room}")
}

/// Whose key this is.
pub fn parse_key(key: &str) -> Option<(AppId, RoomId)> {
    let (app, room) = key.split_once('.')?;
    Some((app.parse().ok()?, room.parse().ok()?))
}

/// What the bucket `watch` says of a room under [`key`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomCounts {
    /// Users inside, each once.
    pub watch_num: u64,
    /// Likes.
    pub good_num: u64,
    /// The most users that were ever inside at once. `None`: written by a build that did not count it.
    #[serde(default)]
    pub peak: Option<u64>,
}
