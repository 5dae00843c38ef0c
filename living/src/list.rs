//! The list people see: newest first, from memory.
//!
//! Read anew every second, and changed at once by what this process opens,
//! closes or hears of from the log. A reading that began before such a change
//! must not undo it, though it may be another process's and a while old:
//! changes of the last seconds are applied again on top of it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use qiyu_nats::service::Refusal;
use qiyu_schema::{
    AppId, RoomId,
    command::{ListRooms, RoomPage},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    cache::Cache,
    metrics::Metrics,
    project::Rooms,
    room::{ROOM_TYPES, Room},
    store::{Store, StoreError},
};

/// Rooms of one type that are listed; older ones are found by their id only. The seed's number.
pub(crate) const LISTED_MAX: u32 = 1000;
/// How often the list is read anew: what other processes did shows within this. The seed's number.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// A list older than this means that the database is away.
const STALE_AFTER: Duration = Duration::from_secs(10);
/// How long a change is applied on top of what is read: longer than a shared
/// list may be old (10 s) and a reading may take.
const CHANGES_KEPT: Duration = Duration::from_secs(20);
/// Changes kept at most. Beyond them a list may be wrong for a second.
const CHANGES_MAX: usize = 10_000;
/// Rooms on one page.
const PAGE_SIZE_MAX: u32 = 100;

/// Lists by app and type, newest first.
pub(crate) type Listed = HashMap<(AppId, u8), Vec<Arc<Room>>>;

/// Every list.
#[derive(Debug)]
pub(crate) struct Lists {
    keys: Vec<(AppId, u8)>,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    lists: Listed,
    /// What happened lately, oldest first.
    changes: VecDeque<(Instant, Change)>,
    refreshed: Instant,
}

#[derive(Clone, Debug)]
enum Change {
    Opened(Arc<Room>),
    Closed(AppId, RoomId),
}

impl Lists {
    pub(crate) fn new(apps: &[AppId]) -> Self {
        let of = |&app: &AppId| ROOM_TYPES.map(|room_type| (app, room_type));
        let (lists, changes) = (Listed::new(), VecDeque::new());
        let held = Mutex::new(Held { lists, changes, refreshed: Instant::now() });
        Self { keys: apps.iter().flat_map(of).collect(), held }
    }

    /// A room opened.
    pub(crate) fn opened(&self, room: Room) {
        self.change(Change::Opened(Arc::new(room)));
    }

    /// A room closed.
    pub(crate) fn closed(&self, app: AppId, room: RoomId) {
        self.change(Change::Closed(app, room));
    }

    fn change(&self, change: Change) {
        let mut held = self.held.lock();
        apply(&mut held.lists, &change);
        if CHANGES_MAX <= held.changes.len() {
            held.changes.pop_front();
        }
        held.changes.push_back((Instant::now(), change));
    }

    /// Reads every list anew. The old ones stay if that fails.
    pub(crate) async fn refresh(
        &self,
        cache: &Cache,
        store: &Store,
        metrics: &Metrics,
    ) -> Result<(), StoreError> {
        let read = async {
            let mut lists = Listed::new();
            for &(app, room_type) in &self.keys {
                let rooms = store.newest(app, room_type, LISTED_MAX).await?;
                lists.insert((app, room_type), rooms.into_iter().map(Arc::new).collect());
            }
            Ok(lists)
        };
        let mut fresh = cache.lists(&self.keys, metrics, read).await?;
        let mut held = self.held.lock();
        let is_over = |(since, _): &(Instant, Change)| CHANGES_KEPT < since.elapsed();
        while held.changes.front().is_some_and(is_over) {
            held.changes.pop_front();
        }
        for (_, change) in &held.changes {
            apply(&mut fresh, change);
        }
        held.lists = fresh;
        held.refreshed = Instant::now();
        Ok(())
    }

    /// How old the lists are, if that is worth a complaint.
    pub(crate) fn stale(&self) -> Option<Duration> {
        let age = self.held.lock().refreshed.elapsed();
        (STALE_AFTER < age).then_some(age)
    }

    fn page(&self, asked: &ListRooms) -> (Vec<Arc<Room>>, bool) {
        let held = self.held.lock(); // rows and has_next from one and the same list
        let rooms = held.lists.get(&(asked.app, asked.room_type)).map_or(&[][..], Vec::as_slice);
        let (rows, has_next) = page(rooms, asked.page, asked.page_size);
        (rows.to_vec(), has_next)
    }
}

/// Reads the lists anew every second, until `stop`.
pub(crate) async fn keep_fresh(rooms: Arc<Rooms>, stop: CancellationToken) {
    let _alarm = stop.clone().drop_guard(); // without it the list would freeze unnoticed
    let mut every = tokio::time::interval(REFRESH_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        if let Err(error) = rooms.lists.refresh(&rooms.cache, &rooms.store, &rooms.metrics).await {
            rooms.metrics.refreshes_failed.inc();
            warn!(
                error = &error as &dyn std::error::Error,
                "list not refreshed, the old one stays"
            );
        }
    }
}

