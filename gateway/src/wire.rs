//! Sockets: accepting them, upgrading them, reading and writing frames.

pub(crate) mod listen;
pub mod playback;
pub(crate) mod protocol;
pub(crate) mod socket;
pub(crate) mod upgrade;
