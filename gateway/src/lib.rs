//! Client connections: login, sending, delivery and acknowledgement.
//!
//! **Owns** client connections over TCP and WebSocket: frames, identity,
//! backpressure, acknowledgements; one queue of `IM_OUT`.
//!
//! **Never** decides the recipients of a message: it knows its own members and
//! asks no other service. Nothing outside this folder knows a frame code.
//!
//! **Reads** its own queue of `IM_OUT`, buckets `rooms`, `tickets`, `presence`,
//! `measures`; `IM_IN` only where an envelope was lost, and for a resume.
//!
//! **Writes** `IM_IN` (messages, members, sessions, likes), `IM_LEDGER`,
//! buckets `tickets`, `presence`, and its own lease.
//!
//! **Start at** `wire/listen` (a connection arrives), then `session/login`,
//! `wire/socket` (frames), `send/checks` (refusals), `send/ingest` (the
//! append), `delivery` (envelopes).

mod close;
mod config;
mod delivery;
mod frame;
mod gateway;
mod instance;
mod metrics;
mod rate_limit;
mod send;
mod session;
mod text;
mod wire;

pub use config::{Config, MultiDevice};
pub use gateway::{Gateway, StartError};
pub use instance::tasks::InstanceStartError;
pub use send::content::{ContentConfig, ContentError, WebhookFailurePolicy};
pub use wire::playback;
