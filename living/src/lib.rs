//! Live rooms: open, close, find, list, and who may not speak in them.
//!
//! **Owns** which rooms are open, measures against users, the one room an anchor may have, the list
//! people see, and the only SQL about rooms.
//!
//! **Never** knows who is inside a room or what is said there: the log's fold
//! does. Never decides alone: the log's first `opened` or `closed` wins.
//!
//! **Reads** `im.in.*.*.room.*.opened|closed`, `….measures`, bucket `watch`, the
//! gateways' leases.
//!
//! **Writes** `im.in.…room.<room>.opened|closed`, `….measures`, stream `IM_IDS`,
//! buckets `rooms`, `anchors` and `measures`, tables `t_living_room`, `t_living_room_record` and
//! `t_living_position`; tells gateways that a room has ended.
//!
//! **Start at** [`open`], then [`close`]; [`project`] is what both leave behind.

mod close;
mod find;
mod list;
mod metrics;
mod moderate;
mod open;
mod project;
mod replay;
mod room;
mod service;
mod store;

pub use service::{Config, Living, StartError};
pub use store::StoreError;
