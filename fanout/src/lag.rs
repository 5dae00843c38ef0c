//! The lag of an owner behind the end of the log.

use std::time::Duration;

use qiyu_nats::log::LogEntry;
use tokio::time::Instant;

/// One owner's lag.
///
/// The age of what is being read, by the server's clock and ours. Whenever
/// nothing waits behind an entry its age is no lag but the way it came and the
/// difference of the clocks, so that is what ages are measured against.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    /// An entry's age when we are not behind at all, ms.
    usual_ms: i64,
    behind_ms: i64,
    /// Since when the oldest envelope has been on its way.
    stuck_since: Option<Instant>,
}

impl Lag {
    /// An entry is read at `now_ms`.
    pub(crate) fn read(&mut self, entry: &LogEntry, now_ms: u64) {
        let age_ms = i64::try_from(now_ms).unwrap_or(i64::MAX)
            - i64::try_from(entry.written_ms).unwrap_or(i64::MAX);
        if entry.pending == 0 {
            self.usual_ms = age_ms;
        }
        self.behind_ms = age_ms - self.usual_ms;
    }

    /// Envelopes are on their way, or none is; `moved` if one has just arrived.
    pub(crate) fn under_way(&mut self, any: bool, moved: bool) {
        self.stuck_since = match (any, self.stuck_since) {
            (false, _) => None,
            (true, Some(since)) if !moved => Some(since),
            (true, _) => Some(Instant::now()),
        };
    }

    /// How far behind we are.
    pub(crate) fn behind(&self) -> Duration {
        let behind = Duration::from_millis(u64::try_from(self.behind_ms).unwrap_or(0));
        behind.max(self.stuck_since.map_or(Duration::ZERO, |since| since.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(written_ms: u64, pending: u64) -> LogEntry {
        let (seq, subject, payload) = (1, String::new(), Default::default());
        LogEntry { seq, subject, payload, pending, written_ms }
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_that_differ_are_no_lag_and_a_backlog_is() {
        let mut lag = Lag::default();
        lag.read(&entry(1_000, 0), 6_003); // our clock is five seconds ahead
        assert_eq!(lag.behind(), Duration::ZERO);
        lag.read(&entry(2_000, 900), 9_503);
        assert_eq!(lag.behind(), Duration::from_millis(2_500));
        lag.read(&entry(5_000, 0), 10_003);
        assert_eq!(lag.behind(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn envelopes_that_do_not_arrive_are_a_lag_too() {
        let mut lag = Lag::default();
        lag.under_way(true, false);
        tokio::time::advance(Duration::from_secs(3)).await;
        lag.under_way(true, false);
        assert_eq!(lag.behind(), Duration::from_secs(3));
        lag.under_way(true, true);
        assert_eq!(lag.behind(), Duration::ZERO);
    }
}
