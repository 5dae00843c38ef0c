//! The fold of the log: which gateways must receive a message, and in which order.
//!
//! **Owns** partitions of the log, one owner each: the fold of its events,
//! how far it has come, its snapshots.
//!
//! **Never** touches a socket, never sends a room's user list to a gateway:
//! a gateway gets one envelope and knows its own members.
//!
//! **Reads** `IM_IN`, buckets `workers`, `claims`, `positions`; `IM_SNAP`, `IM_INBOX`.
//!
//! **Writes** `IM_OUT`, `IM_SNAP`, `IM_INBOX`, `IM_EVT`, hand-overs in `IM_LEDGER`, buckets `workers`,
//! `claims`, `positions`, `watch`.
//!
//! **Start at** [`fold`] (the rules, pure), then `owner` (one partition's
//! loop), then `worker` (which partitions are ours).

pub mod fold;
pub mod past;
pub mod state;

mod deliver;
mod handovers;
mod heat;
mod lag;
mod metrics;
mod owner;
mod query;
mod snapshot;
mod viewers;
mod worker;

pub use worker::{Config, Fanout, StartError};
