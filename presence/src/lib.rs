//! Gateway registrations and user sessions.
//!
//! **Owns** the leases and incarnations of gateways, the sessions of users, and
//! the reaper that appends the end of a dead gateway to the log.
//!
//! **Never** delivers anything, and never decides membership of a room: the
//! log does. Sessions answer "is this user online?" and "may it connect once more?".
//!
//! **Reads** buckets `gateways`, `incarnations`, `presence`.
//!
//! **Writes** the same, bucket `reapers`, `im.in.*.gateway.*.gone`, and the
//! unacked messages of dead gateways.
//!
//! **Start at** [`registration`] (an incarnation), then [`reaper`] (its end).

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
