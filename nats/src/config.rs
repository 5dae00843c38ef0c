//! The settings of the connection to NATS and of the streams.

use std::time::Duration;

use qiyu_schema::Secret;

/// The durability of a confirmed write; see ARCHITECTURE.md, "Promises".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A confirmed write has reached the OS. It survives any process crash, not
    /// a power cut.
    Default,
    /// A confirmed write is on disk.
    Durable,
}

/// The address of NATS and the settings of the streams on it.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// `nats://…`, several separated by commas; may contain user and password.
    pub url: Secret,
    /// Name that NATS displays beside each connection.
    pub name: String,
    /// Copies of each stream and bucket: 1, 3 or 5.
    pub replicas: usize,
    /// Retention of the log.
    pub retain: Duration,
    /// Time after which an unacknowledged envelope is delivered again.
    pub ack_wait: Duration,
    pub profile: Profile,
}
