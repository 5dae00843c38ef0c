//! Parts that every service process shares.
//!
//! **Owns** rate limiting by key ([`limiter`]), circuit breakers ([`breaker`]), the
//! declaration and registration of metrics ([`metrics`]) and URLs without passwords
//! ([`url`]).
//!
//! **Never** performs I/O and never reads a clock: the caller passes the time.

pub mod breaker;
pub mod limiter;
pub mod metrics;
pub mod url;
