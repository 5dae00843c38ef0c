//! A socket's life.
//!
//! **Owns** client connections, TCP and WebSocket: frames, identity,
//! backpressure, acknowledgements; one queue of `IM_OUT`.
//!
//! **Never** decides who hears a message: it knows its own members and asks
//! nobody. Nothing outside this folder knows a frame code.
//!
//! **Reads** its own queue of `IM_OUT`, buckets `rooms`, `tickets`, `presence`;
//! `IM_IN` only where an envelope was lost.
//!
//! **Writes** `IM_IN` (messages, members, sessions, likes), `IM_LEDGER`,
//! buckets `tickets`, `presence`, and its own lease.
//!
//! **Start at** `listen` (a connection arrives), then `login`, `socket`
//! (frames), `delivery` (envelopes), `entry` (who owes an acknowledgement).
//!
//! Locks: a connection's queue is taken alone or before an entry's slow path,
//! never the other way round.

mod config;
mod delivery;
mod frame;
mod gateway;
mod metrics;
mod rate_limit;
mod send;
mod session;
mod wire;

pub use config::{Config, MultiDevice};
pub use gateway::{Gateway, StartError};
pub use send::content::{ContentConfig, ContentError, Silence};
pub use wire::playback;
