//! The lists of open rooms in this process's memory, newest first.
//!
//! They are read again every second, and changed at once by every opening and closing that this
//! process makes or reads in the log. A read that began before such a change must not undo it,
//! though another process may have made the read some seconds ago. So the changes of the last
//! seconds are applied again on top of it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use qiyu_schema::{AppId, RoomId, command::ListRooms};

use crate::{
    cache::Cache,
    metrics::Metrics,
    room::{LISTED_MAX, ListsByType, ROOM_TYPES, Room},
    store::{Store, StoreError},
};

/// Lists older than this mean that the database is unavailable.
const STALE_AFTER: Duration = Duration::from_secs(10);
/// How long a change is applied on top of a read: longer than a shared list may be old (10 s) and
/// a read may take.
const CHANGES_KEPT: Duration = Duration::from_secs(20);
/// Changes kept. Beyond them a list may be wrong for a second.
const CHANGES_MAX: usize = 10_000;

/// The lists of all apps and types.
#[derive(Debug)]
pub(crate) struct RoomLists {
    keys: Vec<(AppId, u8)>,
    state: Mutex<ListsState>,
}

#[derive(Debug)]
struct ListsState {
    lists: ListsByType,
    /// The changes of the last seconds, oldest first.
    changes: VecDeque<(Instant, ListChange)>,
    refreshed: Instant,
}

#[derive(Clone, Debug)]
enum ListChange {
    Opened(Arc<Room>),
    Closed(AppId, RoomId),
}

impl RoomLists {
    pub(crate) fn new(apps: &[AppId]) -> Self {
        let types = |&app: &AppId| ROOM_TYPES.map(|room_type| (app, room_type));
        let (lists, changes) = (ListsByType::new(), VecDeque::new());
        let state = Mutex::new(ListsState { lists, changes, refreshed: Instant::now() });
        Self { keys: apps.iter().flat_map(types).collect(), state }
    }

    /// Adds a room that was opened.
    pub(crate) fn add(&self, room: Room) {
        self.change(ListChange::Opened(Arc::new(room)));
    }

    /// Removes a room that was closed.
    pub(crate) fn remove(&self, app: AppId, room: RoomId) {
        self.change(ListChange::Closed(app, room));
    }

    fn change(&self, change: ListChange) {
        let mut state = self.state.lock();
        apply(&mut state.lists, &change);
        if state.changes.len() >= CHANGES_MAX {
            state.changes.pop_front();
        }
        state.changes.push_back((Instant::now(), change));
    }

    /// Reads every list again. The old lists stay if that fails.
    pub(crate) async fn refresh(
        &self,
        cache: &Cache,
        store: &Store,
        metrics: &Metrics,
    ) -> Result<(), StoreError> {
        let read = async {
            let mut lists = ListsByType::new();
            for &(app, room_type) in &self.keys {
                let rooms = store.newest(app, room_type, LISTED_MAX).await?;
                lists.insert((app, room_type), rooms.into_iter().map(Arc::new).collect());
            }
            Ok(lists)
        };
        let mut fresh = cache.lists(&self.keys, metrics, read).await?;
        let mut state = self.state.lock();
        let is_over = |(since, _): &(Instant, ListChange)| since.elapsed() > CHANGES_KEPT;
        while state.changes.front().is_some_and(is_over) {
            state.changes.pop_front();
        }
        for (_, change) in &state.changes {
            apply(&mut fresh, change);
        }
        state.lists = fresh;
        state.refreshed = Instant::now();
        Ok(())
    }

    /// Returns the age of the lists if they are stale.
    pub(crate) fn stale(&self) -> Option<Duration> {
        let age = self.state.lock().refreshed.elapsed();
        (age > STALE_AFTER).then_some(age)
    }

    /// Returns one page of a list, and whether a further page has rows.
    pub(crate) fn page(&self, request: &ListRooms) -> (Vec<Arc<Room>>, bool) {
        let state = self.state.lock(); // rows and has_next are of one and the same list
        let key = (request.app, request.room_type);
        let rooms = state.lists.get(&key).map_or(&[][..], Vec::as_slice);
        let (rows, has_next) = page(rooms, request.page, request.page_size);
        (rows.to_vec(), has_next)
    }
}

/// Returns page `page` (from 1) of `size` rows, and whether a further page has rows.
fn page<T>(rows: &[T], page: u32, size: u32) -> (&[T], bool) {
    let (page, size) = (page as usize, size as usize);
    let end = page.saturating_mul(size);
    let start = end.saturating_sub(size).min(rows.len());
    (&rows[start..end.min(rows.len())], end < rows.len())
}

fn apply(lists: &mut ListsByType, change: &ListChange) {
    match change {
        ListChange::Opened(room) => {
            let list = lists.entry((room.app, room.room_type)).or_default();
            // Newest first, so the place of a new room is near the front.
            let place = list.iter().position(|old| old.room <= room.room).unwrap_or(list.len());
            if list.get(place).is_none_or(|old| old.room != room.room) {
                list.insert(place, Arc::clone(room));
                list.truncate(LISTED_MAX as usize);
            }
        }
        ListChange::Closed(app, room) => {
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

    fn ids(lists: &RoomLists) -> Vec<u64> {
        let state = lists.state.lock();
        state.lists.values().flatten().map(|room| room.room.get()).collect()
    }

    #[test]
    fn pages_do_not_overlap_and_announce_only_pages_with_rows() {
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
    fn a_room_opened_here_is_listed_once_in_its_place() {
        let lists = RoomLists::new(&[]);
        for id in [5, 9, 7, 9] {
            lists.add(room(id));
        }
        assert_eq!(ids(&lists), [9, 7, 5]);
        lists.remove(room(7).app, room(7).room);
        assert_eq!(ids(&lists), [9, 5]);
    }

    #[tokio::test]
    async fn a_refresh_does_not_undo_changes_made_during_it() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/rooms.db", directory.path().display());
        let store = Store::open(&url).await.unwrap();
        let lists = RoomLists::new(&[room(1).app]);
        store.insert(&room(1)).await.unwrap();

        // A refresh that has begun: its rows are from before room 2 opened and room 1 closed.
        let (cache, metrics) = (Cache::InProcess, Metrics::default());
        let refresh = lists.refresh(&cache, &store, &metrics);
        tokio::pin!(refresh);
        assert!(futures_util::poll!(refresh.as_mut()).is_pending());
        lists.add(room(2));
        lists.remove(room(1).app, room(1).room);
        refresh.await.unwrap();
        assert_eq!(ids(&lists), [2]);
    }

    #[test]
    fn a_list_never_grows_over_its_limit() {
        let lists = RoomLists::new(&[]);
        for id in 1..=u64::from(LISTED_MAX) + 3 {
            lists.add(room(id));
        }
        let listed = ids(&lists);
        assert_eq!(listed.len(), LISTED_MAX as usize);
        assert_eq!(listed.first(), Some(&(u64::from(LISTED_MAX) + 3)));
    }
}
