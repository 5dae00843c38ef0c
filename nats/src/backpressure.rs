//! The brake: a partition whose fan-out is far behind takes no more messages
//! until it has caught up. Otherwise everybody would be told "stored" while
//! deliveries fall minutes behind. Joins and leaves are never held up.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use qiyu_schema::id::Partition;

/// From here on a partition takes nothing more.
const ON_AT: Duration = Duration::from_secs(2);
/// Until it is back below this.
const OFF_BELOW: Duration = Duration::from_millis(500);
/// Reports come every second while a partition is behind. Without one for this
/// long its owner is gone, and the next one reports anew.
const REPORT_AGE_MAX: Duration = Duration::from_secs(5);
const _: () = assert!(OFF_BELOW.as_millis() < ON_AT.as_millis());

/// One brake per partition.
#[derive(Debug)]
pub struct Backpressure(Vec<Mutex<Option<Instant>>>);

impl Default for Backpressure {
    /// None of them is on.
    fn default() -> Self {
        Self(Partition::all().map(|_| Mutex::default()).collect())
    }
}

impl Backpressure {
    /// A partition is this far behind.
    pub fn report(&self, partition: Partition, behind: Duration) {
        let mut on_since = self.0[partition.index()].lock();
        if ON_AT < behind || (on_since.is_some() && OFF_BELOW <= behind) {
            *on_since = Some(Instant::now());
        } else {
            *on_since = None;
        }
    }

    /// How many partitions take no messages at the moment.
    pub fn count_active(&self) -> usize {
        Partition::all().filter(|partition| self.is_active(*partition)).count()
    }

    /// Whether the partition takes no messages at the moment.
    pub fn is_active(&self, partition: Partition) -> bool {
        let reported = *self.0[partition.index()].lock();
        reported.is_some_and(|reported| reported.elapsed() < REPORT_AGE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn on_above_two_seconds_off_below_half_of_one() {
        let (backpressure, p) = (Backpressure::default(), "p07".parse().unwrap());
        for (behind_ms, on) in
            [(1900, false), (2100, true), (600, true), (400, false), (600, false)]
        {
            backpressure.report(p, Duration::from_millis(behind_ms));
            assert_eq!(backpressure.is_active(p), on, "{behind_ms}");
        }
        backpressure.report(p, Duration::from_secs(9));
        tokio::time::advance(REPORT_AGE_MAX).await;
        assert!(!backpressure.is_active(p), "its owner is gone");
    }
}
