//! Buckets: key-value with compare-and-set, read from the leader.
//!
//! Written by raw publishes to `$KV.<bucket>.<key>`, because async-nats's own
//! `create_with_ttl` drops the time to live when the key's last entry is an
//! expiry marker, and `update` always drops it: a lease written again after it
//! expired would never expire again (async-nats 0.51 `kv/mod.rs`, measured).

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::jetstream::{
    Context, Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
    context::PublishErrorKind,
    message::PublishMessage,
    stream::{RawMessageErrorKind, Stream},
};
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    bus::{self, PUBLISH_TIMEOUT},
    chain,
    pull::Pulling,
    stream::BucketName,
};

/// What a key holds now, and the revision a compare-and-set must name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEntry {
    /// 0: never written. Otherwise that of the value, or of the marker where it was.
    pub revision: u64,
    /// `None`: never written, deleted or expired.
    pub value: Option<Bytes>,
}

/// Why a bucket did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// Somebody else wrote first. Read again, decide again.
    #[error("key {key} of bucket {bucket} has changed meanwhile")]
    Conflict {
        /// Which bucket.
        bucket: &'static str,
        /// Which key.
        key: String,
    },
    /// No answer, or no leader. The write may have happened.
    #[error("bucket {bucket} did not answer about {key}")]
    NoResponse {
        /// Which bucket.
        bucket: &'static str,
        /// Which key.
        key: String,
        /// NATS's words.
        source: async_nats::Error,
    },
}

/// One bucket.
#[derive(Clone)]
pub struct Bucket {
    js: Context,
    name: &'static str,
    /// How long the marker of a removed key stays.
    markers: Option<Duration>,
    /// Wakes when the bus was away; `None`: nobody follows this one.
    reconnects: Option<watch::Receiver<u64>>,
}

impl Bucket {
    pub(crate) fn new(
        js: Context,
        name: BucketName,
        reconnects: Option<watch::Receiver<u64>>,
    ) -> Self {
        Self { js, name: name.as_str(), markers: name.marker_age(), reconnects }
    }

    /// The key as its leader knows it: what a compare-and-set may build on.
    ///
    /// # Errors
    ///
    /// [`BucketError::NoResponse`] only.
    pub async fn read(&self, key: &str) -> Result<KvEntry, BucketError> {
        let stream = self.stream(key).await?;
        match stream.get_last_raw_message_by_subject(&self.subject(key)).await {
            Ok(message) => {
                let gone = is_marker(&message.headers);
                Ok(KvEntry {
                    revision: message.sequence,
                    value: (!gone).then_some(message.payload),
                })
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                Ok(KvEntry { revision: 0, value: None })
            }
            Err(error) => Err(self.silent(key, error)),
        }
    }

    /// Writes `value` if the key is still at `revision`. Returns the new revision.
    ///
    /// `ttl`: whole seconds after which the key expires; `None` never. The
    /// bucket must be one of those that may expire.
    ///
    /// # Errors
    ///
    /// [`BucketError::Conflict`] when it is at another revision, else [`BucketError::NoResponse`].
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

