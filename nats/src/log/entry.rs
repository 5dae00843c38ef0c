//! An entry of the log, the start of a reading, and the error of one.

use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;

use qiyu_schema::{
    codec::{self, DecodeError},
    event::Record,
    id::{MsgId, Partition},
    subject::LogSubject,
};

/// One entry as it lies in the log.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Its sequence in the stream.
    pub seq: u64,
    pub subject: String,
    /// The encoded [`Record`].
    pub payload: Bytes,
    /// Further entries that matched when this one was read by a reader; else 0.
    pub pending: u64,
    /// Time of storage by the server's clock, ms since 1970.
    pub written_ms: u64,
}

impl LogEntry {
    /// Returns the id of the message at this position.
    pub fn msg_id(&self) -> MsgId {
        MsgId::at(self.seq)
    }

    /// Returns the partition of this entry. `None`: it is no entry of the log.
    pub fn partition(&self) -> Option<Partition> {
        LogSubject::partition_of(&self.subject)
    }

    /// Whether this entry is a message, of a room or a direct one.
    pub fn is_message(&self) -> bool {
        LogSubject::parse(&self.subject).is_some_and(|subject| subject.is_message())
    }

    /// Decodes the record.
    ///
    /// # Errors
    ///
    /// Fails when the bytes are no [`Record`]; they never will be.
    pub fn record(&self) -> Result<Record, DecodeError> {
        codec::decode(&self.payload)
    }
}

impl From<StreamMessage> for LogEntry {
    fn from(message: StreamMessage) -> Self {
        Self {
            seq: message.sequence,
            subject: message.subject.to_string(),
            payload: message.payload,
            pending: 0,
            written_ms: unix_ms(message.time),
        }
    }
}

/// Converts a server time to ms since 1970.
pub(super) fn unix_ms(at: time::OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// The start of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// After this sequence; 0: from the beginning.
    After(u64),
    /// With the first entry stored at this time or later.
    At {
        /// Milliseconds since 1970, by the server's clock.
        unix_ms: u64,
    },
}

/// A failed reading. It starts again from a known position.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream did not respond.
    #[error("read the log")]
    Unavailable { source: async_nats::Error },
    /// Entries are missing between two that arrived.
    #[error("the log's reader got entry {got} after {expected_after}: some are missing")]
    Gap {
        /// The consumer's number of the entry.
        got: u64,
        /// The consumer's number of the previous entry.
        expected_after: u64,
    },
    /// The connection was lost and is back.
    #[error("the log's reader has lost its connection")]
    Reconnected,
    /// Neither an entry nor a heartbeat came for too long.
    #[error("the log's reader has fallen silent")]
    Timeout,
}

impl ReadError {
    /// Wraps an error of NATS.
    pub(crate) fn unavailable(source: impl Into<async_nats::Error>) -> Self {
        Self::Unavailable { source: source.into() }
    }
}
