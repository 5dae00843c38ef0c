//! Caching of rooms and lists: in this process alone, or shared through Redis.
//!
//! The lists that clients see are in the memory of every process in both cases
//! ([`room_lists`](crate::room_lists)). This module decides where they are read from, and where one
//! room is looked up.
//!
//! - **In process** (the default) no single room is cached: another process may close it, and only
//!   the database would show that in time.
//! - **Redis** is updated by every opening and closing before its caller gets the reply, so its
//!   content is as current as the database. When it is unavailable, slow or empty, the database is
//!   read as if Redis were not configured.

mod redis;

use qiyu_schema::{AppId, RoomId, Secret};

use crate::{
    metrics::{CacheOutcome, CacheQuery, Metrics},
    room::{ListsByType, Room},
    store::StoreError,
};

use self::redis::{CachedRoom, RedisCache, RedisCallError};

/// Where rooms and lists are cached.
pub(crate) enum Cache {
    InProcess,
    /// In Redis, for all living processes.
    Redis(Box<RedisCache>),
}

/// The result of asking Redis for the lists.
enum ListsTurn {
    /// Another process has read the lists within the last second.
    Cached(ListsByType),
    /// This process reads them for all, under this lock.
    ReadAndShare(String),
    /// This process reads them for itself.
    ReadAlone,
}

