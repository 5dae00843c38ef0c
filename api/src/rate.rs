//! How often one address, and one user, may ask.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::Instant,
};

use parking_lot::Mutex;

/// Addresses or users remembered at once: about 4 MiB. When they are this many, those
/// who have been quiet are forgotten, and if nobody has, everybody is: a busy
/// moment is no reason to refuse a newcomer.
const BUCKETS_MAX: usize = 65_536;

/// A bucket of tokens for each address, or each user.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Copy + Eq + Hash> Rates<K> {
    /// `burst` at once, then `per_second`.
    pub(crate) fn new(per_second: f64, burst: u32) -> Self {
        Self { per_second, burst: f64::from(burst), buckets: Mutex::default() }
    }

    /// Whether whoever has `key` may ask once more at `now`.
    pub(crate) fn admits(&self, key: K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if BUCKETS_MAX <= buckets.len() && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| self.filled(*bucket, now).tokens < self.burst);
            if BUCKETS_MAX <= buckets.len() {
                buckets.clear();
            }
        }
        let full = Bucket { tokens: self.burst, at: now };
        let bucket = buckets.entry(key).or_insert(full);
        *bucket = self.filled(*bucket, now);
        let admitted = 1.0 <= bucket.tokens;
        if admitted {
            bucket.tokens -= 1.0;
        }
        admitted
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> Bucket {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        Bucket { tokens: (bucket.tokens + passed * self.per_second).min(self.burst), at: now }
    }
}

/// What counts as one address: a customer of an IPv6 provider has a whole /64.
pub(crate) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;

    fn home() -> IpAddr {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (rates, start) = (Rates::new(2.0, 3), Instant::now());
        let at = |ms| rates.admits(home(), start + Duration::from_millis(ms));
        assert_eq!([at(0), at(0), at(0), at(0)], [true, true, true, false]);
        assert_eq!([at(499), at(500), at(501)], [false, true, false]);
        // Quiet for an hour still gives only the burst.
        assert_eq!([3_600_000; 4].map(at), [true, true, true, false]);
    }

    #[test]
    fn neighbours_do_not_share_unless_they_are_one() {
        let (rates, now) = (Rates::new(1.0, 1), Instant::now());
        let admits = |address: &str| rates.admits(neighbourhood(address.parse().unwrap()), now);
        assert!(admits("10.0.0.1") && admits("10.0.0.2"));
        assert!(!admits("::ffff:10.0.0.1"), "the same machine in another spelling");
        assert!(admits("2001:db8:0:1::1"));
        assert!(!admits("2001:db8:0:1::2"), "the same customer");
        assert!(admits("2001:db8:0:2::1"));
    }

    #[test]
    fn memory_is_bounded() {
        let (rates, now) = (Rates::new(1.0, 1), Instant::now());
        for number in 0..=u32::try_from(BUCKETS_MAX).unwrap() {
            assert!(rates.admits(IpAddr::V4(Ipv4Addr::from_bits(number)), now));
        }
        assert!(rates.buckets.lock().len() <= BUCKETS_MAX);
    }
}
