//! Tests of the tables, on SQLite and on a real MariaDB.

use futures_util::future::join_all;

use qiyu_database::StatementError;
use qiyu_schema::MsgId;
use test_servers::MariaDb;

use super::*;

fn room(id: u64, room_type: u8) -> Room {
    Room {
        app: "10001".parse().unwrap(),
        room: RoomId::try_from(id).unwrap(),
        anchor: "18446744073709551615".parse().unwrap(),
        room_type,
        name: "安的直播间🎣".into(),
        cover: String::new(),
        good_num: 0,
        opened: MsgId::at(id * 10),
        opened_at_ms: 1_700_000_000_000,
    }
}

fn closing(room: &Room) -> RoomClosing {
    RoomClosing {
        app: room.app,
        room: room.room,
        closed: MsgId::at(99),
        closed_at_ms: 5,
        peak: Some(3),
        good_num: None,
    }
}

// The rules that hold on every database, each tested on an empty one.

async fn a_room_goes_from_row_to_record_and_never_back(store: Store) {
    let seven = room(7, 1);
    store.insert(&seven).await.unwrap();
    store.insert(&seven).await.unwrap(); // the projector applies it again
    assert_eq!(store.find(seven.room).await.unwrap(), Some(seven.clone()));

    for _ in 0..2 {
        assert!(store.archive(&closing(&seven)).await.unwrap());
    }
    store.insert(&seven).await.unwrap(); // too late
    assert_eq!(store.find(seven.room).await.unwrap(), None);
    assert_eq!(records(&store).await, [[7, 3, 0, 5]]);
    assert!(!store.archive(&closing(&room(8, 1))).await.unwrap(), "it was never opened");
}

async fn the_list_is_newest_first_within_its_type(store: Store) {
    for (id, room_type) in [(3, 1), (5, 1), (4, 2)] {
        store.insert(&room(id, room_type)).await.unwrap();
    }
    let listed = store.newest(room(3, 1).app, 1, 10).await.unwrap();
    assert_eq!(listed, [room(5, 1), room(3, 1)]);
    assert_eq!(store.newest(room(3, 1).app, 1, 1).await.unwrap(), [room(5, 1)]);
}

async fn the_position_moves_back_only_when_it_is_set(store: Store) {
    assert_eq!(store.position().await.unwrap(), 0);
    store.advance(9).await.unwrap();
    store.advance(4).await.unwrap();
    assert_eq!(store.position().await.unwrap(), 9);
    store.set_position(2).await.unwrap();
    assert_eq!(store.position().await.unwrap(), 2, "unless it is set");
}

/// The processes that opened and closed the room and every projector, all at once.
async fn one_closing_applied_by_many_processes_leaves_one_record(store: Store) {
    for id in 1..=5 {
        let room = room(id, 1);
        let steps = join_all((0..8).map(async |step| {
            if step % 2 == 0 {
                store.insert(&room).await.map(drop)
            } else {
                store.archive(&closing(&room)).await.map(drop)
            }
        }));
        steps.await.into_iter().collect::<Result<(), _>>().unwrap();
        store.archive(&closing(&room)).await.unwrap();
        assert_eq!(store.find(room.room).await.unwrap(), None);
    }
    assert_eq!(records(&store).await, [1, 2, 3, 4, 5].map(|id| [id, 3, 0, 5]));
}

async fn restoring_a_room_replaces_its_rows(store: Store) {
    let (open, over, gone) = (room(1, 1), room(2, 1), room(3, 1));
    store.insert(&open).await.unwrap();
    store.archive(&closing(&open)).await.unwrap(); // wrongly
    store.insert(&gone).await.unwrap();
    for _ in 0..2 {
        store.restore_open(&open).await.unwrap();
        store.restore_closed(&over, &closing(&over)).await.unwrap();
        store.retire(gone.app, gone.room).await.unwrap();
    }
    assert_eq!(store.rows_after(None).await.unwrap(), std::slice::from_ref(&open));
    assert_eq!(store.rows_after(Some(open.room)).await.unwrap(), []);
    assert_eq!(records(&store).await, [[2, 3, 0, 5], [3, 0, 0, -1]]);
}

