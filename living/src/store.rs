//! The tables about rooms: a projection of the log that SQL can be asked about.
//!
//! Every statement is idempotent and carries its place in the log, so any
//! number of processes may apply the same event in any order of arrival: a
//! record ends a room for ever, whatever comes late. And one text serves
//! SQLite, MariaDB and MySQL.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use qiyu_schema::{AppId, MsgId, RoomId};
use sqlx::{AnyConnection, AnyPool, Row, any::AnyRow, migrate::MigrateError};

use crate::{
    database::{self, Reach},
    project::Closing,
    room::Room,
};

/// The tables did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database's directory could not be made.
    #[error("make the directory of {url}")]
    Directory {
        /// The database.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// The database could not be reached.
    #[error("connect to {url}")]
    Connect {
        /// The database, without its password.
        url: String,
        /// Why.
        source: sqlx::Error,
    },
    /// The tables could not be brought to today's shape.
    #[error("migrate the tables of rooms")]
    Migrate(#[source] MigrateError),
    /// A statement failed.
    #[error("{doing} in the tables of rooms")]
    Statement {
        /// What was attempted.
        doing: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// A statement was not answered. It may have been carried out.
    #[error("{doing} in the tables of rooms: no answer")]
    Silent {
        /// What was attempted.
        doing: &'static str,
    },
    /// It was not asked: it could not be reached a moment ago.
    #[error("{doing} in the tables of rooms: the database is away")]
    Away {
        /// What was to be attempted.
        doing: &'static str,
    },
    /// A row holds what nobody here ever wrote.
    #[error("room {id} has a row that makes no sense")]
    Row {
        /// Its id column.
        id: i64,
    },
}

/// How long a statement may take: SQLite's 5 s for its write lock, and a moment more.
pub(crate) const STATEMENT_PATIENCE: Duration = Duration::from_secs(6);
/// Attempts at a statement that MySQL gave up so that another could go on.
const ATTEMPTS_MAX: u32 = 5;

/// What the rows of open rooms are read by.
macro_rules! open_rooms {
    ($which:literal) => {
        concat!(
            "SELECT id, app_id, anchor_id, type, room_name, covert_img, good_num, start_time,
                 log_pos
             FROM t_living_room ",
            $which
        )
    };
}

/// The tables.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: AnyPool,
    reach: Arc<Reach>,
}

impl Store {
    /// Connects and migrates; makes a SQLite file and its directory if there is none.
    pub(crate) async fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self { pool: database::open(url).await?, reach: Arc::default() })
    }

    /// Writes a room's row, unless it has one or is closed.
    pub(crate) async fn insert(&self, room: &Room) -> Result<(), StoreError> {
        self.attempt("insert a room", move || {
            Box::pin(async move {
                let mut connection = self.pool.acquire().await?;
                insert(&mut connection, room).await
            })
        })
        .await
    }

    /// Moves a closed room's row to the records, in one transaction. False: there is
    /// neither a row nor a record of it.
    pub(crate) async fn archive(&self, closing: &Closing) -> Result<bool, StoreError> {
        self.attempt("close a room", move || {
            Box::pin(async move {
                let mut transaction = self.pool.begin().await?;
                let done = archive(&mut transaction, closing).await?;
                transaction.commit().await?;
                Ok(done)
            })
        })
        .await
    }

    /// Makes the tables say that the room is open, whatever they said before.
    pub(crate) async fn restore_open(&self, room: &Room) -> Result<(), StoreError> {
        self.attempt("restore an open room", move || {
            Box::pin(async move {
                let mut transaction = self.pool.begin().await?;
                clear(&mut transaction, room.app, room.room).await?;
                insert(&mut transaction, room).await?;
                transaction.commit().await
            })
        })
        .await
    }

    /// Makes the tables say that the room is closed, whatever they said before.
    /// Nobody ever sees it open meanwhile.
    pub(crate) async fn restore_closed(
        &self,
        room: &Room,
        closing: &Closing,
    ) -> Result<(), StoreError> {
        self.attempt("restore a closed room", move || {
            Box::pin(async move {
                let mut transaction = self.pool.begin().await?;
                clear(&mut transaction, room.app, room.room).await?;
                insert(&mut transaction, room).await?;
                archive(&mut transaction, closing).await?;
                transaction.commit().await
            })
        })
        .await
    }

    /// Moves the row of a room that is over to the records, with no end: nobody knows it.
    pub(crate) async fn retire(&self, app: AppId, room: RoomId) -> Result<(), StoreError> {
        let (app, room) = (i64::from(app.get()), signed(room.get()));
        self.attempt("retire a room", move || {
            Box::pin(async move {
                let mut transaction = self.pool.begin().await?;
                sqlx::query("UPDATE t_living_room SET status = 0 WHERE id = ? AND app_id = ?")
                    .bind(room)
                    .bind(app)
                    .execute(&mut *transaction)
                    .await?;
                let moved = sqlx::query(
                "INSERT INTO t_living_room_record (id, room_id, app_id, anchor_id, type, status,
                     room_name, covert_img, watch_num, good_num, start_time, update_time, log_pos)
                 SELECT id, id, app_id, anchor_id, type, 0, room_name, covert_img, watch_num,
                     good_num, start_time, update_time, log_pos
                 FROM t_living_room WHERE id = ? AND app_id = ?
                   AND NOT EXISTS (SELECT 1 FROM t_living_room_record old WHERE old.room_id = ?)",
            );
                moved.bind(room).bind(app).bind(room).execute(&mut *transaction).await?;
                delete(&mut transaction, app, room).await?;
                transaction.commit().await
            })
        })
        .await
    }

    /// An open room, whatever its app. `None`: unknown or closed.
    pub(crate) async fn find(&self, room: RoomId) -> Result<Option<Room>, StoreError> {
        const SQL: &str = open_rooms!("WHERE id = ?");
        let row = self.attempt("find a room", move || {
            Box::pin(async move {
                sqlx::query(SQL).bind(signed(room.get())).fetch_optional(&self.pool).await
            })
        });
        row.await?.as_ref().map(read).transpose()
    }

    /// The newest open rooms of one type, newest first. Ids only rise, so they say what is newer.
    pub(crate) async fn newest(
        &self,
        app: AppId,
        room_type: u8,
        limit: u32,
    ) -> Result<Vec<Room>, StoreError> {
        const SQL: &str = open_rooms!("WHERE app_id = ? AND type = ? ORDER BY id DESC LIMIT ?");
        let rows = self.attempt("list rooms", move || {
            Box::pin(async move {
                let query = sqlx::query(SQL).bind(i64::from(app.get()));
                query.bind(i64::from(room_type)).bind(i64::from(limit)).fetch_all(&self.pool).await
            })
        });
        rows.await?.iter().map(read).collect()
    }

    /// Rows of open rooms with ids over `after`, the oldest first, a chunk of
    /// them; an empty one is the end.
    pub(crate) async fn rows_after(&self, after: Option<RoomId>) -> Result<Vec<Room>, StoreError> {
        let after = after.map_or(0, |room| signed(room.get()));
        const SQL: &str = open_rooms!("WHERE id > ? ORDER BY id LIMIT 500");
        let rows = self.attempt("read the rooms", move || {
            Box::pin(async move { sqlx::query(SQL).bind(after).fetch_all(&self.pool).await })
        });
        rows.await?.iter().map(read).collect()
    }

    /// The last entry of the log whose effects are all here.
    pub(crate) async fn position(&self) -> Result<u64, StoreError> {
        self.attempt("read the position", move || {
            Box::pin(async move {
                let row = sqlx::query("SELECT log_seq FROM t_living_position WHERE id = 1");
                row.fetch_one(&self.pool).await?.try_get::<i64, _>(0).map(unsigned)
            })
        })
        .await
    }

    /// Moves the position on to `seq`, never back.
    pub(crate) async fn advance(&self, seq: u64) -> Result<(), StoreError> {
        self.attempt("move the position", move || {
            Box::pin(async move {
                sqlx::query("UPDATE t_living_position SET log_seq = ? WHERE id = 1 AND log_seq < ?")
                    .bind(signed(seq))
                    .bind(signed(seq))
                    .execute(&self.pool)
                    .await
                    .map(drop)
            })
        })
        .await
    }

    /// Sets the position to `seq`, wherever it was.
    pub(crate) async fn set_position(&self, seq: u64) -> Result<(), StoreError> {
        self.attempt("set the position", move || {
            Box::pin(async move {
                let mut transaction = self.pool.begin().await?;
                sqlx::query("DELETE FROM t_living_position").execute(&mut *transaction).await?;
                sqlx::query("INSERT INTO t_living_position (id, log_seq) VALUES (1, ?)")
                    .bind(signed(seq))
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await
            })
        })
        .await
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Bounded in time, and again where MySQL gave the statement up so that another could go on.
    async fn attempt<'a, T>(
        &self,
        doing: &'static str,
        statement: impl Fn() -> BoxFuture<'a, Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        if !self.reach.may_ask() {
            return Err(StoreError::Away { doing });
        }
        let attempts = async {
            let mut attempt = 1;
            loop {
                match statement().await {
                    Err(sqlx::Error::Database(error))
                        if error.code().as_deref() == Some(DEADLOCK) && attempt < ATTEMPTS_MAX =>
                    {
                        attempt += 1;
                    }
                    done => return done,
                }
            }
        };
        let done = tokio::time::timeout(STATEMENT_PATIENCE, attempts).await;
        self.reach.learn(match &done {
            Ok(done) => done.as_ref().err(),
            Err(_) => Some(&sqlx::Error::PoolTimedOut),
        });
        match done {
            Ok(done) => done.map_err(|source| StoreError::Statement { doing, source }),
            Err(_) => Err(StoreError::Silent { doing }),
        }
    }
}

