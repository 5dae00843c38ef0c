//! The queue of a gateway incarnation in `IM_OUT`: written by partition owners,
//! read by that incarnation.
//!
//! The queue's consumer is the retry clock: an envelope that is not acknowledged
//! within `ack_wait` is delivered again, and the gateway decides how to handle a
//! redelivery.

mod abandoned;
mod enqueue;

use std::{collections::HashSet, time::Duration};

use async_nats::{
    Subject,
    jetstream::{
        Message,
        consumer::{AckPolicy, DeliverPolicy, pull},
        context::ConsumerInfoErrorKind,
        stream::{DirectGetErrorKind, Stream},
    },
};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::{bus::Bus, chain, pull::PullStream, stream, trace_context::TraceContext};
use qiyu_schema::{
    codec,
    envelope::Envelope,
    id::{Incarnation, MsgId},
    subject,
};

pub use abandoned::AbandonedOutbox;
pub use enqueue::{EnqueueAck, EnqueueError};

/// Envelopes a gateway may hold unacknowledged. At 16,000 pending the second
/// delivery came within 110 ms of its time; with the default of 1000 one room
/// of silent clients would cap the gateway at 250 envelopes a second.
const ACK_PENDING_MAX: i64 = 20_000;
/// Pause between attempts to restart a broken reader.
const RESTART_INTERVAL: Duration = Duration::from_millis(500);
/// While disconnected, the client's channel fills and a publish would wait without end.
const ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// A gateway's queue could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} the queue of gateway {gateway}")]
pub struct OutboxError {
    attempt: &'static str,
    gateway: Incarnation,
    source: async_nats::Error,
}

impl OutboxError {
    /// Returns a function that wraps errors of one attempt.
    fn of<'a, E: Into<async_nats::Error>>(
        attempt: &'static str,
        gateway: &'a Incarnation,
    ) -> impl Fn(E) -> Self + 'a {
        move |error| Self { attempt, gateway: gateway.clone(), source: error.into() }
    }
}

/// The queue of one gateway incarnation, open for reading.
pub struct Outbox {
    gateway: Incarnation,
    messages: PullStream,
    /// Time of the next restart, if the reader is broken.
    restart_at: Option<Instant>,
}

/// One delivery of one envelope.
#[derive(Debug)]
pub struct Delivery {
    /// Position in the queue: the same at every delivery.
    pub seq: u64,
    /// The encoded [`Envelope`].
    pub payload: Bytes,
    pub ack: AckHandle,
    pub trace_context: Option<TraceContext>,
}

impl Delivery {
    /// Returns `None` for a message that did not come from a consumer and so
    /// cannot be acknowledged.
    fn of(message: Message) -> Option<Self> {
        let ack = AckHandle(message.reply.clone()?);
        let seq = message.info().ok()?.stream_sequence;
        let trace_context = TraceContext::of(message.headers.as_ref());
        Some(Self { seq, ack, trace_context, payload: message.message.payload })
    }

    /// Decodes the envelope.
    ///
    /// # Errors
    ///
    /// Fails when the bytes are no [`Envelope`].
    pub fn envelope(&self) -> Result<Envelope, codec::DecodeError> {
        codec::decode(&self.payload)
    }
}

/// The size of a gateway's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Envelopes not delivered yet.
    pub waiting: u64,
    /// Envelopes delivered and not acknowledged.
    pub unacknowledged: u64,
}

/// The address that acknowledges one delivery of one envelope.
#[derive(Clone, Debug)]
pub struct AckHandle(Subject);

impl Bus {
    /// Creates the queue's consumer and opens the queue.
    ///
    /// A gateway does this before it is announced. An envelope would also wait
    /// in a queue without a consumer, but a gateway that cannot create its
    /// consumer must not be announced at all.
    ///
    /// # Errors
    ///
    /// Fails when NATS refuses or does not respond.
    pub async fn open_outbox(&self, gateway: &Incarnation) -> Result<Outbox, OutboxError> {
        let out = self.consume.get_stream_no_info(stream::OUT).await;
        let out = out.map_err(OutboxError::of("open", gateway))?;
        let consumer = out
            .create_consumer(pull::Config {
                durable_name: Some(consumer_name(gateway)),
                deliver_policy: DeliverPolicy::All,
                ack_policy: AckPolicy::Explicit,
                ack_wait: self.config().ack_wait,
                filter_subject: subject::outbox(gateway),
                max_ack_pending: ACK_PENDING_MAX,
                // Unlimited: an exhausted message would stay in the queue, unseen, for ever.
                max_deliver: -1,
                ..Default::default()
            })
            .await
            .map_err(OutboxError::of("open", gateway))?;
        let messages = PullStream::open(consumer).await;
        let messages = messages.map_err(OutboxError::of("open", gateway))?;
        Ok(Outbox { gateway: gateway.clone(), messages, restart_at: None })
    }

