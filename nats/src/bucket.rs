//! Buckets: key-value stores with compare-and-set, read from their leader.
//!
//! Values are written by raw publishes to `$KV.<bucket>.<key>`. The client's own
//! `create_with_ttl` drops the time to live when the key's last entry is an
//! expiry marker, and `update` always drops it: a lease written again after it
//! expired would never expire again (async-nats 0.51 `kv/mod.rs`, measured).

mod mirror;

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    Context, Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
    message::PublishMessage,
    stream::{RawMessageErrorKind, Stream},
};
use bytes::Bytes;
use tokio::sync::watch;
use tracing::debug;

use crate::{
    chain, connection::PUBLISH_TIMEOUT, publish_error, pull::PullStream, stream::BucketName,
};

pub use mirror::Mirror;

/// The value of a key, and the revision that a compare-and-set must name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEntry {
    /// Revision of the value, or of the marker that removed it. 0: never written.
    pub revision: u64,
    /// `None`: never written, deleted or expired.
    pub value: Option<Bytes>,
}

/// A failed access to a bucket.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// Another write came first. The caller reads again and decides again.
    #[error("key {key} of bucket {bucket} has changed meanwhile")]
    Conflict { bucket: &'static str, key: String },
    /// No response came, or there is no leader. A write may have happened.
    #[error("bucket {bucket} did not answer about {key}")]
    NoResponse { bucket: &'static str, key: String, source: async_nats::Error },
}

/// Pauses before a bucket is listed again. In a cluster the consumer may be
/// created on another server, and some servers learn of it only after the first
/// pull ("no responders"): within milliseconds, or within a busy second.
const LIST_BACKOFF: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1_000)];
/// The server removes the consumer of a listing after this time of inactivity.
const CONSUMER_INACTIVE_MAX: Duration = Duration::from_secs(30);

/// A bucket on one connection.
#[derive(Clone)]
pub struct Bucket {
    js: Context,
    name: &'static str,
    /// Lifetime of the marker of a removed key.
    marker_age: Option<Duration>,
    /// Changes when the connection was lost and is back. `None`: no mirror of
    /// this bucket is kept.
    reconnects: Option<watch::Receiver<u64>>,
}

impl Bucket {
    pub(crate) fn new(
        js: Context,
        name: BucketName,
        reconnects: Option<watch::Receiver<u64>>,
    ) -> Self {
        Self { js, name: name.as_str(), marker_age: name.marker_age(), reconnects }
    }

    /// Reads a key from the bucket's leader. A compare-and-set can build on it.
    ///
    /// # Errors
    ///
    /// [`BucketError::NoResponse`].
    pub async fn read(&self, key: &str) -> Result<KvEntry, BucketError> {
        let stream = self.stream(key).await?;
        match stream.get_last_raw_message_by_subject(&self.subject(key)).await {
            Ok(message) => {
                let value = (!is_marker(&message.headers)).then_some(message.payload);
                Ok(KvEntry { revision: message.sequence, value })
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                Ok(KvEntry { revision: 0, value: None })
            }
            Err(error) => Err(self.no_response(key, error)),
        }
    }

    /// Writes `value` if the key is still at `revision`, and returns the new revision.
    ///
    /// The key expires after `ttl`, in whole seconds; `None`: never. The bucket
    /// must be one whose keys may expire.
    ///
    /// # Errors
    ///
    /// [`BucketError::Conflict`] when the key is at another revision, else
    /// [`BucketError::NoResponse`].
    pub async fn set_if(
        &self,
        key: &str,
        revision: u64,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<u64, BucketError> {
        let message =
            PublishMessage::build().payload(value).expected_last_subject_sequence(revision);
        self.write(key, with_ttl(message, ttl)).await
    }

    /// Writes `value` at any revision, and returns the new revision.
    ///
    /// # Errors
    ///
    /// [`BucketError::NoResponse`].
    pub async fn set(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<u64, BucketError> {
        self.write(key, with_ttl(PublishMessage::build().payload(value), ttl)).await
    }

    /// Removes the key if it is still at `revision`.
    ///
    /// # Errors
    ///
    /// As [`Bucket::set_if`].
    pub async fn remove_if(&self, key: &str, revision: u64) -> Result<(), BucketError> {
        let message = PublishMessage::build()
            .header("KV-Operation", "PURGE")
            .header("Nats-Rollup", "sub")
            .expected_last_subject_sequence(revision);
        // Every listing reads the markers, so they must expire.
        self.write(key, with_ttl(message, self.marker_age)).await.map(drop)
    }

    /// Returns every existing key with its entry.
    ///
    /// # Errors
    ///
    /// [`BucketError::NoResponse`].
    pub async fn list(&self) -> Result<HashMap<String, KvEntry>, BucketError> {
        for pause in LIST_BACKOFF {
            match self.list_once().await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    debug!(bucket = self.name, error = %chain(&error), "bucket not listed, trying again");
                }
            }
            tokio::time::sleep(pause).await;
        }
        self.list_once().await
    }