/// From a table of one row, because MySQL wants a FROM before a WHERE. One
/// statement, so no close can slip between the look and the write.
async fn insert(connection: &mut AnyConnection, room: &Room) -> Result<(), sqlx::Error> {
    let id = signed(room.room.get());
    let inserted = sqlx::query(
        "INSERT INTO t_living_room (id, app_id, anchor_id, type, status, room_name, covert_img,
             watch_num, good_num, start_time, update_time, log_pos)
         SELECT ?, ?, ?, ?, 1, ?, ?, 0, 0, ?, ?, ? FROM (SELECT 1 AS one) AS fresh
         WHERE NOT EXISTS (SELECT 1 FROM t_living_room_record WHERE room_id = ?)
           AND NOT EXISTS (SELECT 1 FROM t_living_room old WHERE old.id = ?)",
    )
    .bind(id)
    .bind(i64::from(room.app.get()))
    .bind(signed(room.anchor.get()))
    .bind(i64::from(room.room_type))
    .bind(room.name.as_str())
    .bind(room.cover.as_str())
    .bind(signed(room.opened_at_ms))
    .bind(signed(room.opened_at_ms))
    .bind(signed(room.opened.get()))
    .bind(id)
    .bind(id)
    .execute(&mut *connection)
    .await;
    settled(inserted.map(drop))
}

