//! Texts for operators and other services, except the texts of close frames,
//! which stand with their codes in `close.rs`.

/// Readiness: the gateway drains.
pub(crate) const DRAINING: &str = "draining";
/// Readiness: no incarnation has started, or the last one has ended.
pub(crate) const NOT_STARTED: &str = "no incarnation has started";
/// Readiness: the lease is not renewed.
pub(crate) const SUSPENDED: &str = "suspended: the lease is not renewed";
/// The refusal of a command by an incarnation that ends.
pub(crate) const ENDING: &str = "this gateway is ending";
