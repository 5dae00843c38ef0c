//! A gateway's queue: written by partition owners, read by one incarnation.
//!
//! The consumer is the retry clock: what is not acknowledged within `ack_wait`
//! is delivered again, and the gateway decides what a further delivery means.

use std::{collections::HashSet, time::Duration};

use async_nats::{
    Subject,
    jetstream::{
        consumer::{AckPolicy, DeliverPolicy, pull},
        context::PublishAckFuture,
        message::PublishMessage,
        stream::DirectGetErrorKind,
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::{
    bus::{self, Bus},
    chain,
    log::with_trace_context,
    pull::Pulling,
    stream,
    trace_context::TraceContext,
};
use qiyu_schema::{
    codec,
    envelope::Envelope,
    id::{Incarnation, MsgId},
    subject,
};

/// Envelopes a gateway may hold unacknowledged. At 16,000 pending the second
/// delivery came within 110 ms of its time; with the default of 1000 one room
/// of silent clients would cap the gateway at 250 envelopes a second.
const ACK_PENDING_MAX: i64 = 20_000;

/// A gateway's queue could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} the queue of gateway {gateway}")]
pub struct OutboxError {
    attempt: &'static str,
    gateway: Incarnation,
    source: async_nats::Error,
}

/// What one gateway incarnation reads.
pub struct Outbox {
    gateway: Incarnation,
    messages: Pulling,
    /// The reader is broken: when to try to open it anew.
    reopen_at: Option<Instant>,
}

/// One envelope, delivered for the `attempt`-th time.
#[derive(Debug)]
pub struct Delivery {
    /// Its place in the queue: the same at every delivery.
    pub seq: u64,
    /// The encoded [`Envelope`].
    pub payload: Bytes,
    /// 1 for the first time.
    pub attempt: u64,
    /// What acknowledges it.
    pub ack: AckHandle,
    /// The trail of its message, if it leaves one.
    pub trace_context: Option<TraceContext>,
}

impl Delivery {
    /// What it says.
    ///
    /// # Errors
    ///
    /// When the bytes are no [`Envelope`].
    pub fn envelope(&self) -> Result<Envelope, codec::DecodeError> {
        codec::decode(&self.payload)
    }
}

/// What lies in a gateway's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Envelopes not delivered to it yet.
    pub waiting: u64,
    /// Delivered and not acknowledged.
    pub unacknowledged: u64,
}

/// Acknowledges one delivery of one envelope.
#[derive(Clone, Debug)]
pub struct AckHandle(Subject);

impl Bus {
    /// Makes the queue's consumer. Before the gateway is announced: an envelope
    /// published to a queue that nobody can read yet would still wait, but a
    /// gateway that cannot make its consumer must not be announced at all.
    ///
    /// # Errors
    ///
    /// When NATS refuses or does not answer.
    pub async fn open_outbox(&self, gateway: &Incarnation) -> Result<Outbox, OutboxError> {
        let fail = |source: async_nats::Error| OutboxError {
            attempt: "open",
            gateway: gateway.clone(),
            source,
        };
        let out = self.consume.get_stream_no_info(stream::OUT).await;
        let out = out.map_err(|error| fail(error.into()))?;
        let name = consumer_name(gateway);
        let consumer = out
            .create_consumer(pull::Config {
                durable_name: Some(name),
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
            .map_err(|error| fail(error.into()))?;
        let messages = Pulling::from(consumer).await.map_err(fail)?;
        let gateway = gateway.clone();
        Ok(Outbox { gateway, messages, reopen_at: None })
    }

    /// Acknowledges a delivery. May be lost; the envelope then comes again.
    pub async fn ack(&self, ack: &AckHandle) {
        let client = self.consume.client();
        let sent = client.publish(ack.0.clone(), Bytes::from_static(b"+ACK"));
        // While disconnected the client's channel fills and publish would wait without end.
        if tokio::time::timeout(Duration::from_secs(1), sent).await.is_err() {
            debug!("acknowledgement not sent, the envelope will come again");
        }
    }

    /// How much lies in a gateway's queue.
    ///
    /// # Errors
    ///
    /// When NATS does not answer.
    pub async fn backlog(&self, gateway: &Incarnation) -> Result<Backlog, OutboxError> {
        let fail = |source: async_nats::Error| OutboxError {
            attempt: "measure",
            gateway: gateway.clone(),
            source,
        };
        let out = self.control.get_stream_no_info(stream::OUT).await;
        let out = out.map_err(|error| fail(error.into()))?;
        let info = out.consumer_info(&consumer_name(gateway)).await;
        let info = info.map_err(|error| fail(error.into()))?;
        let unacknowledged = u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX);
        Ok(Backlog { waiting: info.num_pending, unacknowledged })
    }

    /// Removes what an incarnation that has ended cleanly leaves behind.
    pub async fn remove_outbox(&self, gateway: &Incarnation) {
        let Ok(out) = self.control.get_stream_no_info(stream::OUT).await else { return };
        if let Err(error) = out.delete_consumer(&consumer_name(gateway)).await {
            debug!(%gateway, error = %chain(&error), "consumer not removed");
        }
    }

    /// Opens the queue of a gateway that is gone, to take what it left. Several
    /// may do so at once: they share the work.
    ///
    /// # Errors
    ///
    /// When NATS refuses or does not answer.
    pub async fn open_abandoned_outbox(
        &self,
        gateway: &Incarnation,
    ) -> Result<AbandonedOutbox, OutboxError> {
        let fail = |source: async_nats::Error| OutboxError {
            attempt: "take over",
            gateway: gateway.clone(),
            source,
        };
        self.remove_outbox(gateway).await; // a queue has one consumer
        let out = self.consume.get_stream_no_info(stream::OUT).await;
        let out = out.map_err(|error| fail(error.into()))?;
        let name = format!("take-{}-{}", gateway.id, gateway.epoch);
        let consumer = out
            .create_consumer(pull::Config {
                durable_name: Some(name.clone()),
                deliver_policy: DeliverPolicy::All,
                ack_policy: AckPolicy::Explicit,
                // Whoever dies over it leaves it to the next one soon.
                ack_wait: Duration::from_secs(5),
                filter_subject: subject::outbox(gateway),
                max_ack_pending: ACK_PENDING_MAX,
                max_deliver: -1,
                inactive_threshold: Duration::from_secs(600),
                ..Default::default()
            })
            .await
            .map_err(|error| fail(error.into()))?;
        Ok(AbandonedOutbox { gateway: gateway.clone(), name, consumer })
    }

    /// The messages whose envelopes lie in a gateway's queue, in no hands or in
    /// its own; `max` of them at most. Nothing is taken out.
    ///
    /// # Errors
    ///
    /// When NATS does not answer.
    pub async fn queued_messages(
        &self,
        gateway: &Incarnation,
        max: usize,
    ) -> Result<HashSet<MsgId>, OutboxError> {
        let fail = |source: async_nats::Error| OutboxError {
            attempt: "look into",
            gateway: gateway.clone(),
            source,
        };
        let out = self.control.get_stream_no_info(stream::OUT).await;
        let out = out.map_err(|error| fail(error.into()))?;
        let (subject, mut next) = (subject::outbox(gateway), 1);
        let mut found = HashSet::new();
        while found.len() < max {
            // A queue has one consumer, so it is read message by message.
            match out.direct_get_next_for_subject(subject.as_str(), Some(next)).await {
                Ok(message) => {
                    next = message.sequence + 1;
                    let envelope = codec::decode::<Envelope>(&message.payload).ok();
                    found.extend(envelope.and_then(|envelope| envelope.msg_id()));
                }
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => break,
                Err(error) => return Err(fail(error.into())),
            }
        }
        Ok(found)
    }

    /// Starts storing an envelope. The returned future is its PubAck.
    ///
    /// # Errors
    ///
    /// As [`Handover`].
    pub async fn enqueue(
        &self,
        gateway: &Incarnation,
        msg_id: MsgId,
        envelope: Bytes,
        suffix: &str,
        trace_context: Option<&TraceContext>,
    ) -> Result<EnqueueAck, EnqueueError> {
        let key = format!("{msg_id}:{gateway}{suffix}");
        let message = PublishMessage::build().payload(envelope).message_id(key);
        let message = with_trace_context(message, trace_context);
        match self.publish.send_publish(subject::outbox(gateway), message).await {
            Ok(ack) => Ok(EnqueueAck(ack)),
            Err(error) => Err(EnqueueError::from(error)),
        }
    }
}

/// What a gateway left behind.
pub struct AbandonedOutbox {
    gateway: Incarnation,
    name: String,
    consumer: async_nats::jetstream::consumer::Consumer<pull::Config>,
}

impl AbandonedOutbox {
    /// Some of what is left; empty when nothing is, not even in other hands.
    ///
    /// # Errors
    ///
    /// When NATS does not answer.
    pub async fn fetch_batch(&mut self) -> Result<Vec<Delivery>, OutboxError> {
        loop {
            let batch = self.consumer.fetch().max_messages(500).messages().await;
            let mut batch = batch.map_err(|error| self.fail(error.into()))?;
            let mut taken = Vec::new();
            while let Some(message) = batch.next().await {
                taken.extend(delivery(message.map_err(|error| self.fail(error))?));
            }
            if !taken.is_empty() {
                return Ok(taken);
            }
            let info = self.consumer.get_info().await.map_err(|error| self.fail(error.into()))?;
            if info.num_pending == 0 && info.num_ack_pending == 0 {
                return Ok(taken);
            }
            tokio::time::sleep(Duration::from_millis(200)).await; // in other hands still
        }
    }

    /// Nothing is left: the queue's consumer goes too.
    pub async fn close(self, bus: &Bus) {
        let Ok(out) = bus.control.get_stream_no_info(stream::OUT).await else { return };
        if let Err(error) = out.delete_consumer(&self.name).await {
            debug!(gateway = %self.gateway, error = %chain(&error), "consumer not removed, it ends by itself");
        }
    }

    fn fail(&self, source: async_nats::Error) -> OutboxError {
        OutboxError { attempt: "take over", gateway: self.gateway.clone(), source }
    }
}

/// `None`: not from a consumer, so nothing that could be acknowledged.
fn delivery(message: async_nats::jetstream::Message) -> Option<Delivery> {
    let ack = AckHandle(message.reply.clone()?);
    let info = message.info().ok()?;
    let attempt = u64::try_from(info.delivered).unwrap_or(1).max(1);
    let seq = info.stream_sequence;
    let trace_context = TraceContext::of(message.headers.as_ref());
    Some(Delivery { seq, attempt, ack, trace_context, payload: message.message.payload })
}

/// The PubAck of one envelope, to be waited for.
pub struct EnqueueAck(PublishAckFuture);

impl EnqueueAck {
    /// Waits for it.
    ///
    /// # Errors
    ///
    /// [`EnqueueError`].
    pub async fn stored(self) -> Result<(), EnqueueError> {
        self.0.await.map(drop).map_err(EnqueueError::from)
    }
}

/// Why an envelope was not stored.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The gateway is 20,000 envelopes behind; it is skipped and will read the log.
    #[error("the gateway's queue is full")]
    Full,
    /// It may work when tried again.
    #[error("the envelope was not confirmed")]
    Unconfirmed(#[source] async_nats::Error),
    /// It never will.
    #[error("the envelope was refused")]
    Refused(#[source] async_nats::Error),
}

impl From<async_nats::jetstream::context::PublishError> for EnqueueError {
    fn from(error: async_nats::jetstream::context::PublishError) -> Self {
        if bus::error_code(&error) == Some(bus::SUBJECT_FULL) {
            Self::Full
        } else if bus::is_transient(error.kind(), &error) {
            Self::Unconfirmed(error.into())
        } else {
            Self::Refused(error.into())
        }
    }
}

impl Outbox {
    /// The next delivery. Survives the bus going away and coming back.
    ///
    /// Cancel-safe, and it must be: whoever waits here also waits for other
    /// things, so what is under way lives in `self`, not in this future.
    ///
    /// # Errors
    ///
    /// When the consumer is gone: this incarnation's queue has been taken from it.
    pub async fn next(&mut self) -> Result<Delivery, OutboxError> {
        loop {
            if let Some(not_before) = self.reopen_at {
                tokio::time::sleep_until(not_before).await;
                self.reopen_at = Some(Instant::now() + REOPEN_EVERY); // should this be dropped
                if self.is_there().await? && self.messages.restart().await.is_ok() {
                    self.reopen_at = None;
                }
                continue;
            }
            match self.messages.next().await {
                Ok(message) => {
                    if let Some(delivery) = delivery(message) {
                        return Ok(delivery);
                    }
                }
                // What was asked of a server that does not lead the consumer any
                // more is never answered; a second question costs little.
                Err(error) => {
                    debug!(gateway = %self.gateway, error = %chain(&*error), "queue reader stumbles");
                    self.reopen_at = Some(Instant::now());
                }
            }
        }
    }

    /// `Ok(false)`: no answer yet.
    async fn is_there(&self) -> Result<bool, OutboxError> {
        match self.messages.consumer().get_info().await {
            Ok(_) => Ok(true),
            Err(error)
                if error.kind()
                    == async_nats::jetstream::context::ConsumerInfoErrorKind::NotFound =>
            {
                Err(OutboxError {
                    attempt: "read",
                    gateway: self.gateway.clone(),
                    source: error.into(),
                })
            }
            Err(error) => {
                warn!(gateway = %self.gateway, error = %chain(&error), "queue does not answer, trying again");
                Ok(false)
            }
        }
    }
}

/// Between attempts to open it anew.
const REOPEN_EVERY: Duration = Duration::from_millis(500);

/// A durable may not have a dot in its name.
fn consumer_name(gateway: &Incarnation) -> String {
    format!("gw-{}-{}", gateway.id, gateway.epoch)
}