async fn archive(connection: &mut AnyConnection, closing: &Closing) -> Result<bool, sqlx::Error> {
    let (app, room) = (i64::from(closing.app.get()), signed(closing.room.get()));
    // A write first: of several processes that apply one closing, the others
    // wait here. (And a transaction that began by reading cannot wait for
    // SQLite's write lock.)
    let marked = sqlx::query(
        "UPDATE t_living_room SET status = 0, watch_num = COALESCE(?, watch_num),
             good_num = COALESCE(?, good_num), update_time = ?
         WHERE id = ? AND app_id = ?",
    )
    .bind(closing.peak.map(signed))
    .bind(closing.good_num.map(signed))
    .bind(signed(closing.closed_at_ms))
    .bind(room)
    .bind(app)
    .execute(&mut *connection)
    .await?;
    if 0 < marked.rows_affected() {
        let moved = sqlx::query(
            "INSERT INTO t_living_room_record (id, room_id, app_id, anchor_id, type, status,
                 room_name, covert_img, watch_num, good_num, start_time, end_time, update_time,
                 log_pos)
             SELECT id, id, app_id, anchor_id, type, 0, room_name, covert_img, watch_num, good_num,
                 start_time, ?, ?, ?
             FROM t_living_room WHERE id = ? AND app_id = ?
               AND NOT EXISTS (SELECT 1 FROM t_living_room_record old WHERE old.room_id = ?)",
        )
        .bind(signed(closing.closed_at_ms))
        .bind(signed(closing.closed_at_ms))
        .bind(signed(closing.closed.get()))
        .bind(room)
        .bind(app)
        .bind(room)
        .execute(&mut *connection)
        .await;
        settled(moved.map(drop))?;
        delete(connection, app, room).await?;
        return Ok(true);
    }
    let record = sqlx::query("SELECT id FROM t_living_room_record WHERE room_id = ?");
    Ok(record.bind(room).fetch_optional(&mut *connection).await?.is_some())
}

