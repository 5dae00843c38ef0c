//! Parts that every service process shares.
//!
//! **Owns** rate limiting by key ([`limiter`]) and the declaration and
//! registration of metrics ([`metrics`]).
//!
//! **Never** performs I/O and never reads a clock: the caller passes the time.

pub mod limiter;
pub mod metrics;
