//! The keys and values in Redis, and the encoding of commands.

use std::time::Duration;

use qiyu_schema::{AppId, MsgId, RoomId, UserId, ticket::fresh_nonce};
use redis::{Cmd, FromRedisValue, Value, cmd, from_redis_value};
use serde::{Deserialize, Serialize};

use crate::room::Room;

/// The prefix of the keys of rooms: the name of the first qiyu's program.
const PREFIX: &str = "qiyu-live-living-provider";

/// A room as Redis holds it, in JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RoomJson {
    id: RoomId,
    app_id: AppId,
    anchor_id: UserId,
    #[serde(rename = "type")]
    room_type: u8,
    room_name: String,
    covert_img: String,
    good_num: u64,
    start_time: u64,
    log_pos: MsgId,
}

impl From<&Room> for RoomJson {
    fn from(room: &Room) -> Self {
        Self {
            id: room.room,
            app_id: room.app,
            anchor_id: room.anchor,
            room_type: room.room_type,
            room_name: room.name.clone(),
            covert_img: room.cover.clone(),
            good_num: room.good_num,
            start_time: room.opened_at_ms,
            log_pos: room.opened,
        }
    }
}

impl From<RoomJson> for Room {
    fn from(json: RoomJson) -> Self {
        Self {
            app: json.app_id,
            room: json.id,
            anchor: json.anchor_id,
            room_type: json.room_type,
            name: json.room_name,
            cover: json.covert_img,
            good_num: json.good_num,
            opened: json.log_pos,
            opened_at_ms: json.start_time,
        }
    }
}

/// Returns the key of one room.
pub(super) fn room_key(room: RoomId) -> String {
    format!("{PREFIX}:living_room_obj:{room}")
}

/// Returns the key of the list of one app and type.
pub(super) fn list_key((app, room_type): (AppId, u8)) -> String {
    format!("{PREFIX}:living_room_list:{app}:{room_type}")
}

/// Returns the key of the mark that the lists were read.
pub(super) fn lists_mark_key() -> String {
    format!("{PREFIX}:living_room_lists_read")
}

/// Returns the key of the lock under which one process reads the lists.
pub(super) fn lists_lock_key() -> String {
    format!("{PREFIX}:refresh_living_room_list_lock")
}

/// Makes the command that runs a script. The script is sent whole each time, which takes less than
/// the round trip to find out whether Redis has it.
pub(super) fn script(text: &str, keys: &[String]) -> Cmd {
    let mut eval = cmd("EVAL");
    eval.arg(text).arg(keys.len()).arg(keys);
    eval
}

/// Converts a part of a reply.
pub(super) fn decode<T: FromRedisValue>(value: Value) -> Option<T> {
    from_redis_value(value).ok()
}

/// Returns a value that no other process uses.
pub(super) fn nonce() -> String {
    format!("{:032x}", fresh_nonce())
}

/// Returns a duration as Redis's PX takes it.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