    /// Writes `value` whatever was there.
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
        // Markers are read with every listing, so they must end some time.
        self.write(key, with_ttl(message, self.markers)).await.map(drop)
    }

    /// Every living key with its value, as of now.
    ///
    /// # Errors
    ///
    /// [`BucketError::NoResponse`].
    pub async fn list(&self) -> Result<HashMap<String, KvEntry>, BucketError> {
        for pause in LIST_AGAIN {
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
        let (mut messages, mut left) = self.follow_raw().await?;
        let mut found = HashMap::new();
        while 0 < left {
            let message = tokio::time::timeout(PUBLISH_TIMEOUT, messages.next())
                .await
                .map_err(|elapsed| self.silent(">", elapsed))?
                .map_err(|error| self.silent(">", error))?;
            left = message.info().map_or(0, |info| info.pending);
            self.fold(&mut found, &message);
        }
        Ok(found)
    }

    /// Keeps a copy of the bucket in memory until `stop`.
    ///
    /// The copy trails the bucket by a millisecond or two, and by as long as
    /// the bus is away; it is read anew every 30 s, so nothing missed stays missed.
    ///
    /// # Errors
    ///
    /// [`BucketError::NoResponse`] when the first reading fails.
    pub async fn mirror(
        &self,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Mirror, BucketError> {
        let first = self.list().await?;
        let mirror =
            Mirror { slots: Arc::new(RwLock::new(first)), changed: watch::Sender::new(()).into() };
        let (bucket, copy) = (self.clone(), mirror.clone());
        tasks.spawn(async move {
            let _alarm = stop.clone().drop_guard(); // a mirror that dies takes the process with it
            stop.run_until_cancelled(bucket.keep(&copy)).await;
        });
        Ok(mirror)
    }

    async fn keep(&self, mirror: &Mirror) {
        loop {
            if let Err(error) = self.keep_once(mirror).await {
                warn!(bucket = self.name, error = %chain(&error), "bucket cannot be followed, trying again");
                tokio::time::sleep(MIRROR_RETRY).await;
            }
        }
    }

    /// Reads the bucket whole, then follows its changes until it is time to read it anew.
    async fn keep_once(&self, mirror: &Mirror) -> Result<(), BucketError> {
        let mut reconnects = self.reconnects.clone();
        if let Some(reconnects) = &mut reconnects {
            reconnects.mark_unchanged();
        }
        let (mut messages, mut left) = self.follow_raw().await?;
        let mut fresh = HashMap::new();
        if left == 0 {
            mirror.replace(HashMap::new());
        }
        let anew = tokio::time::sleep(MIRROR_ANEW);
        tokio::pin!(anew);
        loop {
            let message = tokio::select! {
                biased;
                // First: what we followed may have ended with the old connection.
                () = changed(&mut reconnects) => return Ok(()),
                message = messages.next() => message,
                () = &mut anew => return Ok(()),
            };
            let message = message.map_err(|error| self.silent(">", error))?;
            if 0 < left {
                left = message.info().map_or(0, |info| info.pending);
                self.fold(&mut fresh, &message);
                if left == 0 {
                    mirror.replace(std::mem::take(&mut fresh));
                }
            } else {
                self.fold(&mut mirror.slots.write(), &message);
                mirror.changed.send_replace(());
            }
        }
    }

    /// The last entry of every key, then every change; and how many entries there are at first.
    async fn follow_raw(&self) -> Result<(Pulling, u64), BucketError> {
        let stream = self.stream(">").await?;
        let consumer = stream
            .create_consumer(pull::Config {
                deliver_policy: DeliverPolicy::LastPerSubject,
                ack_policy: AckPolicy::None,
                filter_subject: self.subject(">"),
                inactive_threshold: Duration::from_secs(30),
                memory_storage: true,
                num_replicas: 1,
                ..Default::default()
            })
            .await
            .map_err(|error| self.silent(">", error))?;
        let pending = consumer.cached_info().num_pending;
        let messages = Pulling::from(consumer).await.map_err(|error| self.silent(">", error))?;
        Ok((messages, pending))
    }

    fn fold(&self, slots: &mut HashMap<String, KvEntry>, message: &Message) {
        let prefix = format!("$KV.{}.", self.name);
        let Some(key) = message.subject.strip_prefix(prefix.as_str()) else { return };
        let revision = message.info().map_or(0, |info| info.stream_sequence);
        let gone = message.headers.as_ref().is_some_and(is_marker);
        if gone {
            slots.remove(key);
        } else {
            let value = Some(message.payload.clone());
            slots.insert(key.to_owned(), KvEntry { revision, value });
        }
    }

    async fn write(&self, key: &str, message: PublishMessage) -> Result<u64, BucketError> {
        let sent = self
            .js
            .send_publish(self.subject(key), message)
            .await
            .map_err(|error| self.silent(key, error))?;
        match sent.await {
            Ok(ack) => Ok(ack.sequence),
            // The second is a cluster's word for it while another write is being agreed on.
            Err(error)
                if error.kind() == PublishErrorKind::WrongLastSequence
                    || bus::error_code(&error) == Some(bus::WRONG_LAST_SEQUENCE_CONSTANT) =>
            {
                Err(BucketError::Conflict { bucket: self.name, key: key.to_owned() })
            }
            Err(error) => Err(self.silent(key, error)),
        }
    }

    async fn stream(&self, key: &str) -> Result<Stream<()>, BucketError> {
        self.js
            .get_stream_no_info(format!("KV_{}", self.name))
            .await
            .map_err(|error| self.silent(key, error))
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
    }

    fn silent(&self, key: &str, source: impl Into<async_nats::Error>) -> BucketError {
        BucketError::NoResponse { bucket: self.name, key: key.to_owned(), source: source.into() }
    }
}

/// Pauses before a bucket is listed again. In a cluster the consumer may be on
/// another server, which not every one of them has heard of when the first
/// pull follows ("no responders"): a matter of milliseconds, or of a busy second.
const LIST_AGAIN: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1_000)];
/// How often a mirror is read anew, whatever it believes: the net under lost changes.
const MIRROR_ANEW: Duration = Duration::from_secs(30);
/// Between attempts to follow a bucket that does not answer.
const MIRROR_RETRY: Duration = Duration::from_millis(500);

/// A copy of a small bucket in memory.
#[derive(Clone, Debug)]
pub struct Mirror {
    slots: Arc<RwLock<HashMap<String, KvEntry>>>,
    changed: Arc<watch::Sender<()>>,
}

impl Mirror {
    /// The key's value.
    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.slots.read().get(key).and_then(|slot| slot.value.clone())
    }

    /// Whether it has no keys.
    pub fn is_empty(&self) -> bool {
        self.slots.read().is_empty()
    }

    /// Every key with its slot.
    pub fn all(&self) -> Vec<(String, KvEntry)> {
        self.slots.read().iter().map(|(key, slot)| (key.clone(), slot.clone())).collect()
    }

    /// Wakes whenever something changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn replace(&self, slots: HashMap<String, KvEntry>) {
        debug!(keys = slots.len(), "bucket read anew");
        *self.slots.write() = slots;
        self.changed.send_replace(());
    }
}

/// The bus was away and is back.
async fn changed(reconnects: &mut Option<watch::Receiver<u64>>) {
    if let Some(reconnects) = reconnects
        && reconnects.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
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
