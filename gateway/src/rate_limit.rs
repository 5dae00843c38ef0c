//! Rates: so many at once, so many a second, for each of those who share something.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use parking_lot::Mutex;
use qiyu_schema::{AppId, RoomId, UserId};
use tokio::time::Instant;

use crate::{
    config::Config,
    metrics::{Limit, Metrics},
};

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

impl Rate {
    /// `None`: as fast as it may be, because nothing a second is how the settings say so.
    fn limiting(per_second: f64, burst: u32) -> Option<Self> {
        (0.0 < per_second).then_some(Self { per_second, burst })
    }

    /// After which time an empty bucket is full.
    fn fills_after(self) -> Duration {
        let seconds = f64::from(self.burst) / self.per_second.max(0.001);
        Duration::from_secs_f64(seconds.min(3600.0))
    }
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

/// A rate for each address, user or room.
#[derive(Debug)]
struct Per<K> {
    /// `None`: no limit.
    rate: Option<Rate>,
    buckets: Mutex<HashMap<K, Bucket>>,
}

/// Buckets remembered at once, 5 MiB of them. Beyond it those that are full
/// again are forgotten, which changes nothing for them; if none is, all are: a
/// busy moment is no reason to refuse a newcomer.
const BUCKETS_MAX: usize = 100_000;

impl<K: Eq + Hash> Per<K> {
    fn new(rate: Option<Rate>) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Takes one token of `key`, if it has one.
    fn take(&self, key: K) -> bool {
        let Some(rate) = self.rate else { return true };
        let mut buckets = self.buckets.lock();
        if BUCKETS_MAX <= buckets.len() && !buckets.contains_key(&key) {
            let full_after = rate.fills_after();
            buckets.retain(|_, bucket| bucket.filled.elapsed() < full_after);
            if BUCKETS_MAX <= buckets.len() {
                buckets.clear();
            }
        }
        buckets.entry(key).or_insert_with(|| Bucket::full(rate)).take(rate)
    }
}

/// Everything that is shared out, for as long as the gateway runs. A refusal is
/// counted where it happens. Whoever meets several limits meets the narrowest
/// first, so who is too fast by themselves takes nothing from their neighbours.
pub(crate) struct Limits {
    connects_by_address: Per<IpAddr>,
    connects_by_user: Per<(AppId, UserId)>,
    sends_by_user: Per<(AppId, UserId)>,
    sends_by_address: Per<IpAddr>,
    sends_to_room: Per<(AppId, RoomId)>,
    metrics: Metrics,
}

impl Limits {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Self {
        let connects = Rate::limiting(config.connect_rate, config.connect_burst);
        Self {
            connects_by_address: Per::new(connects),
            connects_by_user: Per::new(connects),
            sends_by_user: Per::new(Rate::limiting(config.user_rate, config.user_burst)),
            sends_by_address: Per::new(Rate::limiting(config.address_rate, config.address_burst)),
            sends_to_room: Per::new(Rate::limiting(config.room_rate, config.room_burst)),
            metrics,
        }
    }

    /// Whether the address may try one login more.
    pub(crate) fn address_may_connect(&self, address: IpAddr) -> bool {
        self.counted(self.connects_by_address.take(neighbourhood(address)), Limit::ConnectAddress)
    }

    /// Whether the user, whose ticket is good, may connect once more.
    pub(crate) fn user_may_connect(&self, app: AppId, user: UserId) -> bool {
        self.counted(self.connects_by_user.take((app, user)), Limit::ConnectUser)
    }

    /// Whether a user at an address may send one frame more, whatever the connection.
    pub(crate) fn may_send(&self, app: AppId, user: UserId, address: IpAddr) -> bool {
        self.counted(self.sends_by_user.take((app, user)), Limit::SendUser)
            && self.counted(self.sends_by_address.take(neighbourhood(address)), Limit::SendAddress)
    }

    /// Whether a room may take one message more.
    pub(crate) fn may_send_to(&self, app: AppId, room: RoomId) -> bool {
        self.counted(self.sends_to_room.take((app, room)), Limit::SendRoom)
    }

    fn counted(&self, admitted: bool, limit: Limit) -> bool {
        if !admitted {
            self.metrics.too_fast(limit);
        }
        admitted
    }
}

/// One customer of an IPv6 provider has a whole /64, so that is what counts.
fn neighbourhood(address: IpAddr) -> IpAddr {
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

    #[tokio::test(start_paused = true)]
    async fn nobody_lives_off_their_neighbours() {
        let per = Per::new(Rate::limiting(1.0, 2));
        let taken = |key: u32| (0..10).filter(|_| per.take(key)).count();
        assert_eq!((taken(1), taken(2), taken(1)), (2, 2, 0));
        let unlimited = Per::new(Rate::limiting(0.0, 1));
        assert_eq!((0..1000).filter(|_| unlimited.take(())).count(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_a_crowd_keeps_nobody_out() {
        let per = Per::new(Rate::limiting(1.0, 1));
        for key in 0..=BUCKETS_MAX {
            assert!(per.take(key));
        }
        assert!(per.buckets.lock().len() <= BUCKETS_MAX);
    }

    #[test]
    fn one_customer_is_one_address() {
        let of = |address: &str| neighbourhood(address.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
