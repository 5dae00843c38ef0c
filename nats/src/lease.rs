//! Leases: a key that lives only as long as its holder keeps renewing it.
//!
//! On a NATS connection of its own, because renewals must not wait behind
//! bulk traffic. The holder's own clock decides how long it may act: counted
//! from the *sending* of the last renewal that succeeded, so it always stops
//! before others see the lease end.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    bucket::{Bucket, BucketError},
    bus::{Bus, ConnectError},
    chain,
    stream::BucketName,
};

/// How a lease is kept.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTerms {
    /// Unrenewed for this long, it is over. Whole seconds.
    pub ttl: Duration,
    /// Renewed this often.
    pub renew_every: Duration,
    /// And this often while renewing fails.
    pub retry_every: Duration,
}

/// When a changed value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// With the next renewal that is due anyway.
    WhenDue,
    /// Now.
    AtOnce,
}

/// Which lease to take.
#[derive(Clone, Debug)]
pub struct LeaseRequest<'a> {
    /// In which bucket.
    pub bucket: BucketName,
    /// Under which key.
    pub key: &'a str,
    /// Over what is there at this revision; 0: nothing.
    pub revision: u64,
    /// What it says at first.
    pub value: Bytes,
    /// How it is kept.
    pub terms: LeaseTerms,
}

/// A lease that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No connection.
    #[error("connect for the lease {key}")]
    Connect {
        /// Which lease.
        key: String,
        /// Why.
        source: ConnectError,
    },
    /// The bucket did not take it.
    #[error("take the lease {key}")]
    Take {
        /// Which lease.
        key: String,
        /// Why.
        source: BucketError,
    },
}

/// A lease this process holds. Dropping it stops renewing; it then ends by itself.
#[derive(Clone)]
pub struct Lease(Arc<Shared>);

pub(crate) struct Shared {
    bucket: Bucket,
    key: String,
    terms: LeaseTerms,
    state: Mutex<State>,
    value_changed: Notify,
    lost: CancellationToken,
}

struct State {
    value: Bytes,
    /// Every value written since the last confirmed renewal, that one's too:
    /// how we know the key is ours when an answer was lost. Each failure adds
    /// one at most, and a lease is over before there are many.
    ours: Vec<Bytes>,
    revision: u64,
    renewed: Instant,
    renewing_since: Instant,
}

impl Shared {
    /// How long ago the last renewal that succeeded was sent; `None` for a
    /// lease nobody acts under any more.
    pub(crate) fn age_unless_lost(&self) -> Option<Duration> {
        (!self.lost.is_cancelled()).then(|| self.state.lock().renewed.elapsed())
    }
}

impl Lease {
    /// Takes the lease, and keeps it until `stop`.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Take`] with [`BucketError::Conflict`] when somebody else was faster.
    pub async fn take(
        bus: &Bus,
        wanted: LeaseRequest<'_>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, LeaseError> {
        let LeaseRequest { bucket: name, key, revision, value, terms } = wanted;
        let js = bus
            .dedicated()
            .await
            .map_err(|source| LeaseError::Connect { key: key.into(), source })?;
        let bucket = Bucket::new(js, name, None);
        let sent = Instant::now();
        let revision = bucket
            .set_if(key, revision, value.clone(), Some(terms.ttl))
            .await
            .map_err(|source| LeaseError::Take { key: key.into(), source })?;
        let state = State {
            ours: vec![value.clone()],
            value,
            revision,
            renewed: sent,
            renewing_since: sent,
        };
        let lease = Self(Arc::new(Shared {
            bucket,
            key: key.into(),
            terms,
            state: Mutex::new(state),
            value_changed: Notify::new(),
            lost: CancellationToken::new(),
        }));
        let keeper = lease.clone();
        bus.metrics.leases.add(name, &lease.0);
        tasks.spawn(async move {
            let _alarm = stop.clone().drop_guard(); // nobody renews any more: the process must end
            stop.run_until_cancelled(keeper.keep()).await;
        });
        Ok(lease)
    }

    /// How long ago the last renewal that succeeded was sent.
    pub fn age(&self) -> Duration {
        self.0.state.lock().renewed.elapsed()
    }

    /// Since when every renewal has succeeded.
    pub fn stable_for(&self) -> Duration {
        self.0.state.lock().renewing_since.elapsed()
    }

    /// Cancelled when somebody else has written the key: the holder is
    /// declared dead or superseded, and nothing it does counts any more.
    pub fn lost(&self) -> &CancellationToken {
        &self.0.lost
    }

    /// What the lease says from its next renewal on.
    pub fn set_value(&self, value: Bytes, when: Renewal) {
        self.0.state.lock().value = value;
        if when == Renewal::AtOnce {
            self.0.value_changed.notify_one();
        }
    }

    /// Ends the lease now, so that nobody needs to wait for it.
    pub async fn release(&self) {
        self.0.lost.cancel(); // ends the keeper
        let revision = self.0.state.lock().revision;
        if let Err(error) = self.0.bucket.remove_if(&self.0.key, revision).await {
            warn!(lease = %self.0.key, error = %chain(&error), "lease not released, it will expire");
        }
    }

    async fn keep(&self) {
        let terms = self.0.terms;
        let mut pause = terms.renew_every;
        loop {
            tokio::select! {
                biased;
                () = self.0.lost.cancelled() => return std::future::pending().await,
                () = self.0.value_changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = match self.renew().await {
                Ok(()) => terms.renew_every,
                Err(BucketError::Conflict { .. }) if self.superseded().await => {
                    warn!(lease = %self.0.key, "lease lost: somebody else has written it");
                    self.0.lost.cancel();
                    continue;
                }
                Err(error) => {
                    warn!(lease = %self.0.key, error = %chain(&error), age = ?self.age(), "lease not renewed");
                    self.0.state.lock().renewing_since = Instant::now();
                    terms.retry_every
                }
            };
        }
    }

    async fn renew(&self) -> Result<(), BucketError> {
        let (value, revision) = {
            let mut state = self.0.state.lock();
            let value = state.value.clone();
            if !state.ours.contains(&value) {
                state.ours.push(value.clone());
            }
            (value, state.revision)
        };
        let sent = Instant::now();
        let written =
            self.0.bucket.set_if(&self.0.key, revision, value.clone(), Some(self.0.terms.ttl));
        // A renewal that takes longer than this is worth less than a second attempt.
        let patience = self.0.terms.retry_every.max(Duration::from_secs(1));
        let revision = match tokio::time::timeout(patience, written).await {
            Ok(result) => result?,
            Err(elapsed) => {
                let (bucket, key) = ("lease", self.0.key.clone());
                return Err(BucketError::NoResponse { bucket, key, source: elapsed.into() });
            }
        };
        let mut state = self.0.state.lock();
        state.revision = revision;
        state.renewed = sent;
        state.ours = vec![value];
        Ok(())
    }

    /// After a refused renewal: is the key somebody else's? A value of our own
    /// (a renewal whose answer was lost) and an expiry marker are built upon.
    async fn superseded(&self) -> bool {
        let Ok(slot) = self.0.bucket.read(&self.0.key).await else { return false };
        let mut state = self.0.state.lock();
        match &slot.value {
            // Older than what we know was written: a leader that was deposed, or a log
            // that lost its tail. Nobody else's in any case.
            Some(value) if state.revision <= slot.revision && !state.ours.contains(value) => true,
            _ => {
                info!(lease = %self.0.key, revision = slot.revision, "lease found again");
                state.revision = slot.revision;
                false
            }
        }
    }
}
