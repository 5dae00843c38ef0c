//! Rooms in the tables and in the caches, and the rebuild of the tables. Each test runs on both
//! caches, with two processes that share them.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeSet, sync::Once, time::Duration};

use futures_util::future::join_all;
use prometheus_client::{encoding::text::encode, registry::Registry};
use qiyu_living::{Config, Living, rebuild};
use qiyu_nats::{Bus, server::ChildServer, service::CommandError};
use qiyu_schema::{
    RoomId, Secret,
    command::{CloseRoom, FindRoom, LIVING_GROUP, ListRooms, OpenRoom, RoomPage, RoomView},
};
use sqlx::{AnyConnection, Connection, Row, any::AnyRow};
use test_servers::{Redis, start_bus};
use tokio_util::sync::CancellationToken;

use support::{app, eventually, user};

/// Living processes over one nats-server, one SQLite file and perhaps a Redis.
struct Storage {
    bus: Bus,
    living: Vec<(Living, Registry, CancellationToken)>,
    redis: Option<Redis>,
    directory: tempfile::TempDir,
    _server: ChildServer,
}

/// Runs a test on both caches, one after the other.
async fn with_both_caches(test: impl AsyncFn(&Storage)) {
    for redis in [None, Some(Redis::start().await)] {
        let mut stack = Storage::start(redis).await;
        for _ in 0..2 {
            stack.starts_living().await;
        }
        test(&stack).await;
        for (living, _, stop) in stack.living.drain(..) {
            stop.cancel();
            living.stopped().await;
        }
    }
}

impl Storage {
    async fn start(redis: Option<Redis>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (bus, server) = start_bus(directory.path()).await;
        Self { bus, living: Vec::new(), redis, directory, _server: server }
    }

    async fn starts_living(&mut self) {
        let stop = CancellationToken::new();
        let config = Config {
            database_url: self.database_url(),
            redis_url: self.redis_url(),
            apps: vec![app()],
            retain: Duration::from_secs(3600),
        };
        let mut registry = Registry::default();
        let living = Living::start(config, &self.bus, &mut registry, stop.clone()).await.unwrap();
        self.living.push((living, registry, stop));
    }

    fn database_url(&self) -> String {
        format!("sqlite://{}/db/qiyu.db", self.directory.path().display())
    }

    fn redis_url(&self) -> Option<Secret> {
        self.redis.as_ref().map(|redis| Secret::new(redis.url()))
    }

    async fn rebuilds(&self) -> qiyu_living::Rebuilt {
        rebuild(&self.database_url(), self.redis_url().as_ref(), &self.bus).await.unwrap()
    }

    async fn open(&self, anchor: u64) -> RoomId {
        let anchor = user(anchor);
        let open = OpenRoom { app: app(), anchor, room_type: 1, name: None, cover: String::new() };
        self.bus.request(LIVING_GROUP, &open).await.unwrap()
    }

    async fn close(&self, room: RoomId, by: u64) -> Result<(), CommandError> {
        self.bus.request(LIVING_GROUP, &CloseRoom { app: app(), room, by: user(by) }).await
    }

    async fn finds(&self, room: RoomId) -> Option<RoomView> {
        self.bus.request(LIVING_GROUP, &FindRoom { app: app(), room }).await.unwrap()
    }

    async fn list(&self, page: u32, page_size: u32) -> Result<RoomPage, CommandError> {
        self.bus
            .request(LIVING_GROUP, &ListRooms { app: app(), room_type: 1, page, page_size })
            .await
    }

    async fn ids(&self, page: u32, page_size: u32) -> Vec<u64> {
        let listed = self.list(page, page_size).await.unwrap();
        listed.rooms.iter().map(|room| room.room.get()).collect()
    }

    /// Runs a statement on the tables and returns the numbers that it selects (-1: NULL).
    async fn sql(&self, sql: &'static str) -> Vec<Vec<i64>> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let mut connection = AnyConnection::connect(&self.database_url()).await.unwrap();
        sqlx::query("PRAGMA busy_timeout = 5000").execute(&mut connection).await.unwrap();
        let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let number = |row: &AnyRow, column| row.get::<Option<i64>, _>(column).unwrap_or(-1);
        let numbers = |row: &AnyRow| (0..row.len()).map(|column| number(row, column)).collect();
        rows.iter().map(numbers).collect()
    }

