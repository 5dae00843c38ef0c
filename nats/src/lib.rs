//! The shared language of qiyu, and the only crate that speaks NATS.
//!
//! **Owns** ids, events, envelopes, commands and their encoding; the names and
//! settings of every stream and bucket; leases; the loops that read the log
//! and the per-gateway queues; starting a local nats-server.
//!
//! **Never** decides who hears a message, never sees a client's frame.
//!
//! **Reads and writes** NATS on behalf of whoever calls; each stream's and
//! bucket's one writer is named in [`stream`].
//!
//! **Start at** [`event`] (what can happen), then [`subject`] (where it is
//! written), then [`log`] (how it is stored and read).

// The pure half: no tokio, no clock, no I/O.
mod chain;
pub mod codec;
pub mod command;
pub mod envelope;
pub mod event;
pub mod id;
pub mod ledger;
pub mod measure;
pub mod room;
pub mod secret;
pub mod subject;
pub mod ticket;

// The half that talks to a server.
pub mod brake;
pub mod bucket;
pub mod bus;
pub mod fact;
pub mod inbox;
pub mod lag;
pub mod lease;
pub mod log;
mod metrics;
pub mod notice;
pub mod origin;
pub mod outbox;
pub mod position;
mod pull;
pub mod record;
pub mod server;
pub mod service;
pub mod snapshot;
pub mod stream;
pub mod trail;
pub mod vitals;

pub use bus::{Bus, BusConfig, ConnectError, Profile};
pub use chain::chain;
pub use id::{
    AppId, ClientMsgId, ConnId, GatewayId, Incarnation, MsgId, Partition, RoomId, UserId,
};
pub use secret::Secret;
pub use stream::ProvisionError;

/// Milliseconds since 1970, by this machine's clock. Only for people and for
/// generous limits (retention, deduplication); nothing is ever ordered by it.
pub fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
