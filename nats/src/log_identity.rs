//! Which log this is: so that what was read here is never written back here.

use std::time::Duration;

use futures_util::StreamExt;

use crate::{bus::Bus, log::ReadError, stream};

/// What tells a log from every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// When its stream was made, ns since 1970. A copy of a server's store has the same.
    pub created_ns: i128,
    /// The version of the server that answered.
    pub server: String,
    /// How long it keeps an event.
    pub retain: Duration,
    /// Copies of it.
    pub replicas: usize,
    /// The first sequence it still has.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

/// How long a word said on one bus may take to be heard on the other.
const WHISPER_PATIENCE: Duration = Duration::from_millis(500);

impl Bus {
    /// Which log lies here, and how it is kept.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the log does not answer.
    pub async fn log_identity(&self) -> Result<LogIdentity, ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let log = self.control.get_stream(stream::IN).await;
        let log = log.map_err(|error| open(error.into()))?;
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

    /// Whether a word said here is heard on `other`: then both are one system,
    /// through whatever servers, and what is written to one is written to both.
    ///
    /// # Errors
    ///
    /// When one of the connections is closed.
    pub async fn is_same_system(&self, other: &Self) -> Result<bool, async_nats::Error> {
        let subject = format!("qiyu.whisper.{:032x}", qiyu_schema::ticket::fresh_nonce());
        let listener = other.control.client();
        let mut heard = listener.subscribe(subject.clone()).await?;
        listener.flush().await?;
        let speaker = self.control.client();
        speaker.publish(subject, "".into()).await?;
        speaker.flush().await?;
        Ok(tokio::time::timeout(WHISPER_PATIENCE, heard.next()).await.is_ok())
    }
}