    /// Returns the sum of a metric over both processes and all labels.
    fn metric(&self, name: &str) -> f64 {
        let mut sum = 0.0;
        for (_, registry, _) in &self.living {
            let mut text = String::new();
            encode(&mut text, registry).unwrap();
            let of_that_name = text.lines().filter(|line| line.starts_with(name));
            sum += of_that_name
                .map(|line| line.rsplit(' ').next().unwrap())
                .fold(0.0, |sum, n| sum + n.parse::<f64>().unwrap());
        }
        sum
    }
}

fn room(id: u64) -> RoomId {
    RoomId::try_from(id).unwrap()
}

/// A second close makes no second record, and a cached room is not served after it.
#[tokio::test]
async fn a_room_closed_concurrently_has_one_record_and_is_no_longer_served() {
    with_both_caches(async |stack| {
        let room = stack.open(10_086).await;
        for _ in 0..4 {
            assert!(stack.finds(room).await.is_some(), "it is cached wherever it can be");
        }
        // With many look-ups, so that one reads it as it closes.
        let looks = join_all((0..50).map(|_| stack.finds(room)));
        let closes = join_all((0..10).map(|_| stack.close(room, 10_086)));
        let (_, closes) = tokio::join!(looks, closes);
        assert_eq!(closes.iter().filter(|closed| closed.is_ok()).count(), 1);
        for _ in 0..10 {
            assert!(stack.finds(room).await.is_none(), "through both processes");
        }
        let records = "SELECT room_id, status, end_time > 0 FROM t_living_room_record";
        assert_eq!(stack.sql(records).await, [[i64::try_from(room.get()).unwrap(), 0, 1]]);
        assert_eq!(stack.sql("SELECT id FROM t_living_room").await, <[Vec<i64>; 0]>::default());
        eventually("both lists have dropped it", async || {
            stack.ids(1, 10).await.is_empty() && stack.ids(1, 10).await.is_empty()
        })
        .await;
    })
    .await;
}

/// A look-up before the opening does not hide the room for the minute that its absence is cached.
#[tokio::test]
async fn a_new_room_is_found_although_its_absence_was_cached() {
    with_both_caches(async |stack| {
        for (number, anchor) in (1..=5).zip(10_086..) {
            assert!(stack.finds(room(number)).await.is_none());
            // And while it opens.
            let asks = join_all((0..50).map(|_| stack.finds(room(number))));
            let (_, opened) = tokio::join!(asks, stack.open(anchor));
            assert_eq!(opened, room(number), "ids are counted");
            for _ in 0..4 {
                assert!(stack.finds(opened).await.is_some(), "through both processes");
            }
        }
    })
    .await;
}

