//! What spares the database: in this process alone, or shared through Redis.
//!
//! The list people see is in every process's memory in both cases
//! ([`list`](crate::list)); this decides where it is read from, and who is
//! asked about one room.
//!
//! - **In process** (the default) nothing is remembered of single rooms: another
//!   process may close one, and only the database would tell this one in time.
//! - **Redis** is told of every opening and closing before the caller is, so
//!   what it holds is as true as the database. When it is away, slow or empty,
//!   the database is read as if it were not configured.

use qiyu_schema::{AppId, RoomId, Secret};

use crate::{
    list::Listed,
    metrics::{Metrics, Outcome, What},
    room::Room,
    shared::{Found, Shared, SharedError},
    store::StoreError,
};

/// Where what was read from the tables is kept for others.
pub(crate) enum Cache {
    /// Nowhere.
    InProcess,
    /// In Redis, for every living process.
    Redis(Box<Shared>),
}

/// Whose turn it is to read the lists.
enum Turn {
    /// Somebody else has read them within the last second.
    Theirs(Listed),
    /// Ours, for all who share the cache.
    OursForAll(String),
    /// Ours, for this process only.
    Ours,
}

/// Not an URL of Redis.
#[derive(Debug, thiserror::Error)]
#[error("QIYU_REDIS_URL")]
pub struct CacheError(#[source] redis::RedisError);

impl Cache {
    /// `url`: of Redis, if there is one.
    pub(crate) fn new(url: Option<&Secret>) -> Result<Self, CacheError> {
        let Some(url) = url else { return Ok(Self::InProcess) };
        Ok(Self::Redis(Box::new(Shared::new(url.expose()).map_err(CacheError)?)))
    }

    /// The open room of that id, from the cache, else from `read`, which then is
    /// kept: 30 minutes for a room, 1 minute for none.
    pub(crate) async fn find(
        &self,
        room: RoomId,
        metrics: &Metrics,
        read: impl Future<Output = Result<Option<Room>, StoreError>>,
    ) -> Result<Option<Room>, StoreError> {
        let Self::Redis(shared) = self else { return read.await };
        let found = shared.find(room).await;
        metrics.asked(What::Room, outcome(&found));
        match found {
            Ok(Found::Room(found)) => Ok(Some(found)),
            Ok(Found::Nothing) => Ok(None),
            Ok(Found::Lease(lease)) => {
                let found = read.await?;
                shared.keep(room, &lease, found.as_ref()).await;
                Ok(found)
            }
            Ok(Found::Leased) | Err(_) => read.await,
        }
    }

    /// The room was opened or closed, and the tables say so already. What others
    /// are reading of it just now is not kept either.
    pub(crate) async fn forget(&self, room: RoomId) {
        if let Self::Redis(shared) = self {
            shared.forget(room).await;
        }
    }

    /// The lists, as `read` gives them or gave them to another process within the last second.
    pub(crate) async fn lists(
        &self,
        keys: &[(AppId, u8)],
        metrics: &Metrics,
        read: impl Future<Output = Result<Listed, StoreError>>,
    ) -> Result<Listed, StoreError> {
        let Self::Redis(shared) = self else { return read.await };
        match self.turn(shared, keys, metrics).await {
            Turn::Theirs(lists) => Ok(lists),
            Turn::Ours => read.await,
            Turn::OursForAll(lock) => match read.await {
                Ok(lists) => {
                    shared.swap_lists(&lock, &lists).await;
                    Ok(lists)
                }
                Err(error) => {
                    shared.unlock(&lock).await; // another process may have a database
                    Err(error)
                }
            },
        }
    }

    async fn turn(&self, shared: &Shared, keys: &[(AppId, u8)], metrics: &Metrics) -> Turn {
        let lock = shared.lock().await;
        if let Ok(Some(lock)) = lock {
            metrics.asked(What::List, Outcome::Miss);
            return Turn::OursForAll(lock);
        }
        let lists = match lock {
            Ok(_) => shared.lists(keys).await,
            Err(error) => Err(error),
        };
        metrics.asked(What::List, outcome(&lists));
        match lists {
            Ok(Some(lists)) => Turn::Theirs(lists),
            // None at all: whoever has the lock is about to write them.
            Ok(None) | Err(_) => Turn::Ours,
        }
    }
}

/// How a question to Redis ended, for those who count.
fn outcome<T: Answered>(answer: &Result<T, SharedError>) -> Outcome {
    match answer {
        Ok(answer) if answer.is_hit() => Outcome::Hit,
        Ok(_) => Outcome::Miss,
        Err(SharedError::Resting) => Outcome::Skipped,
        Err(_) => Outcome::Failed,
    }
}

trait Answered {
    fn is_hit(&self) -> bool;
}

impl Answered for Found {
    fn is_hit(&self) -> bool {
        matches!(self, Self::Room(_) | Self::Nothing)
    }
}

impl Answered for Option<Listed> {
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

    use super::*;
    use crate::{metrics::CacheLabel, servers::Redis};

    fn cache(redis: &Redis) -> Cache {
        Cache::new(Some(&Secret::new(redis.url()))).unwrap()
    }

    fn count(metrics: &Metrics, what: What, outcome: Outcome) -> u64 {
        metrics.cache.get_or_create(&CacheLabel { what, outcome }).get()
    }

    /// The seed's defect 58: a reading that fails ends nothing, and another
    /// process's is not held up by it.
    #[tokio::test]
    async fn the_lists_are_read_once_for_all_and_a_failure_stops_nobody() {
        let redis = Redis::start().await;
        let (one, other, metrics) = (cache(&redis), cache(&redis), Metrics::default());
        let keys = [("10001".parse::<AppId>().unwrap(), 1)];
        let reads = AtomicUsize::new(0);
        let read = async || {
            reads.fetch_add(1, Ordering::SeqCst);
            Ok(HashMap::from([(keys[0], Vec::new())]))
        };
        let broken = async || Err(StoreError::Silent { doing: "list rooms" });
        one.lists(&keys, &metrics, broken()).await.unwrap_err();
        assert!(other.lists(&keys, &metrics, read()).await.unwrap().contains_key(&keys[0]));
        assert!(one.lists(&keys, &metrics, broken()).await.unwrap().contains_key(&keys[0]));
        assert_eq!(reads.load(Ordering::SeqCst), 1);

        redis.asks(&["FLUSHALL"]);
        one.lists(&keys, &metrics, read()).await.unwrap();
        assert_eq!(reads.load(Ordering::SeqCst), 2, "what is gone is read anew");
        assert_eq!(count(&metrics, What::List, Outcome::Hit), 1);
        assert_eq!(count(&metrics, What::List, Outcome::Miss), 3);
    }

    #[tokio::test]
    async fn what_redis_does_not_say_the_database_does() {
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
        assert_eq!((find().await, find().await), (1, 1), "read once, then known");
        redis.dies();
        assert_eq!((find().await, find().await), (2, 3), "read each time");
        let counted = [Outcome::Miss, Outcome::Hit, Outcome::Failed, Outcome::Skipped];
        assert_eq!(counted.map(|outcome| count(&metrics, What::Room, outcome)), [1; 4]);
    }
}
