//! Operators' tools that explain a system from the record it keeps.
//!
//! **Owns** `qiyu replay` ([`replay`]: the log as people read it, room states,
//! capsules, playback), `qiyu trace` ([`trace`]: one message) and `qiyu verify`
//! ([`verify`]: everything derived from the log, compared with the log).
//!
//! **Never** reads a setting: the program passes a [`Config`]. No tool writes
//! into the log it reads.

pub mod access;
mod capsule;
mod config;
mod format;
mod log;
pub mod replay;
pub mod terminal;
mod text;
mod timestamp;
pub mod trace;
pub mod verify;

pub use self::config::Config;
