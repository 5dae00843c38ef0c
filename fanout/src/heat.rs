//! The hottest rooms: those with the most messages of the last seconds.
//!
//! Counted in a table of fixed size, however many rooms there are: a room that
//! is not in it takes the place of the one with the fewest messages, and starts
//! from that one's count. So the busiest are always among them, and a count is
//! too high by the count that was taken over, at most.
//!
//! # Source
//!
//! Metwally, Agrawal, El Abbadi: "Efficient computation of frequent and top-k
//! elements in data streams" (2005), "space saving".

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use qiyu_nats::vitals::HotRoom;
use qiyu_schema::{AppId, RoomId};
use tokio::time::Instant;

/// Rooms counted at once. A room over a 64th of all that is said is certain to be seen.
const ROOMS_MAX: usize = 64;
/// A stretch of counting; what is told covers one to two of them.
const STRETCH: Duration = Duration::from_secs(5);
/// Rooms told of.
const TOLD_MAX: usize = 10;

type Key = (AppId, RoomId);

/// The counts of one process, over all its partitions.
#[derive(Clone, Default)]
pub(crate) struct Heat(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    since: Option<Instant>,
    now: HashMap<Key, u64>,
    before: HashMap<Key, u64>,
}

impl Heat {
    /// Something was said in a room.
    pub(crate) fn count(&self, app: AppId, room: RoomId) {
        let mut counts = self.0.lock();
        counts.turn();
        counts.add((app, room));
    }

    /// The hottest rooms, hottest first.
    pub(crate) fn hottest(&self) -> Vec<HotRoom> {
        let mut counts = self.0.lock();
        counts.turn();
        let Some(since) = counts.since else { return Vec::new() };
        let seconds = (STRETCH + since.elapsed()).as_secs_f64();
        let mut sums = counts.now.clone();
        for (key, count) in &counts.before {
            *sums.entry(*key).or_default() += count;
        }
        let hot = |((app, room), count): (Key, u64)| HotRoom {
            app,
            room,
            per_second: count as f64 / seconds,
        };
        let mut rooms: Vec<HotRoom> = sums.into_iter().map(hot).collect();
        rooms.sort_by(|a, b| b.per_second.total_cmp(&a.per_second).then(a.room.cmp(&b.room)));
        rooms.truncate(TOLD_MAX);
        rooms
    }
}

impl Counts {
    fn turn(&mut self) {
        let since = *self.since.get_or_insert_with(Instant::now);
        let stretches = since.elapsed().as_secs() / STRETCH.as_secs();
        if stretches == 0 {
            return;
        }
        let ended = std::mem::take(&mut self.now);
        self.before = if stretches == 1 { ended } else { HashMap::new() };
        self.since = Some(since + STRETCH * u32::try_from(stretches).unwrap_or(u32::MAX));
    }

    fn add(&mut self, key: Key) {
        let known = self.now.contains_key(&key);
        let taken_over = if known || self.now.len() < ROOMS_MAX { 0 } else { self.make_room() };
        *self.now.entry(key).or_insert(taken_over) += 1;
    }

    /// Takes out the room with the fewest messages; returns its count.
    fn make_room(&mut self) -> u64 {
        let Some((&least, &count)) = self.now.iter().min_by_key(|(_, count)| **count) else {
            return 0;
        };
        self.now.remove(&least);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> AppId {
        "10001".parse().unwrap()
    }

    fn say(heat: &Heat, room: u64, times: usize) {
        (0..times).for_each(|_| heat.count(app(), room.try_into().unwrap()));
    }

    fn told(heat: &Heat) -> Vec<(u64, f64)> {
        heat.hottest().iter().map(|hot| (hot.room.get(), hot.per_second)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_of_the_last_seconds_and_end_with_the_talk() {
        let heat = Heat::default();
        say(&heat, 1, 50);
        tokio::time::advance(STRETCH).await;
        say(&heat, 2, 20);
        tokio::time::advance(STRETCH - Duration::from_millis(1)).await;
        let (first, second) = (told(&heat)[0], told(&heat)[1]);
        assert!(first.0 == 1 && (4.9..5.1).contains(&first.1), "{first:?}");
        assert!(second.0 == 2 && (1.9..2.1).contains(&second.1), "{second:?}");
        tokio::time::advance(STRETCH).await;
        assert_eq!(told(&heat).len(), 1, "the first room has been silent for ten seconds");
        tokio::time::advance(STRETCH * 7).await;
        assert_eq!(told(&heat), []);
    }

    #[tokio::test(start_paused = true)]
    async fn the_busiest_is_seen_among_more_rooms_than_are_counted() {
        let heat = Heat::default();
        for round in 0..50 {
            say(&heat, 7, 10);
            (0..100).for_each(|n| say(&heat, 1000 + (round * 100 + n) % 1000, 1));
        }
        assert_eq!(told(&heat)[0].0, 7);
        assert_eq!(told(&heat).len(), TOLD_MAX);
        let counts = heat.0.lock();
        assert!(
            counts.now.len() <= ROOMS_MAX && 500 <= counts.now[&(app(), 7.try_into().unwrap())]
        );
    }
}
