//! Rates: so many at once, so many a second.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Tokens that fill up again with time.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// How fast, and how many at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) burst: u32,
}

impl Bucket {
    /// A full one.
    pub(crate) fn full(rate: Rate) -> Self {
        Self { tokens: f64::from(rate.burst), filled: Instant::now() }
    }

    /// Takes one token, if there is one.
    pub(crate) fn take(&mut self, rate: Rate) -> bool {
        let now = Instant::now();
        let gained = now.duration_since(self.filled).as_secs_f64() * rate.per_second;
        self.tokens = (self.tokens + gained).min(f64::from(rate.burst));
        self.filled = now;
        let there = 1.0 <= self.tokens;
        if there {
            self.tokens -= 1.0;
        }
        there
    }
}

/// A rate for each address.
#[derive(Debug)]
pub(crate) struct PerAddress {
    rate: Rate,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

/// Addresses remembered at once. Beyond it those that have been quiet for long
/// enough to be full again are forgotten, which changes nothing for them.
const ADDRESSES_MAX: usize = 100_000;

impl PerAddress {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::new(HashMap::new()) }
    }

    /// Takes one token of `address`, if it has one.
    pub(crate) fn take(&self, address: IpAddr) -> bool {
        let mut buckets = self.buckets.lock();
        if ADDRESSES_MAX <= buckets.len() {
            let full_after = f64::from(self.rate.burst) / self.rate.per_second.max(0.001);
            let full_after = Duration::from_secs_f64(full_after.min(3600.0));
            buckets.retain(|_, bucket| bucket.filled.elapsed() < full_after);
            if ADDRESSES_MAX <= buckets.len() {
                return false; // more addresses at once than any honest crowd has
            }
        }
        buckets.entry(address).or_insert_with(|| Bucket::full(self.rate)).take(self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate() {
        let rate = Rate { per_second: 2.0, burst: 3 };
        let mut bucket = Bucket::full(rate);
        let taken = |bucket: &mut Bucket| (0..10).filter(|_| bucket.take(rate)).count();
        assert_eq!(taken(&mut bucket), 3);
        tokio::time::advance(Duration::from_millis(1100)).await;
        assert_eq!(taken(&mut bucket), 2);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(taken(&mut bucket), 3);
    }
}
