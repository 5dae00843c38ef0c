//! Leases: keys that exist only as long as their holder renews them.
//!
//! Each lease has a NATS connection of its own, because renewals must not wait
//! behind bulk traffic. The holder's own clock limits how long it may act,
//! counted from the *sending* of the last successful renewal. It therefore stops
//! before others see the lease end.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    bucket::{Bucket, BucketError},
    bus::Bus,
    chain,
    connection::ConnectError,
    lease_ages::AgingLease,
    stream::BucketName,
};

/// The intervals of a lease.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTerms {
    /// The lease ends this long after its last renewal. Whole seconds.
    pub ttl: Duration,
    pub renew_every: Duration,
    /// Interval of attempts while renewals fail.
    pub retry_every: Duration,
}

/// The time at which a changed value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// With the next due renewal.
    WhenDue,
    AtOnce,
}

/// The lease that [`Lease::take`] takes.
#[derive(Clone, Debug)]
pub struct LeaseRequest<'a> {
    pub bucket: BucketName,
    pub key: &'a str,
    /// Revision of the key that is overwritten; 0: none.
    pub revision: u64,
    pub value: Bytes,
    pub terms: LeaseTerms,
}

/// A lease that could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("connect for the lease {key}")]
    Connect { key: String, source: ConnectError },
    #[error("take the lease {key}")]
    Take { key: String, source: BucketError },
}

/// A lease this process holds. When the last clone is dropped, the lease is no
/// longer renewed and expires.
#[derive(Clone)]
pub struct Lease(Arc<LeaseInner>);

struct LeaseInner {
    bucket: Bucket,
    key: String,
    terms: LeaseTerms,
    state: Mutex<LeaseState>,
    value_changed: Notify,
    lost: CancellationToken,
}

struct LeaseState {
    value: Bytes,
    /// Every value written since the last confirmed renewal, including that
    /// one's. A key with one of them is ours, even if a response was lost. Each
    /// failure adds at most one, and a lease ends before there are many.
    written: Vec<Bytes>,
    revision: u64,
    /// Sending of the last successful renewal.
    renewed: Instant,
    /// Start of the present run of successful renewals.
    stable_since: Instant,
}

impl AgingLease for LeaseInner {
    fn age_unless_lost(&self) -> Option<Duration> {
        (!self.lost.is_cancelled()).then(|| self.state.lock().renewed.elapsed())
    }
}

impl Lease {
    /// Takes the lease, and renews it until `stop`.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Take`] with [`BucketError::Conflict`] when another process
    /// was faster.
    pub async fn take(
        bus: &Bus,
        request: LeaseRequest<'_>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, LeaseError> {
        let LeaseRequest { bucket: name, key, revision, value, terms } = request;
        let js = bus
            .connect_lease()
            .await
            .map_err(|source| LeaseError::Connect { key: key.into(), source })?;
        let bucket = Bucket::new(js, name, None);
        let sent = Instant::now();
        let revision = bucket
            .set_if(key, revision, value.clone(), Some(terms.ttl))
            .await
            .map_err(|source| LeaseError::Take { key: key.into(), source })?;
        let written = vec![value.clone()];
        let state = LeaseState { value, written, revision, renewed: sent, stable_since: sent };
        let inner = Arc::new(LeaseInner {
            bucket,
            key: key.into(),
            terms,
            state: Mutex::new(state),
            value_changed: Notify::new(),
            lost: CancellationToken::new(),
        });
        let weak = Arc::downgrade(&inner);
        bus.metrics.lease_ages.add(name, weak);
        let lease = Self(inner);
        let keeper = lease.clone();
        tasks.spawn(async move {
            // Without renewals the process must end.
            let _stop_process = stop.clone().drop_guard();
            stop.run_until_cancelled(keeper.keep()).await;
        });
        Ok(lease)
    }

    /// Returns the time since the last successful renewal was sent.
    pub fn age(&self) -> Duration {
        self.0.state.lock().renewed.elapsed()
    }

    /// Returns for how long every renewal has succeeded.
    pub fn stable_for(&self) -> Duration {
        self.0.state.lock().stable_since.elapsed()
    }

    /// Returns a token that is cancelled when another process has written the
    /// key. The holder is then declared dead or superseded, and must not act.
    pub fn lost(&self) -> &CancellationToken {
        &self.0.lost
    }

    /// Sets the value of the lease from its next renewal on.
    pub fn set_value(&self, value: Bytes, when: Renewal) {
        self.0.state.lock().value = value;
        if when == Renewal::AtOnce {
            self.0.value_changed.notify_one();
        }
    }

    /// Ends the lease now, so that no process has to wait for its expiry.
    pub async fn release(&self) {
        self.0.lost.cancel(); // ends the renewals
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
                Err(BucketError::Conflict { .. }) if self.is_superseded().await => {
                    warn!(lease = %self.0.key, "lease lost: somebody else has written it");
                    self.0.lost.cancel();
                    continue;
                }
                Err(error) => {
                    warn!(lease = %self.0.key, error = %chain(&error), age = ?self.age(), "lease not renewed");
                    self.0.state.lock().stable_since = Instant::now();
                    terms.retry_every
                }
            };
        }
    }

    async fn renew(&self) -> Result<(), BucketError> {
        let (value, revision) = {
            let mut state = self.0.state.lock();
            let value = state.value.clone();
            if !state.written.contains(&value) {
                state.written.push(value.clone());
            }
            (value, state.revision)
        };
        let sent = Instant::now();
        let written =
            self.0.bucket.set_if(&self.0.key, revision, value.clone(), Some(self.0.terms.ttl));
        // A renewal that takes longer is worth less than a second attempt.
        let limit = self.0.terms.retry_every.max(Duration::from_secs(1));
        let revision = match tokio::time::timeout(limit, written).await {
            Ok(result) => result?,
            Err(elapsed) => {
                let (bucket, key) = ("lease", self.0.key.clone());
                return Err(BucketError::NoResponse { bucket, key, source: elapsed.into() });
            }
        };
        let mut state = self.0.state.lock();
        state.revision = revision;
        state.renewed = sent;
        state.written = vec![value];
        Ok(())
    }

    /// Whether another process wrote the key, after a refused renewal.
    ///
    /// A value of our own means that the response to a renewal was lost. That
    /// value, or an expiry marker, is the base of the next renewal.
    async fn is_superseded(&self) -> bool {
        let Ok(entry) = self.0.bucket.read(&self.0.key).await else { return false };
        let mut state = self.0.state.lock();
        match &entry.value {
            // A revision below a confirmed one comes from a deposed leader or a log
            // that lost its tail. No other process wrote it.
            Some(value) if entry.revision >= state.revision && !state.written.contains(value) => {
                true
            }
            _ => {
                info!(lease = %self.0.key, revision = entry.revision, "lease found again");
                state.revision = entry.revision;
                false
            }
        }
    }
}
