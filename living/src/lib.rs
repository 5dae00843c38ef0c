//! Live rooms: open, close, find and list them, and impose sanctions in them.
//!
//! **Owns** which rooms are open, sanctions against users, the one room that an anchor may have,
//! the list of open rooms, and the only SQL about rooms. An *anchor* is the user that opened a
//! room.
//!
//! **Never** knows the members of a room or its messages: the fold of the log does. Never decides
//! alone: the first `opened` or `closed` event of a room in the log wins.
//!
//! **Reads** `im.in.*.*.room.*.opened|closed`, `….measures`, bucket `watch`, the gateways' leases.
//!
//! **Writes** `im.in.…room.<room>.opened|closed`, `….measures`, stream `IM_IDS`, buckets `rooms`,
//! `anchors` and `measures`, tables `t_living_room`, `t_living_room_record` and
//! `t_living_position`, Redis keys `qiyu-live-living-provider:…`. Tells gateways that a room has
//! ended.
//!
//! **Start at** [`open`], then [`close`]; [`project`] applies the events of both.

mod cache;
mod close;
mod find;
mod inner;
mod list;
mod metrics;
mod open;
mod project;
mod projector;
mod rebuild;
mod room;
mod room_lists;
mod sanction_entries;
mod sanctions;
mod service;
mod single_flight;
mod status;
mod store;
mod tables;
mod texts;

pub use cache::CacheError;
pub use rebuild::{RebuildError, Rebuilt, StatusLookupError, rebuild};
pub use room::Claim;
pub use service::{Config, Living, StartError};
pub use store::StoreError;
pub use tables::{OpenRow, RecordRow, RoomTable, RoomTables, UnreadableRow, read_tables};
