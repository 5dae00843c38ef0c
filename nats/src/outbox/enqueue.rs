//! Storing an envelope in a gateway's queue.

use async_nats::jetstream::{
    context::{PublishAckFuture, PublishError},
    message::PublishMessage,
};
use bytes::Bytes;

use crate::{bus::Bus, publish_error, trace_context::TraceContext};
use qiyu_schema::{
    id::{Incarnation, MsgId},
    subject,
};

impl Bus {
    /// Starts storing an envelope. The returned value waits for its PubAck.
    ///
    /// # Errors
    ///
    /// [`EnqueueError`].
    pub async fn enqueue(
        &self,
        gateway: &Incarnation,
        msg_id: MsgId,
        envelope: Bytes,
        suffix: &str,
        context: Option<&TraceContext>,
    ) -> Result<EnqueueAck, EnqueueError> {
        let key = format!("{msg_id}:{gateway}{suffix}");
        let message = PublishMessage::build().payload(envelope).message_id(key);
        let message = TraceContext::add_to(message, context);
        let sent = self.publish.send_publish(subject::outbox(gateway), message).await;
        Ok(EnqueueAck(sent?))
    }
}

/// The outstanding PubAck of one envelope.
pub struct EnqueueAck(PublishAckFuture);

impl EnqueueAck {
    /// Waits until the envelope is stored.
    ///
    /// # Errors
    ///
    /// [`EnqueueError`].
    pub async fn stored(self) -> Result<(), EnqueueError> {
        self.0.await.map(drop).map_err(EnqueueError::from)
    }
}

/// An envelope that was not stored.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The gateway is 20,000 envelopes behind. It is skipped and reads the log.
    #[error("the gateway's queue is full")]
    Full,
    /// A repetition may succeed.
    #[error("the envelope was not confirmed")]
    Unconfirmed(#[source] async_nats::Error),
    /// No repetition can succeed.
    #[error("the envelope was refused")]
    Refused(#[source] async_nats::Error),
}

impl From<PublishError> for EnqueueError {
    fn from(error: PublishError) -> Self {
        if publish_error::error_code(&error) == Some(publish_error::SUBJECT_FULL) {
            Self::Full
        } else if publish_error::is_transient(&error) {
            Self::Unconfirmed(error.into())
        } else {
            Self::Refused(error.into())
        }
    }
}
