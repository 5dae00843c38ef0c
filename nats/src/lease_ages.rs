//! The ages of the leases that this process holds.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use crate::stream::BucketName;

/// A lease whose age can be read.
pub(crate) trait AgingLease: Send + Sync {
    /// Returns the time since the last successful renewal was sent; `None` if
    /// the lease is lost.
    fn age_unless_lost(&self) -> Option<Duration>;
}

type HeldLease = (BucketName, Weak<dyn AgingLease>);

/// The leases of this process.
///
/// Ages are computed when they are read. An age that the renewing task stored
/// would stand still together with that task.
#[derive(Clone, Default)]
pub(crate) struct LeaseAges(Arc<Mutex<Vec<HeldLease>>>);

impl fmt::Debug for LeaseAges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseAges").field(&self.0.lock().len()).finish()
    }
}

impl LeaseAges {
    /// Adds a lease, and removes those that were dropped.
    pub(crate) fn add(&self, bucket: BucketName, lease: Weak<dyn AgingLease>) {
        let mut leases = self.0.lock();
        leases.retain(|(_, lease)| lease.strong_count() > 0);
        leases.push((bucket, lease));
    }

    /// Returns the age of each kind of lease. It takes the youngest of a kind,
    /// because the lease of an ended incarnation ages on beside the next one's.
    pub(crate) fn ages(&self) -> BTreeMap<&'static str, Duration> {
        let mut ages = BTreeMap::new();
        for (bucket, lease) in self.0.lock().iter() {
            if let Some(age) = lease.upgrade().and_then(|lease| lease.age_unless_lost()) {
                let youngest = ages.entry(bucket.as_str()).or_insert(age);
                *youngest = age.min(*youngest);
            }
        }
        ages
    }
}