    /// Acknowledges a delivery. If the acknowledgement is lost, the envelope is
    /// delivered again.
    pub async fn ack(&self, ack: &AckHandle) {
        let client = self.consume.client();
        let sent = client.publish(ack.0.clone(), Bytes::from_static(b"+ACK"));
        if tokio::time::timeout(ACK_TIMEOUT, sent).await.is_err() {
            debug!("acknowledgement not sent, the envelope will come again");
        }
    }

    /// Returns the size of a gateway's queue.
    ///
    /// # Errors
    ///
    /// Fails when NATS does not respond.
    pub async fn backlog(&self, gateway: &Incarnation) -> Result<Backlog, OutboxError> {
        let out = self.out_stream("measure", gateway).await?;
        let info = out.consumer_info(&consumer_name(gateway)).await;
        let info = info.map_err(OutboxError::of("measure", gateway))?;
        let unacknowledged = u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX);
        Ok(Backlog { waiting: info.num_pending, unacknowledged })
    }

    /// Removes the consumer of an incarnation that has ended.
    pub async fn remove_outbox(&self, gateway: &Incarnation) {
        let Ok(out) = self.control.get_stream_no_info(stream::OUT).await else { return };
        if let Err(error) = out.delete_consumer(&consumer_name(gateway)).await {
            debug!(%gateway, error = %chain(&error), "consumer not removed");
        }
    }

    /// Returns the messages whose envelopes lie in a gateway's queue, delivered
    /// or not: `max` at most. The queue stays as it is.
    ///
    /// # Errors
    ///
    /// Fails when NATS does not respond.
    pub async fn queued_messages(
        &self,
        gateway: &Incarnation,
        max: usize,
    ) -> Result<HashSet<MsgId>, OutboxError> {
        let out = self.out_stream("look into", gateway).await?;
        let (subject, mut next) = (subject::outbox(gateway), 1);
        let mut found = HashSet::new();
        while found.len() < max {
            // A queue allows one consumer only, so this reads message by message.
            match out.direct_get_next_for_subject(subject.as_str(), Some(next)).await {
                Ok(message) => {
                    next = message.sequence + 1;
                    let envelope = codec::decode::<Envelope>(&message.payload).ok();
                    found.extend(envelope.and_then(|envelope| envelope.msg_id()));
                }
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => break,
                Err(error) => return Err(OutboxError::of("look into", gateway)(error)),
            }
        }
        Ok(found)
    }

    async fn out_stream(
        &self,
        attempt: &'static str,
        gateway: &Incarnation,
    ) -> Result<Stream<()>, OutboxError> {
        let out = self.control.get_stream_no_info(stream::OUT).await;
        out.map_err(OutboxError::of(attempt, gateway))
    }
}

impl Outbox {
    /// Returns the next delivery. It survives a lost and restored connection.
    ///
    /// Cancel-safe, because the caller also waits for other events: a pending
    /// request is kept in `self`, not in this future.
    ///
    /// # Errors
    ///
    /// Fails when the consumer is gone: another process has recovered the queue
    /// of this incarnation.
    pub async fn next(&mut self) -> Result<Delivery, OutboxError> {
        loop {
            if let Some(at) = self.restart_at {
                tokio::time::sleep_until(at).await;
                // Set first, in case this future is dropped.
                self.restart_at = Some(Instant::now() + RESTART_INTERVAL);
                if self.has_consumer().await? && self.messages.restart().await.is_ok() {
                    self.restart_at = None;
                }
                continue;
            }
            match self.messages.next().await {
                Ok(message) => {
                    if let Some(delivery) = Delivery::of(message) {
                        return Ok(delivery);
                    }
                }
                // A request to a server that no longer leads the consumer gets no
                // response. A second request costs little.
                Err(error) => {
                    debug!(gateway = %self.gateway, error = %chain(&*error), "queue reader interrupted");
                    self.restart_at = Some(Instant::now());
                }
            }
        }
    }

    /// Whether the consumer exists; `Ok(false)`: no response yet.
    async fn has_consumer(&self) -> Result<bool, OutboxError> {
        match self.messages.consumer().get_info().await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
                Err(OutboxError::of("read", &self.gateway)(error))
            }
            Err(error) => {
                warn!(gateway = %self.gateway, error = %chain(&error), "queue does not answer, trying again");
                Ok(false)
            }
        }
    }
}

/// A durable consumer may not have a dot in its name.
fn consumer_name(gateway: &Incarnation) -> String {
    format!("gw-{}-{}", gateway.id, gateway.epoch)
}