async fn delete(connection: &mut AnyConnection, app: i64, room: i64) -> Result<(), sqlx::Error> {
    let delete = sqlx::query("DELETE FROM t_living_room WHERE id = ? AND app_id = ?");
    delete.bind(room).bind(app).execute(&mut *connection).await.map(drop)
}

async fn clear(
    connection: &mut AnyConnection,
    app: AppId,
    room: RoomId,
) -> Result<(), sqlx::Error> {
    let (app, room) = (i64::from(app.get()), signed(room.get()));
    delete(connection, app, room).await?;
    // Whatever its app: an id is one room's in all of them.
    let delete = sqlx::query("DELETE FROM t_living_room_record WHERE room_id = ?");
    delete.bind(room).execute(&mut *connection).await.map(drop)
}

/// MySQL's SQLSTATE for "deadlock found, the other one goes on".
const DEADLOCK: &str = "40001";

/// A row that is there already was written by somebody who applied the same event.
fn settled(done: Result<(), sqlx::Error>) -> Result<(), sqlx::Error> {
    match done {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(()),
        done => done,
    }
}

fn read(row: &AnyRow) -> Result<Room, StoreError> {
    let column = |source| StoreError::Statement { doing: "read a row", source };
    let number = |name: &str| row.try_get::<i64, _>(name).map(unsigned).map_err(column);
    let id = row.try_get::<i64, _>("id").map_err(column)?;
    let nonsense = || StoreError::Row { id };
    Ok(Room {
        app: AppId::try_from(number("app_id")?).map_err(|_| nonsense())?,
        room: RoomId::try_from(unsigned(id)).map_err(|_| nonsense())?,
        anchor: number("anchor_id")?.try_into().map_err(|_| nonsense())?,
        room_type: number("type")?.try_into().map_err(|_| nonsense())?,
        name: row.try_get("room_name").map_err(column)?,
        cover: row.try_get::<Option<String>, _>("covert_img").map_err(column)?.unwrap_or_default(),
        good_num: number("good_num")?,
        opened: MsgId::try_from(number("log_pos")?).map_err(|_| nonsense())?,
        opened_at_ms: number("start_time")?,
    })
}

/// SQL has no unsigned numbers everywhere; the bits are kept, so nothing is lost.
fn signed(number: u64) -> i64 {
    number.cast_signed()
}

fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::servers::MariaDb;

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

    fn closing(room: &Room) -> Closing {
        Closing {
            app: room.app,
            room: room.room,
            closed: MsgId::at(99),
            closed_at_ms: 5,
            peak: Some(3),
            good_num: None,
        }
    }

    /// What must hold on any database, each on an empty one.
    async fn a_room_goes_from_row_to_record_and_never_back(store: Store) {
        let seven = room(7, 1);
        store.insert(&seven).await.unwrap();
        store.insert(&seven).await.unwrap(); // the projector comes along too
        assert_eq!(store.find(seven.room).await.unwrap(), Some(seven.clone()));

        for _ in 0..2 {
            assert!(store.archive(&closing(&seven)).await.unwrap());
        }
        store.insert(&seven).await.unwrap(); // too late
        assert_eq!(store.find(seven.room).await.unwrap(), None);
        assert_eq!(records(&store).await, [[7, 3, 0, 5]]);
        assert!(!store.archive(&closing(&room(8, 1))).await.unwrap(), "nobody opened it");
    }

    async fn the_list_is_newest_first_within_its_type(store: Store) {
        for (id, room_type) in [(3, 1), (5, 1), (4, 2)] {
            store.insert(&room(id, room_type)).await.unwrap();
        }
        let listed = store.newest(room(3, 1).app, 1, 10).await.unwrap();
        assert_eq!(listed, [room(5, 1), room(3, 1)]);
        assert_eq!(store.newest(room(3, 1).app, 1, 1).await.unwrap(), [room(5, 1)]);
    }

    async fn the_position_only_moves_forward(store: Store) {
        assert_eq!(store.position().await.unwrap(), 0);
        store.advance(9).await.unwrap();
        store.advance(4).await.unwrap();
        assert_eq!(store.position().await.unwrap(), 9);
        store.set_position(2).await.unwrap();
        assert_eq!(store.position().await.unwrap(), 2, "unless it is told to");
    }

    /// Whoever opened and closed it, and every process's replay, all at once.
    async fn one_closing_applied_by_many_leaves_one_record(store: Store) {
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

    async fn what_the_tables_said_before_does_not_matter(store: Store) {
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

    /// Room, watchNum, goodNum and end (-1: none) of every record.
    async fn records(store: &Store) -> Vec<[i64; 4]> {
        let rows = sqlx::query(
            "SELECT room_id, watch_num, good_num, COALESCE(end_time, -1)
             FROM t_living_room_record ORDER BY room_id",
        );
        let rows = rows.fetch_all(&store.pool).await.unwrap();
        rows.iter().map(|row| [0, 1, 2, 3].map(|column| row.get::<i64, _>(column))).collect()
    }

    /// A test for SQLite, and an act of the one for MariaDB.
    macro_rules! on_both {
        ($($name:ident)+) => {
            mod on_sqlite {
                $(#[tokio::test]
                async fn $name() {
                    let directory = tempfile::tempdir().unwrap();
                    let url = format!("sqlite://{}/made/rooms.db", directory.path().display());
                    super::migrations_apply_twice_and_at_once(&url).await;
                    super::$name(super::Store::open(&url).await.unwrap()).await;
                })+
            }

            #[tokio::test]
            async fn on_mariadb() {
                let server = MariaDb::start().await;
                $({
                    let url = server.database(stringify!($name));
                    migrations_apply_twice_and_at_once(&url).await;
                    $name(Store::open(&url).await.unwrap()).await;
                })+
            }
        };
    }

    on_both! {
        a_room_goes_from_row_to_record_and_never_back
        the_list_is_newest_first_within_its_type
        the_position_only_moves_forward
        one_closing_applied_by_many_leaves_one_record
        what_the_tables_said_before_does_not_matter
    }

    async fn migrations_apply_twice_and_at_once(url: &str) {
        let at_once = join_all((0..3).map(|_| Store::open(url))).await;
        at_once.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        Store::open(url).await.unwrap();
    }

    /// A start that died in the middle of a migration: MySQL keeps what was done.
    #[tokio::test]
    async fn a_migration_that_was_broken_off_is_run_again() {
        let server = MariaDb::start().await;
        let url = server.database("half");
        Store::open(&url).await.unwrap();
        let broken = "UPDATE half._sqlx_migrations_living SET success = FALSE;
                      DROP TABLE half.t_living_room_record";
        server.asks(broken).unwrap();
        let store = Store::open(&url).await.unwrap();
        assert_eq!(records(&store).await, <[[i64; 4]; 0]>::default());
    }

    #[tokio::test]
    async fn a_database_that_is_away_costs_one_wait_and_is_found_again() {
        let mut server = MariaDb::start().await;
        let store = Store::open(&server.database("qiyu")).await.unwrap();
        store.insert(&room(7, 1)).await.unwrap();
        server.dies();
        assert!(matches!(store.find(room(7, 1).room).await, Err(StoreError::Statement { .. })));
        assert!(matches!(store.find(room(7, 1).room).await, Err(StoreError::Away { .. })));
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

    /// The server of these tests is lenient unless it is asked not to be.
    #[tokio::test]
    async fn what_does_not_fit_is_refused_and_not_cut() {
        let server = MariaDb::start().await;
        server.asks("SET GLOBAL sql_mode = ''").unwrap();
        let store = Store::open(&server.database("qiyu")).await.unwrap();
        let long = Room { name: "名".repeat(61), ..room(7, 1) };
        assert!(matches!(store.insert(&long).await, Err(StoreError::Statement { .. })));
        let fits = Room { name: "🎣".repeat(60), ..room(7, 1) };
        store.insert(&fits).await.unwrap();
        assert_eq!(store.find(fits.room).await.unwrap(), Some(fits));
    }
}