/// The setting `QIYU_REDIS_URL` is not a URL of a Redis.
#[derive(Debug, thiserror::Error)]
#[error("QIYU_REDIS_URL")]
pub struct CacheError(#[source] ::redis::RedisError);

impl Cache {
    /// Makes a cache in the Redis at `url`, or in this process when there is none.
    pub(crate) fn new(url: Option<&Secret>) -> Result<Self, CacheError> {
        let Some(url) = url else { return Ok(Self::InProcess) };
        Ok(Self::Redis(Box::new(RedisCache::new(url.expose()).map_err(CacheError)?)))
    }

    /// Returns the open room of that id from the cache, else from `read`. The result of `read` is
    /// cached: a room for 30 minutes, its absence for one minute.
    pub(crate) async fn find(
        &self,
        room: RoomId,
        metrics: &Metrics,
        read: impl Future<Output = Result<Option<Room>, StoreError>>,
    ) -> Result<Option<Room>, StoreError> {
        let Self::Redis(redis) = self else { return read.await };
        let found = redis.find(room).await;
        metrics.cache_queried(CacheQuery::Room, outcome(&found));
        match found {
            Ok(CachedRoom::Open(found)) => Ok(Some(found)),
            Ok(CachedRoom::NotOpen) => Ok(None),
            Ok(CachedRoom::LeaseGranted(lease)) => {
                let found = read.await?;
                redis.store(room, &lease, found.as_ref()).await;
                Ok(found)
            }
            Ok(CachedRoom::LeasedToAnother) | Err(_) => read.await,
        }
    }

    /// Removes a room that was opened or closed, after the tables were written. A read of it that
    /// is under way in another process is not cached either.
    pub(crate) async fn remove(&self, room: RoomId) {
        if let Self::Redis(redis) = self {
            redis.remove(room).await;
        }
    }

    /// Returns the lists from `read`, or as another process has read them within the last second.
    pub(crate) async fn lists(
        &self,
        keys: &[(AppId, u8)],
        metrics: &Metrics,
        read: impl Future<Output = Result<ListsByType, StoreError>>,
    ) -> Result<ListsByType, StoreError> {
        let Self::Redis(redis) = self else { return read.await };
        match lists_turn(redis, keys, metrics).await {
            ListsTurn::Cached(lists) => Ok(lists),
            ListsTurn::ReadAlone => read.await,
            ListsTurn::ReadAndShare(lock) => match read.await {
                Ok(lists) => {
                    redis.replace_lists(&lock, &lists).await;
                    Ok(lists)
                }
                Err(error) => {
                    redis.unlock_lists(&lock).await; // another process may reach the database
                    Err(error)
                }
            },
        }
    }
}

async fn lists_turn(redis: &RedisCache, keys: &[(AppId, u8)], metrics: &Metrics) -> ListsTurn {
    let lock = redis.lock_lists().await;
    if let Ok(Some(lock)) = lock {
        metrics.cache_queried(CacheQuery::List, CacheOutcome::Miss);
        return ListsTurn::ReadAndShare(lock);
    }
    let lists = match lock {
        Ok(_) => redis.lists(keys).await,
        Err(error) => Err(error),
    };
    metrics.cache_queried(CacheQuery::List, outcome(&lists));
    match lists {
        Ok(Some(lists)) => ListsTurn::Cached(lists),
        // Redis holds no lists: the holder of the lock is about to write them.
        Ok(None) | Err(_) => ListsTurn::ReadAlone,
    }
}

/// Returns the metric label for the result of a query to Redis.
fn outcome<T: CacheResult>(result: &Result<T, RedisCallError>) -> CacheOutcome {
    match result {
        Ok(result) if result.is_hit() => CacheOutcome::Hit,
        Ok(_) => CacheOutcome::Miss,
        Err(RedisCallError::Unavailable) => CacheOutcome::Skipped,
        Err(_) => CacheOutcome::Failed,
    }
}

trait CacheResult {
    fn is_hit(&self) -> bool;
}

impl CacheResult for CachedRoom {
    fn is_hit(&self) -> bool {
        matches!(self, Self::Open(_) | Self::NotOpen)
    }
}

impl CacheResult for Option<ListsByType> {
    fn is_hit(&self) -> bool {
        self.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use qiyu_database::StatementError;
    use test_servers::Redis;

    use super::*;
    use crate::metrics::CacheLabel;

    fn cache(redis: &Redis) -> Cache {
        Cache::new(Some(&Secret::new(redis.url()))).unwrap()
    }

    fn count(metrics: &Metrics, what: CacheQuery, outcome: CacheOutcome) -> u64 {
        metrics.cache.get_or_create(&CacheLabel { what, outcome }).get()
    }

    #[tokio::test]
    async fn the_lists_are_read_once_for_all_processes_and_a_failed_read_blocks_none() {
        let redis = Redis::start().await;
        let (one, other, metrics) = (cache(&redis), cache(&redis), Metrics::default());
        let keys = [("10001".parse::<AppId>().unwrap(), 1)];
        let reads = AtomicUsize::new(0);
        let read = async || {
            reads.fetch_add(1, Ordering::SeqCst);
            Ok(HashMap::from([(keys[0], Vec::new())]))
        };
        let timed_out = StatementError::TimedOut { action: "list rooms", tables: "a test" };
        one.lists(&keys, &metrics, async { Err(timed_out.into()) }).await.unwrap_err();
        assert!(other.lists(&keys, &metrics, read()).await.unwrap().contains_key(&keys[0]));
        let not_read = async { panic!("the lists are cached") };
        assert!(one.lists(&keys, &metrics, not_read).await.unwrap().contains_key(&keys[0]));
        assert_eq!(reads.load(Ordering::SeqCst), 1);

        redis.asks(&["FLUSHALL"]);
        one.lists(&keys, &metrics, read()).await.unwrap();
        assert_eq!(reads.load(Ordering::SeqCst), 2, "flushed lists are read again");
        assert_eq!(count(&metrics, CacheQuery::List, CacheOutcome::Hit), 1);
        assert_eq!(count(&metrics, CacheQuery::List, CacheOutcome::Miss), 3);
    }

    #[tokio::test]
    async fn the_database_answers_when_redis_does_not() {
        let mut redis = Redis::start().await;
        let (cache, metrics) = (cache(&redis), Metrics::default());
        let room = RoomId::try_from(7).unwrap();
        let reads = AtomicUsize::new(0);
        let find = async || {
            let read = async {
                reads.fetch_add(1, Ordering::SeqCst);
                Ok(None)
            };
            assert_eq!(cache.find(room, &metrics, read).await.unwrap(), None);
            reads.load(Ordering::SeqCst)
        };
        assert_eq!((find().await, find().await), (1, 1), "read once, then cached");
        redis.dies();
        assert_eq!((find().await, find().await), (2, 3), "read each time");
        let outcomes =
            [CacheOutcome::Miss, CacheOutcome::Hit, CacheOutcome::Failed, CacheOutcome::Skipped];
        assert_eq!(outcomes.map(|outcome| count(&metrics, CacheQuery::Room, outcome)), [1; 4]);
    }
}
