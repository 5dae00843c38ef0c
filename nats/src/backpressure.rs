//! Backpressure: a partition whose fan-out is far behind accepts no messages
//! until it has caught up.
//!
//! Otherwise senders would receive receipts while deliveries fall minutes
//! behind. Joins and leaves are never refused.

use std::time::Duration;

use parking_lot::Mutex;
use qiyu_schema::id::Partition;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lag::LagReports;

/// Lag above which backpressure starts.
const START_ABOVE: Duration = Duration::from_secs(2);
/// Lag below which it ends.
const END_BELOW: Duration = Duration::from_millis(500);
/// Reports come every second while a partition is behind. Without a report for
/// this long its owner is gone, and the next owner reports anew.
const REPORT_AGE_MAX: Duration = Duration::from_secs(5);
const _: () = assert!(END_BELOW.as_millis() < START_ABOVE.as_millis());

/// The backpressure of every partition: the time of the report that started or
/// continued it.
#[derive(Debug)]
pub struct Backpressure(Vec<Mutex<Option<Instant>>>);

impl Default for Backpressure {
    /// Returns a value with no partition under backpressure.
    fn default() -> Self {
        Self(Partition::all().map(|_| Mutex::default()).collect())
    }
}

impl Backpressure {
    /// Records that a partition is `behind` by this much.
    pub fn report(&self, partition: Partition, behind: Duration) {
        let mut reported = self.0[partition.index()].lock();
        let active = behind > START_ABOVE || (reported.is_some() && behind >= END_BELOW);
        *reported = active.then(Instant::now);
    }

    /// Records every report until `stop`.
    pub async fn follow(&self, mut reports: LagReports, stop: CancellationToken) {
        while let Some(Some((partition, behind))) = stop.run_until_cancelled(reports.next()).await {
            self.report(partition, behind);
        }
    }

    /// Returns the number of partitions that accept no messages now.
    pub fn count_active(&self) -> usize {
        Partition::all().filter(|partition| self.is_active(*partition)).count()
    }

    /// Whether the partition accepts no messages now.
    pub fn is_active(&self, partition: Partition) -> bool {
        let reported = *self.0[partition.index()].lock();
        reported.is_some_and(|reported| reported.elapsed() < REPORT_AGE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_starts_above_two_seconds_and_ends_below_half_of_one() {
        let (backpressure, p) = (Backpressure::default(), "p07".parse().unwrap());
        for (behind_ms, active) in
            [(1900, false), (2100, true), (600, true), (400, false), (600, false)]
        {
            backpressure.report(p, Duration::from_millis(behind_ms));
            assert_eq!(backpressure.is_active(p), active, "{behind_ms}");
        }
        backpressure.report(p, Duration::from_secs(9));
        tokio::time::advance(REPORT_AGE_MAX).await;
        assert!(!backpressure.is_active(p), "its owner is gone");
    }
}
