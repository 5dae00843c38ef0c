//! Appends to the log, and confirmed publishes to any stream.

use std::time::Duration;

use async_nats::jetstream::{
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
    publish::PublishAck,
};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::debug;

use crate::{
    bus::Bus, chain, log::entry::ReadError, publish_error, stream, trace_context::TraceContext,
};
use qiyu_schema::{
    codec,
    event::Record,
    id::{MsgId, RoomId},
    subject, ticket,
};

/// An append that was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// No PubAck came before the deadline. The event may be stored; the same key
    /// may be appended again.
    #[error("{subject} was not confirmed within {waited:?}")]
    Unconfirmed {
        subject: String,
        waited: Duration,
        /// The error of the last attempt.
        source: PublishError,
    },
    /// [`AppendCondition::First`] did not hold.
    #[error("{subject} is already taken")]
    Taken { subject: String },
    /// The event can never be stored.
    #[error("{subject} was refused")]
    Refused { subject: String, source: async_nats::Error },
}

/// An append is retried for this long before its sender receives an error.
pub const APPEND_DEADLINE: Duration = Duration::from_secs(10);
/// First pause between attempts; doubled up to [`APPEND_BACKOFF_MAX`].
const APPEND_BACKOFF_MIN: Duration = Duration::from_millis(50);
const APPEND_BACKOFF_MAX: Duration = Duration::from_millis(500);

/// The condition under which an append is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendCondition {
    Any,
    /// Nothing was ever stored under the subject: the first append wins.
    First,
}

impl Bus {
    /// Stores `record`, waits for the confirmation, and returns its position.
    ///
    /// The same `key` again within [`stream::DEDUP_WINDOW`] stores nothing and
    /// returns the first position. An attempt without a response is repeated
    /// under the same key, so a returned position means exactly one copy.
    ///
    /// # Errors
    ///
    /// - [`AppendError::Unconfirmed`] after `deadline`: the event may be stored,
    ///   and the same key may be appended again.
    /// - [`AppendError::Taken`]: `condition` did not hold.
    /// - [`AppendError::Refused`]: the record is too large or cannot be encoded.
    ///
    /// # Source
    ///
    /// nats-server `server/stream.go`: a duplicate `Nats-Msg-Id` is answered
    /// with the sequence kept for it and `"duplicate": true`.
    pub async fn append(
        &self,
        subject: String,
        record: &Record,
        key: &str,
        condition: AppendCondition,
        deadline: Duration,
    ) -> Result<MsgId, AppendError> {
        let payload = encode_for(&subject, record)?;
        let ack = self.publish_confirmed(subject, payload, key, condition, deadline).await?;
        Ok(MsgId::at(ack.sequence))
    }

    /// Stores `record` as [`Bus::append`] does, without a condition and with the
    /// trace context of its message.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`], never [`AppendError::Taken`].
    pub async fn append_traced(
        &self,
        subject: String,
        record: &Record,
        key: &str,
        deadline: Duration,
        context: Option<&TraceContext>,
    ) -> Result<MsgId, AppendError> {
        let payload = encode_for(&subject, record)?;
        let any = AppendCondition::Any;
        let ack = self.publish_traced(subject, payload, key, any, deadline, context).await?;
        Ok(MsgId::at(ack.sequence))
    }

    /// Returns a room id that no room ever had: the position of an empty entry
    /// in a stream of its own.
    ///
    /// # Errors
    ///
    /// [`AppendError`]; an id may then stay unused, which is harmless.
    pub async fn next_room_id(&self, deadline: Duration) -> Result<RoomId, AppendError> {
        let subject = subject::ROOM_IDS.to_owned();
        // A repeat after a timeout gets the id of the first copy.
        let key = format!("id:{:032x}", ticket::fresh_nonce());
        let (empty, any) = (Bytes::new(), AppendCondition::Any);
        let ack = self.publish_confirmed(subject.clone(), empty, &key, any, deadline).await?;
        RoomId::try_from(ack.sequence)
            .map_err(|error| AppendError::Refused { subject, source: error.into() })
    }

    /// Makes every further room id larger than `taken`, after rooms of another
    /// system were imported.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the stream of ids does not respond.
    ///
    /// # Source
    ///
    /// nats-server `server/filestore.go`, `Compact`: purging up to a sequence
    /// above the last one makes the next one that sequence.
    pub async fn skip_room_ids(&self, taken: RoomId) -> Result<(), ReadError> {
        let ids = self.control.get_stream(stream::IDS).await;
        let ids = ids.map_err(ReadError::unavailable)?;
        if ids.cached_info().state.last_sequence < taken.get() {
            let purged = ids.purge().sequence(taken.get() + 1).await;
            purged.map_err(ReadError::unavailable)?;
        }
        Ok(())
    }

    /// Publishes to any stream and retries until it is confirmed.
    pub(crate) async fn publish_confirmed(
        &self,
        subject: String,
        payload: Bytes,
        key: &str,
        condition: AppendCondition,
        deadline: Duration,
    ) -> Result<PublishAck, AppendError> {
        self.publish_traced(subject, payload, key, condition, deadline, None).await
    }

    async fn publish_traced(
        &self,
        subject: String,
        payload: Bytes,
        key: &str,
        condition: AppendCondition,
        deadline: Duration,
        context: Option<&TraceContext>,
    ) -> Result<PublishAck, AppendError> {
        let started = Instant::now();
        let mut pause = APPEND_BACKOFF_MIN;
        loop {
            let message = PublishMessage::build().payload(payload.clone()).message_id(key);
            let message = match condition {
                AppendCondition::Any => message,
                AppendCondition::First => message.expected_last_subject_sequence(0),
            };
            let message = TraceContext::add_to(message, context);
            let attempt =
                async { self.publish.send_publish(subject.clone(), message).await?.await };
            let error = match attempt.await {
                Ok(ack) => return Ok(ack),
                Err(error) => error,
            };
            if error.kind() == PublishErrorKind::WrongLastSequence {
                return Err(AppendError::Taken { subject });
            }
            if !publish_error::is_transient(&error) {
                return Err(AppendError::Refused { subject, source: error.into() });
            }
            if started.elapsed() + pause >= deadline {
                let waited = started.elapsed();
                return Err(AppendError::Unconfirmed { subject, waited, source: error });
            }
            debug!(%subject, error = %chain(&error), "append not confirmed, trying again");
            self.metrics.retries.inc();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(APPEND_BACKOFF_MAX);
        }
    }
}

/// Encodes a value that is to be stored under `subject`.
pub(crate) fn encode_for<T: serde::Serialize>(
    subject: &str,
    value: &T,
) -> Result<Bytes, AppendError> {
    codec::encode(value)
        .map_err(|error| AppendError::Refused { subject: subject.to_owned(), source: error.into() })
}
