//! The identity of a log. It keeps a tool from writing events of a log back to
//! the same log.

use std::time::Duration;

use futures_util::StreamExt;

use crate::{bus::Bus, log::ReadError, stream};

/// The properties that tell a log from every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// Creation of its stream, ns since 1970. A copy of a server's store has the same.
    pub created_ns: i128,
    /// Version of the server that responded.
    pub server: String,
    /// Retention of an event.
    pub retain: Duration,
    pub replicas: usize,
    /// First sequence it holds.
    pub first: u64,
    /// Last sequence it holds.
    pub last: u64,
}

/// Time a message that is published on one bus may take to reach the other.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

impl Bus {
    /// Returns the identity of the log on this bus.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the log does not respond.
    pub async fn log_identity(&self) -> Result<LogIdentity, ReadError> {
        let log = self.control.get_stream(stream::IN).await.map_err(ReadError::unavailable)?;
        let info = log.cached_info();
        Ok(LogIdentity {
            created_ns: info.created.unix_timestamp_nanos(),
            server: self.control.client().server_info().version,
            retain: info.config.max_age,
            replicas: info.config.num_replicas,
            first: info.state.first_sequence,
            last: info.state.last_sequence,
        })
    }

    /// Whether a message published here reaches `other`. Both are then one
    /// system, through whichever servers, and a write to one is a write to both.
    ///
    /// # Errors
    ///
    /// Fails when one of the connections is closed.
    pub async fn is_same_system(&self, other: &Self) -> Result<bool, async_nats::Error> {
        let subject = format!("qiyu.whisper.{:032x}", qiyu_schema::ticket::fresh_nonce());
        let receiver = other.control.client();
        let mut received = receiver.subscribe(subject.clone()).await?;
        receiver.flush().await?;
        let sender = self.control.client();
        sender.publish(subject, "".into()).await?;
        sender.flush().await?;
        Ok(tokio::time::timeout(PROBE_TIMEOUT, received.next()).await.is_ok())
    }
}
