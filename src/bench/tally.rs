//! What was heard: how often, how late, and whether it was all of it, once, in order.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use hdrhistogram::Histogram;
use tokio::sync::Semaphore;

/// Everything heard by everybody.
pub(crate) struct Tally {
    began: Instant,
    pub(crate) heard: AtomicU64,
    pub(crate) doubled: AtomicU64,
    pub(crate) reordered: AtomicU64,
    pub(crate) receipted: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Connections that ended although nobody closed them.
    pub(crate) broken: AtomicU64,
    delivery: Mutex<Histogram<u64>>,
    receipt: Mutex<Histogram<u64>>,
    /// How late what was due was sent.
    late: Mutex<Histogram<u64>>,
}

/// Of one kind of time, µs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

fn histogram() -> Histogram<u64> {
    // One minute, to three digits: longer than anything a run waits for.
    Histogram::new_with_max(60_000_000, 3).unwrap_or_else(|never| panic!("{never}"))
}

impl Tally {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            heard: AtomicU64::new(0),
            doubled: AtomicU64::new(0),
            reordered: AtomicU64::new(0),
            receipted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            delivery: Mutex::new(histogram()),
            receipt: Mutex::new(histogram()),
            late: Mutex::new(histogram()),
        })
    }

    /// The clock that all times here are of, µs.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Messages sent at these times have arrived now.
    pub(crate) fn arrived(&self, sent_us: &[u64]) {
        self.heard.fetch_add(sent_us.len() as u64, Ordering::Relaxed);
        record(&self.delivery, self.now_us(), sent_us);
    }

    /// A message sent then was receipted now.
    pub(crate) fn receipted(&self, sent_us: u64) {
        self.receipted.fetch_add(1, Ordering::Relaxed);
        record(&self.receipt, self.now_us(), &[sent_us]);
    }

    /// What was due then is sent now.
    pub(crate) fn sent(&self, due_us: u64) {
        record(&self.late, self.now_us(), &[due_us]);
    }

    /// From now on times are measured anew.
    pub(crate) fn measure_anew(&self) {
        for histogram in [&self.delivery, &self.receipt, &self.late] {
            histogram.lock().unwrap_or_else(PoisonError::into_inner).reset();
        }
    }

    pub(crate) fn delivery(&self) -> Times {
        times(&self.delivery)
    }

    pub(crate) fn receipt(&self) -> Times {
        times(&self.receipt)
    }

    pub(crate) fn late(&self) -> Times {
        times(&self.late)
    }
}

fn record(histogram: &Mutex<Histogram<u64>>, now_us: u64, since_us: &[u64]) {
    let mut histogram = histogram.lock().unwrap_or_else(PoisonError::into_inner);
    for since in since_us {
        histogram.saturating_record(now_us.saturating_sub(*since));
    }
}

fn times(histogram: &Mutex<Histogram<u64>>) -> Times {
    let histogram = histogram.lock().unwrap_or_else(PoisonError::into_inner);
    let at = |quantile| histogram.value_at_quantile(quantile);
    Times { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: histogram.max() }
}

/// One listener, who hears the numbers 1, 2, 3, … of one speaker.
#[derive(Debug)]
pub(crate) struct Ear {
    next: u64,
    missing: HashSet<u64>,
}

/// What hearing a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sound {
    /// Heard for the first time, in order.
    New,
    /// For the first time, after a later one.
    OutOfOrder,
    /// Not for the first time.
    Again,
}

impl Default for Ear {
    fn default() -> Self {
        Self { next: 1, missing: HashSet::new() }
    }
}

impl Ear {
    pub(crate) fn hear(&mut self, number: u64) -> Sound {
        if number < self.next {
            return if self.missing.remove(&number) { Sound::OutOfOrder } else { Sound::Again };
        }
        self.missing.extend(self.next..number);
        self.next = number + 1;
        Sound::New
    }
}

/// A window of messages under way: the next may be said when everybody has
/// heard an earlier one.
pub(crate) struct Window {
    listeners: u64,
    heard: Vec<AtomicU64>,
    pub(crate) places: Semaphore,
}

impl Window {
    pub(crate) fn new(size: usize, listeners: usize) -> Arc<Self> {
        let heard = (0..size * 2).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { listeners: listeners as u64, heard, places: Semaphore::new(size) })
    }

    /// One listener has heard this number.
    pub(crate) fn heard(&self, number: u64) {
        // Numbers under way lie closer together than twice the window.
        let slot = &self.heard[usize::try_from(number).unwrap_or(0) % self.heard.len()];
        if slot.fetch_add(1, Ordering::AcqRel) + 1 == self.listeners {
            slot.store(0, Ordering::Release);
            self.places.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ear_tells_lost_from_late_from_doubled() {
        let mut ear = Ear::default();
        let heard = [1, 2, 5, 4, 4, 6, 2].map(|number| ear.hear(number));
        use Sound::{Again, New, OutOfOrder};
        assert_eq!(heard, [New, New, New, OutOfOrder, Again, New, Again]);
        assert_eq!(ear.missing, HashSet::from([3]));
    }

    #[test]
    fn a_place_is_free_when_everybody_has_heard() {
        let window = Window::new(2, 3);
        window.places.try_acquire_many(2).unwrap().forget();
        (0..2).for_each(|_| window.heard(1));
        (0..3).for_each(|_| window.heard(2));
        assert_eq!(window.places.available_permits(), 1);
        window.heard(1);
        assert_eq!(window.places.available_permits(), 2);
    }
}
