//! One reading for all who ask for the same at once: however many look for a
//! room that was just opened, or while a cache is away, one of them asks for all.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Instant};

use parking_lot::Mutex;

/// The last reading of one key: when it began, and what came of it.
type Reading<V> = Arc<tokio::sync::Mutex<Option<(Instant, V)>>>;

/// Readings under way, by what is read.
#[derive(Debug)]
pub(crate) struct Flights<K: Eq + Hash, V>(Mutex<HashMap<K, Reading<V>>>);

impl<K: Eq + Hash, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Flights<K, V> {
    /// What `read` gives, or another's reading that *began* after this was
    /// asked: an older one may have missed what the asker knows to have
    /// happened. So of any number of askers at most two read, one after the other.
    pub(crate) async fn share(&self, key: K, read: impl Future<Output = V>) -> V {
        let asked = Instant::now();
        let reading = Arc::clone(self.0.lock().entry(key.clone()).or_default());
        let seat = Seat { flights: self, key, reading: Some(reading) };
        let reading = seat.reading.as_ref().expect("until it is dropped");
        let mut last = reading.lock().await;
        if let Some((began, answer)) = &*last
            && asked < *began
        {
            return answer.clone();
        }
        let began = Instant::now();
        let answer = read.await;
        *last = Some((began, answer.clone()));
        answer
    }
}

/// Somebody's interest in a reading; the last one out forgets it.
struct Seat<'a, K: Eq + Hash, V> {
    flights: &'a Flights<K, V>,
    key: K,
    reading: Option<Reading<V>>,
}

impl<K: Eq + Hash, V> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        let mut flights = self.flights.0.lock();
        drop(self.reading.take());
        if flights.get(&self.key).is_some_and(|reading| Arc::strong_count(reading) == 1) {
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
    async fn a_thousand_who_ask_at_once_read_twice_at_most() {
        let (flights, reads) = (Flights::default(), AtomicUsize::new(0));
        let read = async || {
            let number = reads.fetch_add(1, Ordering::SeqCst);
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            number
        };
        let answers = join_all((0..1000).map(|_| flights.share(1, read()))).await;
        assert!(answers.iter().all(|number| *number < 2));
        assert_eq!(reads.load(Ordering::SeqCst), 2, "the first alone, one for all the rest");
        assert!(flights.0.lock().is_empty(), "nothing is kept");
    }

    #[tokio::test]
    async fn nobody_is_told_what_was_read_before_they_asked() {
        let flights = Flights::default();
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
    async fn who_gives_up_leaves_the_reading_to_the_next() {
        let flights = Flights::default();
        {
            let stuck = flights.share(1, std::future::pending::<&str>());
            tokio::pin!(stuck);
            assert!(futures_util::poll!(stuck.as_mut()).is_pending());
        }
        assert!(flights.0.lock().is_empty());
        assert_eq!(flights.share(1, async { "next" }).await, "next");
    }
}
