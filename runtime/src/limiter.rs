//! Rate limits: token buckets by key, with a bounded number of keys.
//!
//! Nothing here reads a clock. The caller passes `now`, so a test needs no
//! paused runtime.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::Instant,
};

use parking_lot::Mutex;

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    /// The number of events that may happen at once after a quiet period.
    pub burst: u32,
}

impl Rate {
    /// Returns the rate, or `None` (no limit) when `per_second` is 0, which is
    /// how the settings switch a limit off.
    pub fn unless_zero(per_second: f64, burst: u32) -> Option<Self> {
        (per_second > 0.0).then_some(Self { per_second, burst })
    }
}

/// A bucket of tokens that refills with time. One event costs one token.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    tokens: f64,
    refilled_at: Instant,
}

impl TokenBucket {
    /// Returns a bucket that holds a whole burst.
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: f64::from(rate.burst), refilled_at: now }
    }

    /// Takes one token, and returns whether there was one.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.tokens = self.tokens_at(rate, now);
        // A caller that waited for a lock brings an earlier time.
        self.refilled_at = self.refilled_at.max(now);
        let admitted = self.tokens >= 1.0;
        if admitted {
            self.tokens -= 1.0;
        }
        admitted
    }

    fn tokens_at(&self, rate: Rate, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.refilled_at).as_secs_f64();
        (self.tokens + elapsed * rate.per_second).min(f64::from(rate.burst))
    }

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        self.tokens_at(rate, now) >= f64::from(rate.burst)
    }
}

/// One token bucket for each key, for example for each address or user.
///
/// At most `keys_max` keys are remembered. Beyond that, full buckets are
/// dropped, which changes nothing for their keys. If every bucket is in use,
/// all are dropped: a busy moment is no reason to refuse a new key.
#[derive(Debug)]
pub struct KeyedLimiter<K> {
    rate: Option<Rate>,
    keys_max: usize,
    buckets: Mutex<HashMap<K, TokenBucket>>,
}

impl<K: Eq + Hash> KeyedLimiter<K> {
    /// Creates a limiter. Without a rate it admits everything.
    pub fn new(rate: Option<Rate>, keys_max: usize) -> Self {
        Self { rate, keys_max, buckets: Mutex::default() }
    }

    /// Takes one token of `key`, and returns whether there was one.
    pub fn admits(&self, key: K, now: Instant) -> bool {
        let Some(rate) = self.rate else { return true };
        let mut buckets = self.buckets.lock();
        if buckets.len() >= self.keys_max && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| !bucket.is_full(rate, now));
            if buckets.len() >= self.keys_max {
                buckets.clear();
            }
        }
        buckets.entry(key).or_insert_with(|| TokenBucket::full(rate, now)).take(rate, now)
    }
}

/// Returns the part of an address that rates are counted by: an IPv4 address
/// as it is, and the /64 of an IPv6 address, because one customer of an IPv6
/// provider has a whole /64.
pub fn ip_prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_admits_a_burst_and_then_the_rate() {
        let limiter = KeyedLimiter::new(Rate::unless_zero(2.0, 3), 10);
        let start = Instant::now();
        let at = |ms| limiter.admits("key", start + Duration::from_millis(ms));
        assert_eq!([0; 4].map(at), [true, true, true, false]);
        assert_eq!([at(499), at(500), at(501)], [false, true, false]);
        // An hour without an event still gives only the burst.
        assert_eq!([3_600_000; 4].map(at), [true, true, true, false]);
    }

    #[test]
    fn an_earlier_time_credits_nothing_twice() {
        let rate = Rate { per_second: 1.0, burst: 1 };
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut bucket = TokenBucket::full(rate, start);
        assert!(bucket.take(rate, start) && bucket.take(rate, later));
        assert!(!bucket.take(rate, start));
        assert!(!bucket.take(rate, later), "the second from start to later is spent");
    }

    #[test]
    fn keys_do_not_share_tokens() {
        let (limiter, now) = (KeyedLimiter::new(Rate::unless_zero(1.0, 2), 10), Instant::now());
        let admitted = |key: u32| (0..10).filter(|_| limiter.admits(key, now)).count();
        assert_eq!((admitted(1), admitted(2), admitted(1)), (2, 2, 0));
    }

    #[test]
    fn a_rate_of_zero_is_no_limit() {
        let (limiter, now) = (KeyedLimiter::new(Rate::unless_zero(0.0, 1), 10), Instant::now());
        assert_eq!((0..1000).filter(|_| limiter.admits((), now)).count(), 1000);
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_a_new_key_is_admitted() {
        let (limiter, now) = (KeyedLimiter::new(Rate::unless_zero(1.0, 1), 100), Instant::now());
        for key in 0..=100 {
            assert!(limiter.admits(key, now), "{key}");
        }
        assert!(limiter.buckets.lock().len() <= 100);
    }

    #[test]
    fn a_full_limiter_forgets_only_full_buckets() {
        let limiter = KeyedLimiter::new(Rate::unless_zero(1.0, 1), 2);
        let (start, later) = (Instant::now(), Instant::now() + Duration::from_secs(5));
        assert!(limiter.admits("refilled by now", start));
        assert!(limiter.admits("empty", later));
        assert!(limiter.admits("new", later));
        assert!(!limiter.admits("empty", later), "its bucket was kept");
    }

    #[test]
    fn one_customer_is_one_prefix() {
        let prefix = |address: &str| ip_prefix(address.parse().unwrap());
        assert_eq!(prefix("2001:db8:0:1::1"), prefix("2001:db8:0:1:ffff::2"));
        assert_ne!(prefix("2001:db8:0:1::1"), prefix("2001:db8:0:2::1"));
        assert_eq!(prefix("::ffff:10.0.0.1"), prefix("10.0.0.1"));
        assert_ne!(prefix("10.0.0.1"), prefix("10.0.0.2"));
    }
}