    async fn list_once(&self) -> Result<HashMap<String, KvEntry>, BucketError> {
        let (mut messages, mut left) = self.follow().await?;
        let mut found = HashMap::new();
        while left > 0 {
            let message = tokio::time::timeout(PUBLISH_TIMEOUT, messages.next())
                .await
                .map_err(|elapsed| self.no_response(">", elapsed))?
                .map_err(|error| self.no_response(">", error))?;
            left = message.info().map_or(0, |info| info.pending);
            self.apply(&mut found, &message);
        }
        Ok(found)
    }

    /// Returns a stream of the last entry of every key and of every later
    /// change, and the number of the former.
    async fn follow(&self) -> Result<(PullStream, u64), BucketError> {
        let stream = self.stream(">").await?;
        let consumer = stream
            .create_consumer(pull::Config {
                deliver_policy: DeliverPolicy::LastPerSubject,
                ack_policy: AckPolicy::None,
                filter_subject: self.subject(">"),
                inactive_threshold: CONSUMER_INACTIVE_MAX,
                memory_storage: true,
                num_replicas: 1,
                ..Default::default()
            })
            .await
            .map_err(|error| self.no_response(">", error))?;
        let pending = consumer.cached_info().num_pending;
        let messages =
            PullStream::open(consumer).await.map_err(|error| self.no_response(">", error))?;
        Ok((messages, pending))
    }

    /// Applies one stored message to a copy of the bucket.
    fn apply(&self, entries: &mut HashMap<String, KvEntry>, message: &Message) {
        let prefix = format!("$KV.{}.", self.name);
        let Some(key) = message.subject.strip_prefix(prefix.as_str()) else { return };
        if message.headers.as_ref().is_some_and(is_marker) {
            entries.remove(key);
        } else {
            let revision = message.info().map_or(0, |info| info.stream_sequence);
            let value = Some(message.payload.clone());
            entries.insert(key.to_owned(), KvEntry { revision, value });
        }
    }

    async fn write(&self, key: &str, message: PublishMessage) -> Result<u64, BucketError> {
        let sent = self.js.send_publish(self.subject(key), message).await;
        match sent.map_err(|error| self.no_response(key, error))?.await {
            Ok(ack) => Ok(ack.sequence),
            Err(error) if publish_error::is_conflict(&error) => {
                Err(BucketError::Conflict { bucket: self.name, key: key.to_owned() })
            }
            Err(error) => Err(self.no_response(key, error)),
        }
    }

    async fn stream(&self, key: &str) -> Result<Stream<()>, BucketError> {
        self.js
            .get_stream_no_info(format!("KV_{}", self.name))
            .await
            .map_err(|error| self.no_response(key, error))
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    fn no_response(&self, key: &str, source: impl Into<async_nats::Error>) -> BucketError {
        BucketError::NoResponse { bucket: self.name, key: key.to_owned(), source: source.into() }
    }
}

fn with_ttl(message: PublishMessage, ttl: Option<Duration>) -> PublishMessage {
    match ttl {
        Some(ttl) => message.ttl(ttl), // whole seconds: the client cuts the rest off
        None => message,
    }
}

fn is_marker(headers: &async_nats::HeaderMap) -> bool {
    headers.get("KV-Operation").is_some_and(|op| matches!(op.as_str(), "DEL" | "PURGE"))
        || headers.get("Nats-Marker-Reason").is_some()
}
