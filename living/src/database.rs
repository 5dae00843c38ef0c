//! Connecting to the database and bringing its tables to today's shape.
//!
//! SQLite, MariaDB 10.11 and MySQL 8 through sqlx's `Any`: what the tables hold
//! (whole numbers and text) it carries for all three, so there is one pool and
//! one text of each statement. Only the migrations differ, and how a
//! connection begins.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use qiyu_nats::bus;
use sqlx::{
    AnyConnection, AnyPool, Connection as _, Executor as _, Row as _, SqlSafeStr,
    any::AnyPoolOptions,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};
use tracing::warn;

use crate::store::StoreError;

/// Connections to the database. SQLite writes one at a time anyway; reads are short.
const CONNECTIONS_MAX: u32 = 8;
/// How long a statement waits for a connection, a new one included.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// How long nobody asks a database that could not be reached: whoever tries
/// waits for [`CONNECT_PATIENCE`], and one in a while is enough.
const REST: Duration = Duration::from_secs(1);
/// How long the first connection may take: a database that is started beside us may be later.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Between attempts at the first connection.
const START_RETRY_AFTER: Duration = Duration::from_millis(500);
/// A connection nobody used for so long is closed. Well under MySQL's own `wait_timeout` of 8 h.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// A connection this old is replaced, so that a database behind a name that moved is found.
const LIFETIME_MAX: Duration = Duration::from_secs(1800);
/// SQLite: two processes starting at once may both want to migrate; the loser finds it done.
const MIGRATE_ATTEMPTS: u32 = 5;
/// Its own table, because `api` keeps its tables in the same database.
const MIGRATIONS_TABLE: &str = "_sqlx_migrations_living";

const _: () = assert!(REST.as_millis() < CONNECT_PATIENCE.as_millis());

/// Somebody else has the lock (SQLite's result code; no code of MySQL's is as short).
const SQLITE_BUSY: &str = "5";
/// SQLite, as [`AnyConnection::backend_name`] has it.
const SQLITE: &str = "SQLite";

/// Connects and migrates; makes a SQLite file and its directory if there is none.
pub(crate) async fn open(url: &str) -> Result<AnyPool, StoreError> {
    sqlx::any::install_default_drivers();
    let shown = bus::shown(url);
    if let Some(directory) = sqlite_directory(url) {
        std::fs::create_dir_all(directory)
            .map_err(|source| StoreError::Directory { url: shown.clone(), source })?;
    }
    let url = creating(url);
    let failed = |source| StoreError::Connect { url: shown.clone(), source };
    // Of its own, because a lock that a failed migration left behind ends with it.
    let mut connection = first_connection(&url).await.map_err(failed)?;
    migrate(&mut connection).await.map_err(StoreError::Migrate)?;
    connection.close().await.ok(); // it has done its work
    AnyPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(CONNECT_PATIENCE)
        .idle_timeout(IDLE_MAX)
        .max_lifetime(LIFETIME_MAX)
        .after_connect(|connection, _| Box::pin(begin(connection)))
        .connect_lazy(&url)
        .map_err(failed)
}

/// Whether the database is asked at the moment.
#[derive(Debug, Default)]
pub(crate) struct Reach(Mutex<Option<Instant>>);

impl Reach {
    /// Of all who come after a rest, the first asks for the others.
    pub(crate) fn may_ask(&self) -> bool {
        let mut again = self.0.lock();
        match *again {
            Some(at) if Instant::now() < at => false,
            Some(_) => {
                *again = Some(Instant::now() + CONNECT_PATIENCE);
                true
            }
            None => true,
        }
    }

    /// What came of asking. An answer that is an error is an answer.
    pub(crate) fn learn(&self, failure: Option<&sqlx::Error>) {
        use sqlx::Error::{Io, PoolTimedOut};
        let rest = || Instant::now() + REST;
        *self.0.lock() = matches!(failure, Some(Io(_) | PoolTimedOut)).then(rest);
    }
}

/// Waits for a database that is not there yet; a wrong password or name is told at once.
async fn first_connection(url: &str) -> Result<AnyConnection, sqlx::Error> {
    let started = Instant::now();
    loop {
        let attempt = async {
            let mut connection = AnyConnection::connect(url).await?;
            begin(&mut connection).await?;
            Ok(connection)
        };
        let attempt = tokio::time::timeout(CONNECT_PATIENCE, attempt).await;
        match attempt.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Err(error) if passes(&error) && started.elapsed() < START_PATIENCE => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "database not reached, trying again"
                );
                tokio::time::sleep(START_RETRY_AFTER).await;
            }
            done => return done,
        }
    }
}

/// Whether waiting may help. SQLite turns WAL on for nobody while somebody else
/// does so, however long one would wait for the lock.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => error.code().as_deref() == Some(SQLITE_BUSY),
        _ => false,
    }
}

/// What every connection begins with.
async fn begin(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    if connection.backend_name() == SQLITE {
        // Waiting first: turning WAL on takes the write lock too.
        connection.execute("PRAGMA busy_timeout = 5000").await?;
        connection.execute("PRAGMA journal_mode = WAL").await?;
        // A power cut may take the last commits; the log brings them back.
        connection.execute("PRAGMA synchronous = NORMAL").await?;
    } else {
        // What does not fit is an error, whatever the server's own setting. (sqlx
        // itself asks for utf8mb4 and UTC.)
        let strict = "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')";
        connection.execute(strict).await?;
        // What a statement has looked at stays so until it has written.
        connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    }
    Ok(())
}

/// Every migration can be run again from its beginning: MySQL commits each
/// statement about tables by itself, so a death may leave half of them.
async fn migrate(connection: &mut AnyConnection) -> Result<(), MigrateError> {
    if connection.backend_name() == SQLITE {
        let migrator = migrator(include_str!("../migrations/sqlite/0001_rooms.sql"));
        return migrate_sqlite(&migrator, connection).await;
    }
    let migrator = migrator(include_str!("../migrations/mysql/0001_rooms.sql"));
    // MariaDB does not know the endless wait that sqlx's own lock asks for.
    let lock = connection.fetch_one("SELECT GET_LOCK('qiyu_migrations', 60)").await?;
    if lock.try_get::<Option<i64>, _>(0)? != Some(1) {
        return Err(MigrateError::Execute(sqlx::Error::PoolTimedOut));
    }
    match migrator.run(&mut *connection).await {
        Err(MigrateError::Dirty(version)) => {
            warn!(version, "a migration of rooms was broken off, running it again");
            let forget = "DELETE FROM _sqlx_migrations_living WHERE success = FALSE";
            connection.execute(forget).await?;
            migrator.run(&mut *connection).await
        }
        done => done,
    }
}

async fn migrate_sqlite(
    migrator: &Migrator,
    connection: &mut AnyConnection,
) -> Result<(), MigrateError> {
    let mut attempt = 1;
    loop {
        match migrator.run(&mut *connection).await {
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

fn migrator(rooms: &'static str) -> Migrator {
    let rooms =
        Migration::new(1, "rooms".into(), MigrationType::Simple, rooms.into_sql_str(), false);
    let mut migrator = Migrator::with_migrations(vec![rooms]);
    migrator.dangerous_set_table_name(MIGRATIONS_TABLE);
    migrator.set_locking(false);
    migrator
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