/// A page has no row too many, its rows and `hasNext` are of one moment, and no room is listed twice.
#[tokio::test]
async fn pages_have_the_requested_size_and_list_every_room_once() {
    with_both_caches(async |stack| {
        for (page, size) in [(0, 10), (1, 0), (1, 101)] {
            let refused = stack.list(page, size).await.unwrap_err();
            assert!(
                matches!(&refused, CommandError::Refused(why) if why.code == 400),
                "page {page} of {size}: {refused}"
            );
        }
        let opening = async {
            for anchor in 10_000..10_025 {
                stack.open(anchor).await;
            }
        };
        tokio::pin!(opening);
        // While both processes refresh the lists and rooms open.
        while futures_util::poll!(opening.as_mut()).is_pending() {
            let page = stack.list(1, 100).await.unwrap();
            let ids: Vec<_> = page.rooms.iter().map(|room| room.room).collect();
            assert!(ids.is_sorted_by(|newer, older| older < newer), "{ids:?}");
            assert!(!page.has_next);
            tokio::task::yield_now().await;
        }
        let newest_first: Vec<u64> = (1..=25).rev().collect();
        let refreshes = async || {
            stack.ids(1, 100).await == newest_first && stack.ids(1, 100).await == newest_first
        };
        eventually("all are listed", refreshes).await;
        let mut seen = Vec::new();
        for (page, rows, more) in [(1, 10, true), (2, 10, true), (3, 5, false), (4, 0, false)] {
            let listed = stack.list(page, 10).await.unwrap();
            assert_eq!((listed.rooms.len(), listed.has_next), (rows, more), "page {page}");
            seen.extend(listed.rooms.iter().map(|room| room.room.get()));
        }
        assert_eq!(seen, newest_first);
        if let Some(redis) = &stack.redis {
            let list = "qiyu-live-living-provider:living_room_list:10001:1";
            eventually("Redis has them", async || redis.asks(&["LLEN", list]) == "25").await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_failed_refresh_does_not_stop_the_next() {
    with_both_caches(async |stack| {
        let room = stack.open(10_086).await.get();
        stack.sql("ALTER TABLE t_living_room RENAME TO t_away").await;
        let failed = "qiyu_living_list_refreshes_failed_total";
        eventually("it fails", async || stack.metric(failed) > 0.0).await;
        assert_eq!(stack.ids(1, 10).await, [room], "the old list stays");

        stack.sql("ALTER TABLE t_away RENAME TO t_living_room").await;
        stack.sql("UPDATE t_living_room SET room_name = 'another'").await;
        eventually("it is read again", async || {
            let listed = stack.list(1, 10).await.unwrap();
            listed.rooms.iter().any(|room| room.name == "another")
        })
        .await;
    })
    .await;
}

/// Tables with any content agree with the log after a rebuild.
#[tokio::test]
async fn the_tables_are_rebuilt_from_the_log_while_the_system_runs() {
    with_both_caches(async |stack| {
        let rooms = [
            stack.open(10_001).await, // 1: stays open, its row is lost
            stack.open(10_002).await, // 2: closes, its record is lost
            stack.open(10_003).await, // 3: closes, its row is back
            stack.open(10_004).await, // 4: stays open, and has a record
        ];
        stack.close(rooms[1], 10_002).await.unwrap();
        stack.close(rooms[2], 10_003).await.unwrap();
        let tables = async || {
            let open = "SELECT id, app_id, anchor_id, type, status, start_time, log_pos
                        FROM t_living_room ORDER BY id";
            let records = "SELECT room_id, app_id, anchor_id, status, watch_num, start_time,
                           end_time, log_pos FROM t_living_room_record ORDER BY room_id";
            (stack.sql(open).await, stack.sql(records).await)
        };
        let before = tables().await;
        assert_eq!((before.0.len(), before.1.len()), (2, 2));

        for damage in [
            "INSERT INTO t_living_room_record (id, room_id, app_id, log_pos)
             VALUES (4, 4, 10001, 1), (77, 77, 10001, 1)", // 77 is older than the log
            "DELETE FROM t_living_room WHERE id IN (1, 4)",
            "DELETE FROM t_living_room_record WHERE room_id = 2",
            "INSERT INTO t_living_room (id, app_id, anchor_id, type, log_pos)
             VALUES (3, 10001, 10003, 1, 1), (99, 10001, 10003, 1, 1)", // 99 was never opened
        ] {
            stack.sql(damage).await;
        }
        let position = async || stack.sql("SELECT log_seq FROM t_living_position").await[0][0];
        eventually("the projector has applied it, too", async || position().await > 5).await;
        for retired in [1, 0] {
            let rebuilt = stack.rebuilds().await;
            assert_eq!((rebuilt.open, rebuilt.closed, rebuilt.retired), (2, 2, retired));
            let (open, mut records) = tables().await;
            let (old, ghost) = (records.remove(2), records.remove(2));
            assert_eq!((&open, &records), (&before.0, &before.1));
            assert_eq!((old[0], ghost[0]), (77, 99), "kept, and moved there without an end");
            assert!(position().await > 5, "and continues from there");
        }
        for (room, is_open) in rooms.into_iter().zip([true, false, false, true]) {
            for _ in 0..2 {
                assert_eq!(stack.finds(room).await.is_some(), is_open, "{room}");
            }
        }
        eventually("the lists follow", async || {
            BTreeSet::from([stack.ids(1, 10).await, stack.ids(1, 10).await])
                == BTreeSet::from([vec![4, 1]])
        })
        .await;

        // Nothing is left, not even the tables.
        for drop in [
            "DROP TABLE t_living_room",
            "DROP TABLE t_living_room_record",
            "DROP TABLE t_living_position",
            "DROP TABLE _sqlx_migrations_living",
        ] {
            stack.sql(drop).await;
        }
        let rebuilt = stack.rebuilds().await;
        assert_eq!((rebuilt.open, rebuilt.closed, rebuilt.retired), (2, 2, 0));
        assert_eq!(tables().await, before);
        stack.close(rooms[0], 10_001).await.unwrap();
        assert!(stack.finds(rooms[0]).await.is_none());
    })
    .await;
}
