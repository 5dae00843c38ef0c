//! Who is online, and where.
//!
//! **Owns** the gateways' leases and lives, users' sessions as seen from
//! outside, and the reaper that turns a dead gateway into facts of the log.
//!
//! **Never** delivers anything, and never decides membership of a room: the
//! log does. What is here answers "is she online?" and "may he connect once more?".
//!
//! **Reads** buckets `gateways`, `incarnations`, `presence`.
//!
//! **Writes** the same, bucket `reapers`, `im.in.*.gateway.*.gone`, and what a
//! dead gateway left unacknowledged.
//!
//! **Start at** [`registration`] (a gateway's life), then [`reaper`] (its end).

mod gateways;
mod reaper;
mod registration;
mod sessions;
mod takeover;

pub use gateways::{GatewayView, Gateways};
pub use reaper::{Config, Reaper, StartError};
pub use registration::{RegisterError, Registration};
pub use sessions::{
    AddSessionError, SESSIONS_MAX, Session, SessionError, SessionPolicy, Sessions, SessionsByUser,
};
