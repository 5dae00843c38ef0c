//! One read for all callers that ask for the same key at once.
//!
//! However many callers look up a room that was just opened, or while the cache is unavailable,
//! one of them reads for all.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Instant};

use parking_lot::Mutex;

/// The last read of one key: when it began, and its result.
type SharedRead<V> = Arc<tokio::sync::Mutex<Option<(Instant, V)>>>;

/// Merges concurrent reads of the same key.
#[derive(Debug)]
pub(crate) struct SingleFlight<K: Eq + Hash, V>(Mutex<HashMap<K, SharedRead<V>>>);

impl<K: Eq + Hash, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> SingleFlight<K, V> {
    /// Returns the result of `read`, or of a concurrent read that *began* after this call.
    ///
    /// An older read may have missed a change that the caller knows of. So of any number of
    /// callers at most two read, one after the other.
    pub(crate) async fn share(&self, key: K, read: impl Future<Output = V>) -> V {
        let called = Instant::now();
        let shared = Arc::clone(self.0.lock().entry(key.clone()).or_default());
        let waiter = Waiter { flights: self, key, read: Some(shared) };
        let shared = waiter.read.as_ref().expect("it is there until the drop");
        let mut last = shared.lock().await;
        if let Some((began, result)) = &*last
            && called < *began
        {
            return result.clone();
        }
        let began = Instant::now();
        let result = read.await;
        *last = Some((began, result.clone()));
        result
    }
}

/// A caller that waits for a read. The last one removes the read from the map.
struct Waiter<'a, K: Eq + Hash, V> {
    flights: &'a SingleFlight<K, V>,
    key: K,
    read: Option<SharedRead<V>>,
}

impl<K: Eq + Hash, V> Drop for Waiter<'_, K, V> {
    fn drop(&mut self) {
        let mut flights = self.flights.0.lock();
        drop(self.read.take());
        if flights.get(&self.key).is_some_and(|read| Arc::strong_count(read) == 1) {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn a_thousand_concurrent_callers_read_at_most_twice() {
        let (flights, reads) = (SingleFlight::default(), AtomicUsize::new(0));
        let read = async || {
            let number = reads.fetch_add(1, Ordering::SeqCst);
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            number
        };
        let results = join_all((0..1000).map(|_| flights.share(1, read()))).await;
        assert!(results.iter().all(|number| *number < 2));
        assert_eq!(reads.load(Ordering::SeqCst), 2, "the first alone, one for all the rest");
        assert!(flights.0.lock().is_empty(), "nothing is kept");
    }

    #[tokio::test]
    async fn a_caller_never_gets_a_read_that_began_before_its_call() {
        let flights = SingleFlight::default();
        let (go, gate) = tokio::sync::oneshot::channel();
        let old = flights.share(1, async {
            gate.await.unwrap();
            "old"
        });
        tokio::pin!(old);
        assert!(futures_util::poll!(old.as_mut()).is_pending(), "it has begun to read");
        let new = flights.share(1, async { "new" });
        tokio::pin!(new);
        assert!(futures_util::poll!(new.as_mut()).is_pending(), "it waits for its turn");
        go.send(()).unwrap();
        assert_eq!((old.await, new.await), ("old", "new"));
    }

    #[tokio::test]
    async fn a_cancelled_caller_leaves_the_read_to_the_next() {
        let flights = SingleFlight::default();
        {
            let stuck = flights.share(1, std::future::pending::<&str>());
            tokio::pin!(stuck);
            assert!(futures_util::poll!(stuck.as_mut()).is_pending());
        }
        assert!(flights.0.lock().is_empty());
        assert_eq!(flights.share(1, async { "next" }).await, "next");
    }
}
