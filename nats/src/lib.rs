//! The driver of NATS, and the only crate that names async-nats.
//!
//! **Owns** the names and settings of every stream and bucket; leases; the
//! loops that read the log and the per-gateway queues; starting a local
//! nats-server.
//!
//! **Never** decides which connections receive a message, never sees a client's
//! frame.
//!
//! **Reads and writes** NATS on behalf of its caller; [`stream`] names the one
//! writer of each stream and bucket.
//!
//! **Start at** [`bus`] (the connections), then [`log`] (append and read), then
//! [`outbox`] (the queue of one gateway).

pub mod backpressure;
pub mod bucket;
pub mod bus;
mod chain;
mod collector;
mod config;
mod connection;
pub mod fact;
pub mod inbox;
pub mod lag;
pub mod lease;
mod lease_ages;
pub mod ledger_stream;
pub mod log;
pub mod log_identity;
mod metrics;
pub mod notice;
pub mod outbox;
pub mod position;
mod publish_error;
mod pull;
pub mod server;
pub mod service;
pub mod snapshot;
pub mod stream;
pub mod trace_context;
pub mod vitals;

pub use bus::Bus;
pub use chain::chain;
pub use config::{BusConfig, Profile};
pub use connection::ConnectError;
pub use stream::ProvisionError;

/// Returns the milliseconds since 1970, by this machine's clock.
///
/// It is only for display and for generous limits (retention, deduplication).
/// Nothing is ever ordered by it.
pub fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