/// Answers one page.
pub(crate) fn list(rooms: &Rooms, asked: &ListRooms) -> Result<RoomPage, Refusal> {
    if asked.page < 1 || !(1..=PAGE_SIZE_MAX).contains(&asked.page_size) {
        return Err(Refusal { code: 400, message: "分页查询参数错误".into() });
    }
    if !ROOM_TYPES.contains(&asked.room_type) {
        return Err(Refusal { code: 400, message: "需要给定直播间类型".into() });
    }
    let (rows, has_next) = rooms.lists.page(asked);
    let rows = rows.iter().map(|room| room.view(rooms.counts(room.app, room.room))).collect();
    Ok(RoomPage { rooms: rows, has_next })
}

/// Page `page` (from 1) of `size` rows, and whether a further one has rows.
fn page<T>(rows: &[T], page: u32, size: u32) -> (&[T], bool) {
    let (page, size) = (page as usize, size as usize);
    let end = page.saturating_mul(size);
    let start = end.saturating_sub(size).min(rows.len());
    (&rows[start..end.min(rows.len())], end < rows.len())
}

fn apply(lists: &mut Listed, change: &Change) {
    match change {
        Change::Opened(room) => {
            let list = lists.entry((room.app, room.room_type)).or_default();
            // Newest first, so the place of a new room is near the front.
            let place = list.iter().position(|old| old.room <= room.room).unwrap_or(list.len());
            if list.get(place).is_none_or(|old| old.room != room.room) {
                list.insert(place, Arc::clone(room));
                list.truncate(LISTED_MAX as usize);
            }
        }
        Change::Closed(app, room) => {
            for room_type in ROOM_TYPES {
                if let Some(list) = lists.get_mut(&(*app, room_type)) {
                    list.retain(|old| old.room != *room);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::MsgId;

    use super::*;

    fn room(id: u64) -> Room {
        Room {
            app: "10001".parse().unwrap(),
            room: RoomId::try_from(id).unwrap(),
            anchor: "10000".parse().unwrap(),
            room_type: 1,
            name: String::new(),
            cover: String::new(),
            good_num: 0,
            opened: MsgId::at(id),
            opened_at_ms: 0,
        }
    }

    fn ids(lists: &Lists) -> Vec<u64> {
        let held = lists.held.lock();
        held.lists.values().flatten().map(|room| room.room.get()).collect()
    }

    #[test]
    fn pages_neither_overlap_nor_promise_what_is_not_there() {
        let rows: Vec<u32> = (1..=25).collect();
        let table: [(u32, u32, &[u32], bool); 8] = [
            (1, 10, &rows[0..10], true),
            (2, 10, &rows[10..20], true),
            (3, 10, &rows[20..25], false),
            (4, 10, &[], false),
            (1, 25, &rows, false),
            (1, 100, &rows, false),
            (25, 1, &rows[24..], false),
            (u32::MAX, 100, &[], false),
        ];
        for (number, size, expected, has_next) in table {
            assert_eq!(page(&rows, number, size), (expected, has_next), "{number} of {size}");
        }
    }

    #[test]
    fn what_is_opened_here_stands_in_its_place_once() {
        let lists = Lists::new(&[]);
        for id in [5, 9, 7, 9] {
            lists.opened(room(id));
        }
        assert_eq!(ids(&lists), [9, 7, 5]);
        lists.closed(room(7).app, room(7).room);
        assert_eq!(ids(&lists), [9, 5]);
    }

    #[tokio::test]
    async fn a_reading_does_not_undo_what_happened_during_it() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/rooms.db", directory.path().display());
        let store = Store::open(&url).await.unwrap();
        let lists = Lists::new(&[room(1).app]);
        store.insert(&room(1)).await.unwrap();

        // A reading that has begun: its rows are from before room 2 opened and room 1 closed.
        let (cache, metrics) = (Cache::InProcess, Metrics::default());
        let reading = lists.refresh(&cache, &store, &metrics);
        tokio::pin!(reading);
        assert!(futures_util::poll!(reading.as_mut()).is_pending());
        lists.opened(room(2));
        lists.closed(room(1).app, room(1).room);
        reading.await.unwrap();
        assert_eq!(ids(&lists), [2]);
    }

    #[test]
    fn a_list_never_grows_over_its_limit() {
        let lists = Lists::new(&[]);
        for id in 1..=u64::from(LISTED_MAX) + 3 {
            lists.opened(room(id));
        }
        let listed = ids(&lists);
        assert_eq!(listed.len(), LISTED_MAX as usize);
        assert_eq!(listed.first(), Some(&(u64::from(LISTED_MAX) + 3)));
    }
}
