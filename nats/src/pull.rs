//! A stream of messages that is pulled from a consumer.

use std::time::Duration;

use async_nats::jetstream::{
    Message,
    consumer::{
        Consumer,
        pull::{self, MessagesErrorKind},
    },
};
use futures_util::StreamExt;
use tokio::time::Instant;

/// Messages requested at once; when half of them have arrived, the client
/// requests as many again.
///
/// A pull request costs a round trip, so this is large. It is not larger,
/// because deliveries to all readers and receipts to all writers of a stream
/// leave by one queue (nats-server `server/stream.go`, `internalLoop`). A reader
/// that requests 10,000 puts them before the next receipt, and reads no faster
/// where the server is near (docs/DEBUGGING.md, "what it costs").
const BATCH: usize = 500;
/// Time the server may take for one request.
const REQUEST_EXPIRES: Duration = Duration::from_secs(10);
/// Heartbeat interval of an idle consumer. After twice this time without a
/// heartbeat the consumer is given up. In a cluster the server that held it in
/// memory may be gone, and a new consumer costs a round trip.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A new consumer may be unknown for this long. It is on one server, and the
/// other servers learn of it a little later than this client.
const UNKNOWN_MAX: Duration = Duration::from_secs(2);
/// Pause between requests while the consumer is unknown.
const UNKNOWN_RETRY_INTERVAL: Duration = Duration::from_millis(25);

/// The messages of one consumer, in order.
pub(crate) struct PullStream {
    // Boxed: futures that hold a reader would be large otherwise.
    consumer: Box<Consumer<pull::Config>>,
    messages: pull::Stream,
    /// First of a run of responses that the consumer is unknown.
    unknown_since: Option<Instant>,
    /// Time of the next request, while the consumer is unknown.
    retry_at: Option<Instant>,
}

impl PullStream {
    /// Starts with the next message of the consumer.
    pub(crate) async fn open(consumer: Consumer<pull::Config>) -> Result<Self, async_nats::Error> {
        let messages = request(&consumer).await?;
        let consumer = Box::new(consumer);
        Ok(Self { consumer, messages, unknown_since: None, retry_at: None })
    }

    /// Returns the consumer.
    pub(crate) fn consumer(&self) -> &Consumer<pull::Config> {
        &self.consumer
    }

    /// Sends a new request in place of the last one.
    pub(crate) async fn restart(&mut self) -> Result<(), async_nats::Error> {
        self.messages = request(&self.consumer).await?;
        self.retry_at = None;
        Ok(())
    }

    /// Returns the next message. After an error this stream is finished or must
    /// be restarted.
    ///
    /// Cancel-safe: a pending request is kept in `self`, not in this future.
    pub(crate) async fn next(&mut self) -> Result<Message, async_nats::Error> {
        loop {
            if let Some(at) = self.retry_at {
                tokio::time::sleep_until(at).await;
                self.restart().await?;
            }
            match self.messages.next().await {
                Some(Ok(message)) => {
                    self.unknown_since = None;
                    return Ok(message);
                }
                Some(Err(error)) if error.kind() == MessagesErrorKind::NoResponders => {
                    let now = Instant::now();
                    let since = *self.unknown_since.get_or_insert(now);
                    if now - since > UNKNOWN_MAX {
                        self.unknown_since = None;
                        return Err(error.into());
                    }
                    self.retry_at = Some(now + UNKNOWN_RETRY_INTERVAL);
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Err("the consumer is gone".into()),
            }
        }
    }
}

async fn request(consumer: &Consumer<pull::Config>) -> Result<pull::Stream, async_nats::Error> {
    let messages = consumer
        .stream()
        .max_messages_per_batch(BATCH)
        .expires(REQUEST_EXPIRES)
        .heartbeat(HEARTBEAT_INTERVAL)
        .messages()
        .await?;
    Ok(messages)
}