/// Returns room, watch_num, good_num and end (-1: none) of every record.
async fn records(store: &Store) -> Vec<[i64; 4]> {
    let rows = sqlx::query(
        "SELECT room_id, watch_num, good_num, COALESCE(end_time, -1)
         FROM t_living_room_record ORDER BY room_id",
    );
    let rows = rows.fetch_all(store.database.pool()).await.unwrap();
    rows.iter().map(|row| [0, 1, 2, 3].map(|column| row.get::<i64, _>(column))).collect()
}

/// Makes a test on SQLite of each rule, and one test of all of them on MariaDB.
macro_rules! on_both {
    ($($name:ident)+) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $name() {
                let directory = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}/made/rooms.db", directory.path().display());
                super::migrations_run_repeatedly_and_concurrently(&url).await;
                super::$name(super::Store::open(&url).await.unwrap()).await;
            })+
        }

        #[tokio::test]
        async fn on_mariadb() {
            let server = MariaDb::start().await;
            $({
                let url = server.database(stringify!($name));
                migrations_run_repeatedly_and_concurrently(&url).await;
                $name(Store::open(&url).await.unwrap()).await;
            })+
        }
    };
}

on_both! {
    a_room_goes_from_row_to_record_and_never_back
    the_list_is_newest_first_within_its_type
    the_position_moves_back_only_when_it_is_set
    one_closing_applied_by_many_processes_leaves_one_record
    restoring_a_room_replaces_its_rows
}

async fn migrations_run_repeatedly_and_concurrently(url: &str) {
    let at_once = join_all((0..3).map(|_| Store::open(url))).await;
    at_once.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    Store::open(url).await.unwrap();
}

/// A start that died during a migration: MySQL keeps the statements that were done.
#[tokio::test]
async fn an_interrupted_migration_runs_again() {
    let server = MariaDb::start().await;
    let url = server.database("half");
    Store::open(&url).await.unwrap();
    let interrupted = "UPDATE half._sqlx_migrations_living SET success = FALSE;
                  DROP TABLE half.t_living_room_record";
    server.asks(interrupted).unwrap();
    let store = Store::open(&url).await.unwrap();
    assert_eq!(records(&store).await, <[[i64; 4]; 0]>::default());
}

#[tokio::test]
async fn an_unavailable_database_costs_one_wait_and_is_used_again_after_its_return() {
    let mut server = MariaDb::start().await;
    let store = Store::open(&server.database("qiyu")).await.unwrap();
    store.insert(&room(7, 1)).await.unwrap();
    server.dies();
    assert!(matches!(
        store.find(room(7, 1).room).await,
        Err(StoreError::Statement(StatementError::Failed { .. }))
    ));
    assert!(matches!(
        store.find(room(7, 1).room).await,
        Err(StoreError::Statement(StatementError::Unavailable { .. }))
    ));
    server.comes_back().await;
    let started = std::time::Instant::now();
    let found = loop {
        match store.find(room(7, 1).room).await {
            Ok(found) => break found,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(30), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(found, Some(room(7, 1)));
}

/// The server of this test cuts values that are too long, unless the session is strict.
#[tokio::test]
async fn a_value_too_long_for_its_column_is_refused_and_not_cut() {
    let server = MariaDb::start().await;
    server.asks("SET GLOBAL sql_mode = ''").unwrap();
    let store = Store::open(&server.database("qiyu")).await.unwrap();
    let long = Room { name: "名".repeat(61), ..room(7, 1) };
    assert!(matches!(
        store.insert(&long).await,
        Err(StoreError::Statement(StatementError::Failed { .. }))
    ));
    let fits = Room { name: "🎣".repeat(60), ..room(7, 1) };
    store.insert(&fits).await.unwrap();
    assert_eq!(store.find(fits.room).await.unwrap(), Some(fits));
}
