//! The rate limits of a gateway: which keys are counted at which rate.
//!
//! A refusal is counted where it happens. Where several limits apply, the
//! narrowest comes first: a user above the own rate takes no tokens
//! that others share.

use std::{net::IpAddr, time::Instant};

use qiyu_runtime::limiter::{KeyedLimiter, Rate, TokenBucket, ip_prefix};
use qiyu_schema::{AppId, RoomId, UserId};

use crate::{
    config::Config,
    metrics::{Limit, Metrics},
};

/// Keys that each limiter remembers: about 5 MiB.
const KEYS_MAX: usize = 100_000;

/// The limits that connections share, for as long as the gateway runs.
pub(crate) struct RateLimits {
    connects_by_address: KeyedLimiter<IpAddr>,
    connects_by_user: KeyedLimiter<(AppId, UserId)>,
    sends_by_user: KeyedLimiter<(AppId, UserId)>,
    sends_by_address: KeyedLimiter<IpAddr>,
    sends_by_room: KeyedLimiter<(AppId, RoomId)>,
    /// The rate of each connection, which has a bucket of its own.
    connection_rate: Rate,
    metrics: Metrics,
}

impl RateLimits {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Self {
        let connects = Rate::unless_zero(config.connect_rate, config.connect_burst);
        let users = Rate::unless_zero(config.user_rate, config.user_burst);
        let addresses = Rate::unless_zero(config.address_rate, config.address_burst);
        let rooms = Rate::unless_zero(config.room_rate, config.room_burst);
        Self {
            connects_by_address: KeyedLimiter::new(connects, KEYS_MAX),
            connects_by_user: KeyedLimiter::new(connects, KEYS_MAX),
            sends_by_user: KeyedLimiter::new(users, KEYS_MAX),
            sends_by_address: KeyedLimiter::new(addresses, KEYS_MAX),
            sends_by_room: KeyedLimiter::new(rooms, KEYS_MAX),
            connection_rate: Rate { per_second: config.send_rate, burst: config.send_burst },
            metrics,
        }
    }

    /// Returns the full bucket of a new connection.
    pub(crate) fn connection_bucket(&self) -> TokenBucket {
        TokenBucket::full(self.connection_rate, Instant::now())
    }

    /// Returns whether the address may try another login.
    pub(crate) fn admits_login_from(&self, address: IpAddr) -> bool {
        let admitted = self.connects_by_address.admits(ip_prefix(address), Instant::now());
        self.count(admitted, Limit::ConnectAddress)
    }

    /// Returns whether a user with a valid ticket may connect again.
    pub(crate) fn admits_login_of(&self, app: AppId, user: UserId) -> bool {
        let admitted = self.connects_by_user.admits((app, user), Instant::now());
        self.count(admitted, Limit::ConnectUser)
    }

    /// Returns whether a business frame is within the rates of its connection,
    /// its user and its address.
    pub(crate) fn admits_frame(
        &self,
        connection: &mut TokenBucket,
        (app, user): (AppId, UserId),
        address: IpAddr,
    ) -> bool {
        let now = Instant::now();
        self.count(connection.take(self.connection_rate, now), Limit::SendConnection)
            && self.count(self.sends_by_user.admits((app, user), now), Limit::SendUser)
            && self.count(self.sends_by_address.admits(ip_prefix(address), now), Limit::SendAddress)
    }

    /// Returns whether a room may take another message.
    pub(crate) fn admits_message_to(&self, app: AppId, room: RoomId) -> bool {
        let admitted = self.sends_by_room.admits((app, room), Instant::now());
        self.count(admitted, Limit::SendRoom)
    }

    fn count(&self, admitted: bool, limit: Limit) -> bool {
        if !admitted {
            self.metrics.count_rate_limited(limit);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    fn limiter<K: Eq + std::hash::Hash>(burst: u32) -> KeyedLimiter<K> {
        KeyedLimiter::new(Some(Rate { per_second: 0.001, burst }), 100)
    }

    #[test]
    fn a_user_above_the_own_rate_takes_no_tokens_of_the_address() {
        let limits = RateLimits {
            connects_by_address: limiter(1),
            connects_by_user: limiter(1),
            sends_by_user: limiter(1),
            sends_by_address: limiter(2),
            sends_by_room: limiter(1),
            connection_rate: Rate { per_second: 0.001, burst: 10 },
            metrics: Metrics::register(&mut Registry::default()),
        };
        let (app, address) = ("10001".parse().unwrap(), "10.0.0.1".parse().unwrap());
        let mut connection = limits.connection_bucket();
        let mut send = |user: &str| {
            limits.admits_frame(&mut connection, (app, user.parse().unwrap()), address)
        };
        assert_eq!([send("11113"), send("11113"), send("11113")], [true, false, false]);
        assert!(send("11114"), "the address has a token left");
        assert!(!send("11115"), "the address has none left");
    }
}
