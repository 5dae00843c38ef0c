//! Ids, events, envelopes, commands and ledger records, their encoding and
//! their subjects.
//!
//! This crate needs no server, no runtime and no clock. The crate `qiyu-nats`
//! sends and stores these types; every other crate reads and builds them.
//!
//! **Start at** [`event`] (the entries of the log), then [`subject`] (the
//! subject each kind is stored under), then [`envelope`] (the deliveries to a
//! gateway).

pub mod codec;
pub mod command;
pub mod envelope;
pub mod event;
pub mod id;
pub mod ledger;
pub mod log_subject;
mod namespace;
pub mod room;
pub mod sanction;
mod secret;
pub mod subject;
pub mod ticket;

pub use id::{
    AppId, ClientMsgId, ConnId, GatewayId, Incarnation, MsgId, Partition, RoomId, UserId,
};
pub use namespace::Namespace;
pub use secret::Secret;
