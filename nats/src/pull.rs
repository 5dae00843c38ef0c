//! Pulling from a consumer.

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

/// Messages asked for at once; when half of them are here, as many again. Wide,
/// because a pull request costs a round trip. No wider, because what a stream
/// delivers to all its readers and what it confirms to its writers leaves by one
/// queue (nats-server `server/stream.go`, `internalLoop`): whoever asks for
/// 10,000 puts them before the next receipt, and reads no faster where the
/// server is near (docs/DEBUGGING.md, "what it costs").
const BATCH: usize = 500;
/// How long the server may answer one request.
const EXPIRES: Duration = Duration::from_secs(10);
/// How often a consumer that has nothing to say shows that it lives. After
/// twice as long without a word it is given up: of a cluster the very server
/// that had it in its memory may be gone, and a new one costs a round trip.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a new consumer may be unheard of. It listens at a server of its
/// own, and others learn of that a little later than we do.
const UNHEARD_MAX: Duration = Duration::from_secs(2);
/// Between requests while it is.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// What a consumer gives, one after the other.
pub(crate) struct Pulling {
    // In a box: futures that hold a reader would be large.
    consumer: Box<Consumer<pull::Config>>,
    messages: pull::Stream,
    /// Since when nobody has heard of the consumer.
    unheard_since: Option<Instant>,
    /// When to ask again.
    ask_at: Option<Instant>,
}

impl Pulling {
    /// Begins with the next message the consumer has.
    pub(crate) async fn from(consumer: Consumer<pull::Config>) -> Result<Self, async_nats::Error> {
        let messages = request(&consumer).await?;
        let consumer = Box::new(consumer);
        Ok(Self { consumer, messages, unheard_since: None, ask_at: None })
    }

    pub(crate) fn consumer(&self) -> &Consumer<pull::Config> {
        &self.consumer
    }

    /// Asks anew, whatever became of the last request.
    pub(crate) async fn restart(&mut self) -> Result<(), async_nats::Error> {
        self.messages = request(&self.consumer).await?;
        self.ask_at = None;
        Ok(())
    }

    /// The next message. After an error this one is finished, or has to be restarted.
    ///
    /// Cancel-safe: what is under way lives in `self`, not in this future.
    pub(crate) async fn next(&mut self) -> Result<Message, async_nats::Error> {
        loop {
            if let Some(at) = self.ask_at {
                tokio::time::sleep_until(at).await;
                self.restart().await?;
            }
            match self.messages.next().await {
                Some(Ok(message)) => {
                    self.unheard_since = None;
                    return Ok(message);
                }
                Some(Err(error)) if error.kind() == MessagesErrorKind::NoResponders => {
                    let now = Instant::now();
                    let since = *self.unheard_since.get_or_insert(now);
                    if UNHEARD_MAX < now - since {
                        self.unheard_since = None;
                        return Err(error.into());
                    }
                    self.ask_at = Some(now + ASK_AGAIN);
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
        .expires(EXPIRES)
        .heartbeat(HEARTBEAT)
        .messages()
        .await?;
    Ok(messages)
}
