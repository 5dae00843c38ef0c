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
//! `t_living_position`, Redis keys `qiyu-live-living-provider:…`; tells gateways that a room has ended.
//!
//! **Start at** [`open`], then [`close`]; [`project`] is what both leave behind.

mod cache;
mod close;
mod database;
mod find;
mod flight;
mod list;
mod look;
mod metrics;
mod moderate;
mod open;
mod project;
mod rebuild;
mod replay;
mod room;
#[cfg(test)]
#[allow(dead_code)] // the stories use all of it
#[path = "../../tests/stories/harness/servers.rs"]
mod servers;
mod service;
mod shared;
mod standing;
mod store;

pub use cache::CacheError;
pub use look::{OpenRow, RecordRow, Senseless, Table, Tables, look};
pub use rebuild::{FactError, RebuildError, Rebuilt, rebuild};
pub use room::Claim;
pub use service::{Config, Living, StartError};
pub use store::StoreError;
