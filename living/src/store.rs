//! The tables about rooms: a projection of the log that SQL can be asked about.
//!
//! Every statement is idempotent and carries its place in the log, so any
//! number of processes may apply the same event in any order of arrival: a
//! record ends a room for ever, whatever comes late.

use std::{path::Path, time::Duration};

use qiyu_nats::{AppId, MsgId, RoomId, bus};
use sqlx::{
    AnyPool, Executor, Row, SqlSafeStr,
    any::{AnyPoolOptions, AnyRow},
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use crate::room::Room;

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
    /// A row holds what nobody here ever wrote.
    #[error("room {id} has a row that makes no sense")]
    Row {
        /// Its id column.
        id: i64,
    },
}

/// Connections to the database. SQLite writes one at a time anyway; reads are short.
const CONNECTIONS_MAX: u32 = 8;
/// How long a statement waits for a connection, and SQLite for its write lock.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);
/// Two processes starting at once may both want to migrate; the loser finds it done.
const MIGRATE_ATTEMPTS: u32 = 5;
/// Its own table, because `api` keeps its tables in the same database.
const MIGRATIONS_TABLE: &str = "_sqlx_migrations_living";

/// The tables.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: AnyPool,
}

impl Store {
    /// Connects and migrates; makes a SQLite file and its directory if there is none.
    pub(crate) async fn open(url: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let shown = bus::shown(url);
        if let Some(directory) = sqlite_directory(url) {
            std::fs::create_dir_all(directory)
                .map_err(|source| StoreError::Directory { url: shown.clone(), source })?;
        }
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(BUSY_PATIENCE)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    if connection.backend_name() == "SQLite" {
                        // Waiting first: turning WAL on takes the write lock too.
                        connection.execute("PRAGMA busy_timeout = 5000").await?;
                        connection.execute("PRAGMA journal_mode = WAL").await?;
                        // A power cut may take the last commits; the log brings them back.
                        connection.execute("PRAGMA synchronous = NORMAL").await?;
                    }
                    Ok(())
                })
            })
            .connect(&creating(url))
            .await
            .map_err(|source| StoreError::Connect { url: shown, source })?;
        migrate(&pool).await.map_err(StoreError::Migrate)?;
        Ok(Self { pool })
    }

    /// Writes a room's row, unless it has one or is closed.
    pub(crate) async fn insert(&self, room: &Room) -> Result<(), StoreError> {
        // From a derived table, because MySQL wants a FROM before a WHERE. One
        // statement, so no close can slip between the look and the write.
        let inserted = sqlx::query(
            "INSERT INTO t_living_room (id, app_id, anchor_id, type, status, room_name, covert_img,
                 watch_num, good_num, start_time, update_time, log_pos)
             SELECT * FROM (SELECT ? AS id, ? AS app_id, ? AS anchor_id, ? AS type, 1 AS status,
                 ? AS room_name, ? AS covert_img, 0 AS watch_num, 0 AS good_num,
                 ? AS start_time, ? AS update_time, ? AS log_pos) AS fresh
             WHERE NOT EXISTS (SELECT 1 FROM t_living_room_record WHERE room_id = fresh.id)
               AND NOT EXISTS (SELECT 1 FROM t_living_room old WHERE old.id = fresh.id)",
        )
        .bind(signed(room.room.get()))
        .bind(i64::from(room.app.get()))
        .bind(signed(room.anchor.get()))
        .bind(i64::from(room.room_type))
        .bind(room.name.as_str())
        .bind(room.cover.as_str())
        .bind(signed(room.opened_at_ms))
        .bind(signed(room.opened_at_ms))
        .bind(signed(room.opened.get()))
        .execute(&self.pool)
        .await;
        settled("insert a room", inserted.map(drop))
    }

    /// Moves a closed room's row to the records, in one transaction. False: there is
    /// neither a row nor a record of it.
    pub(crate) async fn archive(
        &self,
        app: AppId,
        room: RoomId,
        closed: MsgId,
        closed_at_ms: u64,
    ) -> Result<bool, StoreError> {
        let failed = |source| StoreError::Statement { doing: "close a room", source };
        let (app, room) = (i64::from(app.get()), signed(room.get()));
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        // A write first: a transaction that began by reading cannot wait for SQLite's write lock.
        let moved = sqlx::query(
            "INSERT INTO t_living_room_record (id, room_id, app_id, anchor_id, type, status,
                 room_name, covert_img, watch_num, good_num, start_time, end_time, update_time,
                 log_pos)
             SELECT id, id, app_id, anchor_id, type, 0, room_name, covert_img, watch_num, good_num,
                 start_time, ?, ?, ?
             FROM t_living_room WHERE id = ? AND app_id = ?
               AND NOT EXISTS (SELECT 1 FROM t_living_room_record old
                               WHERE old.room_id = t_living_room.id)",
        )
        .bind(signed(closed_at_ms))
        .bind(signed(closed_at_ms))
        .bind(signed(closed.get()))
        .bind(room)
        .bind(app)
        .execute(&mut *transaction)
        .await;
        settled("close a room", moved.map(drop))?;
        sqlx::query("DELETE FROM t_living_room WHERE id = ? AND app_id = ?")
            .bind(room)
            .bind(app)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        let record = sqlx::query("SELECT id FROM t_living_room_record WHERE room_id = ?")
            .bind(room)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(record.is_some())
    }

    /// An open room. `None`: unknown or closed.
    pub(crate) async fn find(&self, app: AppId, room: RoomId) -> Result<Option<Room>, StoreError> {
        let row = sqlx::query(
            "SELECT id, app_id, anchor_id, type, room_name, covert_img, good_num, start_time, log_pos
             FROM t_living_room WHERE id = ? AND app_id = ?",
        )
        .bind(signed(room.get()))
        .bind(i64::from(app.get()))
        .fetch_optional(&self.pool)
        .await
        .map_err(|source| StoreError::Statement { doing: "find a room", source })?;
        row.as_ref().map(read).transpose()
    }

    /// The newest open rooms of one type, newest first. Ids only rise, so they say what is newer.
    pub(crate) async fn newest(
        &self,
        app: AppId,
        room_type: u8,
        limit: u32,
    ) -> Result<Vec<Room>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, app_id, anchor_id, type, room_name, covert_img, good_num, start_time, log_pos
             FROM t_living_room WHERE app_id = ? AND type = ? ORDER BY id DESC LIMIT ?",
        )
        .bind(i64::from(app.get()))
        .bind(i64::from(room_type))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|source| StoreError::Statement { doing: "list rooms", source })?;
        rows.iter().map(read).collect()
    }

    /// The last entry of the log whose effects are all here.
    pub(crate) async fn position(&self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT log_seq FROM t_living_position WHERE id = 1")
            .fetch_one(&self.pool)
            .await;
        row.and_then(|row| row.try_get::<i64, _>(0))
            .map(unsigned)
            .map_err(|source| StoreError::Statement { doing: "read the position", source })
    }

    /// Moves the position on to `seq`, never back.
    pub(crate) async fn advance(&self, seq: u64) -> Result<(), StoreError> {
        sqlx::query("UPDATE t_living_position SET log_seq = ? WHERE id = 1 AND log_seq < ?")
            .bind(signed(seq))
            .bind(signed(seq))
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(|source| StoreError::Statement { doing: "move the position", source })
    }

    /// Starts the position over: the log behind it is gone.
    pub(crate) async fn forget_position(&self) -> Result<(), StoreError> {
        sqlx::query("UPDATE t_living_position SET log_seq = 0 WHERE id = 1")
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(|source| StoreError::Statement { doing: "reset the position", source })
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

async fn migrate(pool: &AnyPool) -> Result<(), MigrateError> {
    let sql = include_str!("../migrations/0001_rooms.sql").into_sql_str();
    let rooms = Migration::new(1, "rooms".into(), MigrationType::Simple, sql, false);
    let mut migrator = Migrator::with_migrations(vec![rooms]);
    migrator.dangerous_set_table_name(MIGRATIONS_TABLE);
    let mut attempt = 1;
    loop {
        match migrator.run(pool).await {
            Err(MigrateError::Execute(_) | MigrateError::ExecuteMigration(..))
                if attempt < MIGRATE_ATTEMPTS =>
            {
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            done => return done,
        }
    }
}

/// A row that is there already was written by somebody who applied the same event.
fn settled(doing: &'static str, done: Result<(), sqlx::Error>) -> Result<(), StoreError> {
    match done {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(()),
        done => done.map_err(|source| StoreError::Statement { doing, source }),
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

/// SQLite only makes a missing file when told to.
fn creating(url: &str) -> String {
    match url.split_once('?') {
        _ if !url.starts_with("sqlite:") => url.to_owned(),
        Some((_, query)) if query.contains("mode=") => url.to_owned(),
        Some(_) => format!("{url}&mode=rwc"),
        None => format!("{url}?mode=rwc"),
    }
}

/// Where a SQLite file lies. `None`: it is no file, or lies right here.
fn sqlite_directory(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    if path.starts_with(':') {
        return None;
    }
    Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(id: u64, room_type: u8) -> Room {
        Room {
            app: "10001".parse().unwrap(),
            room: RoomId::try_from(id).unwrap(),
            anchor: "18446744073709551615".parse().unwrap(),
            room_type,
            name: "安的直播间".into(),
            cover: String::new(),
            good_num: 0,
            opened: MsgId::at(id * 10),
            opened_at_ms: 1_700_000_000_000,
        }
    }

    async fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let url = url(&directory);
        (directory, Store::open(&url).await.unwrap())
    }

    fn url(directory: &tempfile::TempDir) -> String {
        format!("sqlite://{}/made/rooms.db", directory.path().display())
    }

    #[tokio::test]
    async fn a_room_goes_from_row_to_record_and_never_back() {
        let (_directory, store) = store().await;
        let (seven, app) = (room(7, 1), room(7, 1).app);
        store.insert(&seven).await.unwrap();
        store.insert(&seven).await.unwrap(); // the projector comes along too
        assert_eq!(store.find(app, seven.room).await.unwrap(), Some(seven.clone()));

        let closed = MsgId::at(99);
        for _ in 0..2 {
            assert!(store.archive(app, seven.room, closed, 5).await.unwrap());
        }
        store.insert(&seven).await.unwrap(); // too late
        assert_eq!(store.find(app, seven.room).await.unwrap(), None);
        let records = sqlx::query("SELECT room_id, end_time, log_pos FROM t_living_room_record")
            .fetch_all(&store.pool)
            .await
            .unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].get::<i64, _>("room_id"), 7);
        assert_eq!(records[0].get::<i64, _>("end_time"), 5);
    }

    #[tokio::test]
    async fn a_room_nobody_opened_leaves_no_record() {
        let (_directory, store) = store().await;
        let nobody = room(8, 1);
        assert!(!store.archive(nobody.app, nobody.room, MsgId::at(1), 5).await.unwrap());
    }

    #[tokio::test]
    async fn the_list_is_newest_first_within_its_type() {
        let (_directory, store) = store().await;
        for (id, room_type) in [(3, 1), (5, 1), (4, 2)] {
            store.insert(&room(id, room_type)).await.unwrap();
        }
        let listed = store.newest(room(3, 1).app, 1, 10).await.unwrap();
        assert_eq!(listed, [room(5, 1), room(3, 1)]);
        assert_eq!(store.newest(room(3, 1).app, 1, 1).await.unwrap(), [room(5, 1)]);
    }

    #[tokio::test]
    async fn the_position_only_moves_forward() {
        let (_directory, store) = store().await;
        assert_eq!(store.position().await.unwrap(), 0);
        store.advance(9).await.unwrap();
        store.advance(4).await.unwrap();
        assert_eq!(store.position().await.unwrap(), 9);
    }

    #[tokio::test]
    async fn migrations_apply_twice_and_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let url = url(&directory);
        let (a, b) = tokio::join!(Store::open(&url), Store::open(&url));
        a.unwrap();
        b.unwrap();
        Store::open(&url).await.unwrap();
    }

    #[test]
    fn sqlite_urls_name_their_directory() {
        let directory = |url| sqlite_directory(url).and_then(Path::to_str);
        assert_eq!(directory("sqlite:///var/q/x.db?mode=rwc"), Some("/var/q"));
        assert_eq!(directory("sqlite://data/x.db"), Some("data"));
        assert_eq!(directory("sqlite://x.db"), None);
        assert_eq!(directory("sqlite::memory:"), None);
        assert_eq!(directory("mysql://h/x"), None);
        assert_eq!(creating("sqlite://x?mode=ro"), "sqlite://x?mode=ro");
        assert_eq!(creating("sqlite://x"), "sqlite://x?mode=rwc");
    }
}
