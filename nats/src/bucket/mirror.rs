//! A copy of a small bucket in memory.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{Bucket, BucketError, KvEntry};
use crate::chain;

/// A mirror is read anew this often, whether it missed a change or not.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// Pause after a failure to follow a bucket.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A copy of a small bucket in memory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mirror {
    entries: Arc<RwLock<HashMap<String, KvEntry>>>,
    changed: Arc<watch::Sender<()>>,
}

impl Mirror {
    /// Returns the key's value.
    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.entries.read().get(key).and_then(|entry| entry.value.clone())
    }

    /// Whether it has no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.read().is_empty()
    }

    /// Returns every key with its entry.
    pub fn all(&self) -> Vec<(String, KvEntry)> {
        self.entries.read().iter().map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// Returns a receiver that changes with the copy.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn replace(&self, entries: HashMap<String, KvEntry>) {
        debug!(keys = entries.len(), "bucket read anew");
        *self.entries.write() = entries;
        self.changed.send_replace(());
    }
}

impl Bucket {
    /// Keeps a copy of the bucket in memory until `stop`.
    ///
    /// The copy is behind the bucket by a millisecond or two, and by as long as
    /// the bus is away. It is read anew every 30 s, so a missed change does not
    /// stay missed.
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
        let mirror = Mirror {
            entries: Arc::new(RwLock::new(first)),
            changed: watch::Sender::new(()).into(),
        };
        let (bucket, copy) = (self.clone(), mirror.clone());
        tasks.spawn(async move {
            // A stale mirror decides wrongly, so the process must end with this task.
            let _stop_process = stop.clone().drop_guard();
            stop.run_until_cancelled(bucket.keep(&copy)).await;
        });
        Ok(mirror)
    }

    async fn keep(&self, mirror: &Mirror) {
        loop {
            if let Err(error) = self.keep_once(mirror).await {
                warn!(bucket = self.name, error = %chain(&error), "bucket cannot be followed, trying again");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }

    /// Reads the whole bucket, then follows its changes until the next refresh.
    async fn keep_once(&self, mirror: &Mirror) -> Result<(), BucketError> {
        let mut reconnects = self.reconnects.clone();
        if let Some(reconnects) = &mut reconnects {
            reconnects.mark_unchanged();
        }
        let (mut messages, mut left) = self.follow().await?;
        let mut fresh = HashMap::new();
        if left == 0 {
            mirror.replace(HashMap::new());
        }
        let refresh = tokio::time::sleep(REFRESH_INTERVAL);
        tokio::pin!(refresh);
        loop {
            let message = tokio::select! {
                biased;
                // First: the followed consumer may have ended with the lost connection.
                () = reconnected(&mut reconnects) => return Ok(()),
                message = messages.next() => message,
                () = &mut refresh => return Ok(()),
            };
            let message = message.map_err(|error| self.no_response(">", error))?;
            if left > 0 {
                left = message.info().map_or(0, |info| info.pending);
                self.apply(&mut fresh, &message);
                if left == 0 {
                    mirror.replace(std::mem::take(&mut fresh));
                }
            } else {
                self.apply(&mut mirror.entries.write(), &message);
                mirror.changed.send_replace(());
            }
        }
    }
}

/// Waits until a lost connection is back; without a receiver, for ever.
async fn reconnected(reconnects: &mut Option<watch::Receiver<u64>>) {
    if let Some(reconnects) = reconnects
        && reconnects.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
