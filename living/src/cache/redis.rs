//! The cache in Redis, with the keys and times of the first qiyu.
//!
//! | key | content | lifetime |
//! |---|---|---|
//! | `…:living_room_obj:<room>` | an open room, or that it is not open | 30 min, 1 min |
//! | `…:living_room_list:<app>:<type>` | the newest 1000, newest first | until it is replaced |
//! | `…:living_room_lists_read` | a mark that the lists were read | 10 s |
//! | `…:refresh_living_room_list_lock` | the process that reads the lists | 10 s, then the rest of the second |
//!
//! **A late read is not cached.** A reader that misses leaves a lease under the key, and its result
//! is stored only while that very lease is there. An opening and a closing remove the key, a lease
//! included.
//!
//! **No entry is trusted that an unsent removal concerns.** An entry carries the moment, by Redis's
//! clock, at which its read began. When a removal could not be sent to Redis, entries from before
//! the next contact are read again.
//!
//! **The wait is bounded.** Each call has [`REDIS_TIMEOUT`]. After a failed call none is made for
//! [`UNAVAILABLE_COOLDOWN`], then one call finds out whether Redis is back.

mod format;
mod lists;
mod rooms;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use qiyu_nats::chain;
use qiyu_runtime::breaker::CircuitBreaker;
use redis::{
    Client, Cmd, FromRedisValue, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tracing::{info, warn};

pub(crate) use rooms::CachedRoom;

use rooms::Freshness;

/// Time limit of a call, a new connection included. It is some hundred times the usual time on one
/// network; beyond it, the database is quicker. (In the tests of this module a busy machine must
/// not be taken for an unavailable Redis.)
const REDIS_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 3000 } else { 300 });
/// Pause after a failed call during which no call is made.
const UNAVAILABLE_COOLDOWN: Duration = Duration::from_secs(1);

/// A call to Redis failed, or was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedisCallError {
    #[error("{action} in Redis")]
    Failed { action: &'static str, source: RedisError },
    #[error("{action} in Redis: no reply within {REDIS_TIMEOUT:?}")]
    TimedOut { action: &'static str },
    #[error("{action} in Redis: malformed reply")]
    Malformed { action: &'static str },
    /// A call failed a moment ago.
    #[error("Redis was unavailable a moment ago")]
    Unavailable,
}

/// The cache in Redis.
pub(crate) struct RedisCache {
    connection: ConnectionManager,
    breaker: CircuitBreaker,
    freshness: Mutex<Freshness>,
}

impl RedisCache {
    /// Makes the cache. It connects at the first call: Redis may start later than this process.
    ///
    /// # Errors
    ///
    /// The URL is malformed.
    pub(crate) fn new(url: &str) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(REDIS_TIMEOUT))
            .set_response_timeout(Some(REDIS_TIMEOUT))
            .set_number_of_retries(0); // the circuit breaker decides when
        let connection = ConnectionManager::new_lazy_with_config(Client::open(url)?, config)?;
        let breaker = CircuitBreaker::new(UNAVAILABLE_COOLDOWN, UNAVAILABLE_COOLDOWN);
        Ok(Self { connection, breaker, freshness: Mutex::default() })
    }

    /// Sends a command, unless Redis was found unavailable a moment ago.
    async fn run<T: FromRedisValue>(
        &self,
        action: &'static str,
        command: &Cmd,
    ) -> Result<T, RedisCallError> {
        if !self.breaker.allows(Instant::now()) {
            return Err(RedisCallError::Unavailable);
        }
        let mut connection = self.connection.clone();
        let reply = tokio::time::timeout(REDIS_TIMEOUT, command.query_async(&mut connection)).await;
        let reply = match reply {
            Ok(reply) => reply.map_err(|source| RedisCallError::Failed { action, source }),
            Err(_) => Err(RedisCallError::TimedOut { action }),
        };
        match &reply {
            Ok(_) => {
                if self.breaker.record_success() {
                    info!("Redis answers again");
                }
            }
            Err(error) => {
                if self.breaker.record_failure(Instant::now()) {
                    warn!(error = %chain(error), "Redis unavailable, the database is read instead");
                }
            }
        }
        reply
    }
}
