//! Connections to a SQL database, shared by the services that keep tables.
//!
//! **Owns** the connection pool, the first connection, migrations and the time limit of a
//! statement.
//!
//! **Never** knows a table: each service brings its own migrations ([`Schema`]) and its own SQL.
//!
//! SQLite, MariaDB 10.11 and MySQL 8 are reached through sqlx's `Any` driver, which carries whole
//! numbers and text for all three. So there is one pool type and one text of each statement. Only
//! the migrations differ, and the first statements of a connection.
//!
//! **Start at** [`Database::open`], then [`Database::run`].

mod connect;
mod error;
mod migrate;
mod url;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use qiyu_runtime::{breaker::CircuitBreaker, url::redact_url};
use sqlx::{AnyPool, Connection as _, any::AnyPoolOptions};

pub use error::{OpenError, StatementError};
pub use migrate::Schema;

use connect::{first_connection, prepare};

/// Connections to the database. SQLite writes one at a time anyway, and reads are short.
const CONNECTIONS_MAX: u32 = 8;
/// Pause after a failed connection during which no statement is tried. Each attempt waits for the
/// connect timeout, so one attempt per pause is enough.
const UNAVAILABLE_COOLDOWN: Duration = Duration::from_secs(1);
/// An idle connection is closed after this time, well under MySQL's own `wait_timeout` of 8 h.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// A connection this old is replaced, so that a database whose name moved to another host is found.
const LIFETIME_MAX: Duration = Duration::from_secs(1800);
/// Time limit of a statement: SQLite's 5 s for its write lock, and one second more.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(6);
/// Attempts at a statement that MySQL rolled back to resolve a deadlock.
const DEADLOCK_ATTEMPTS_MAX: u32 = 5;
/// MySQL's SQLSTATE for a transaction that was rolled back because of a deadlock.
const DEADLOCK: &str = "40001";

/// A pool of connections to one database, with the limits that every statement obeys.
#[derive(Clone, Debug)]
pub struct Database {
    pool: AnyPool,
    breaker: Arc<CircuitBreaker>,
    tables: &'static str,
}

impl Database {
    /// Connects and migrates. Creates a missing SQLite file and its directory.
    ///
    /// `connect_timeout` limits the wait of a statement for a connection, a new one included.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: the database is not reached within 30 s, or refuses the login or a migration.
    pub async fn open(
        url: &str,
        schema: &Schema,
        connect_timeout: Duration,
    ) -> Result<Self, OpenError> {
        sqlx::any::install_default_drivers();
        let shown = redact_url(url);
        if let Some(directory) = url::sqlite_directory(url) {
            std::fs::create_dir_all(directory)
                .map_err(|source| OpenError::Directory { url: shown.clone(), source })?;
        }
        let url = url::create_if_missing(url);
        let failed = |source| OpenError::Connect { url: shown.clone(), source };
        // A connection of its own: a lock that a failed migration left behind ends with it.
        let mut connection = first_connection(&url, connect_timeout).await.map_err(failed)?;
        let migrated = migrate::run(schema, &mut connection).await;
        migrated.map_err(|source| OpenError::Migrate { tables: schema.tables, source })?;
        connection.close().await.ok(); // a failure to close changes nothing
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(connect_timeout)
            .idle_timeout(IDLE_TIMEOUT)
            .max_lifetime(LIFETIME_MAX)
            .after_connect(|connection, _| Box::pin(prepare(connection)))
            .connect_lazy(&url)
            .map_err(failed)?;
        let breaker = Arc::new(CircuitBreaker::new(UNAVAILABLE_COOLDOWN, connect_timeout));
        Ok(Self { pool, breaker, tables: schema.tables })
    }

    /// Returns the pool, for the statements given to [`Database::run`].
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Runs a statement within [`STATEMENT_TIMEOUT`], and again after a deadlock.
    ///
    /// `action` names the statement in errors, as in "insert a room".
    ///
    /// # Errors
    ///
    /// [`StatementError`]. A statement that timed out may have been carried out.
    pub async fn run<'a, T>(
        &self,
        action: &'static str,
        statement: impl Fn() -> BoxFuture<'a, Result<T, sqlx::Error>>,
    ) -> Result<T, StatementError> {
        if !self.breaker.allows(Instant::now()) {
            return Err(StatementError::Unavailable { action, tables: self.tables });
        }
        let done = tokio::time::timeout(STATEMENT_TIMEOUT, retry_deadlocks(statement)).await;
        match &done {
            Ok(Err(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut)) | Err(_) => {
                self.breaker.record_failure(Instant::now());
            }
            // An answer that is an error is an answer.
            Ok(_) => {
                self.breaker.record_success();
            }
        }
        match done {
            Ok(done) => done.map_err(|source| self.failed(action, source)),
            Err(_) => Err(StatementError::TimedOut { action, tables: self.tables }),
        }
    }

    /// Wraps an error of sqlx, such as one of decoding a row, in a [`StatementError`].
    pub fn failed(&self, action: &'static str, source: sqlx::Error) -> StatementError {
        StatementError::Failed { action, tables: self.tables, source }
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

async fn retry_deadlocks<'a, T>(
    statement: impl Fn() -> BoxFuture<'a, Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let mut attempt = 1;
    loop {
        match statement().await {
            Err(sqlx::Error::Database(error))
                if error.code().as_deref() == Some(DEADLOCK) && attempt < DEADLOCK_ATTEMPTS_MAX =>
            {
                attempt += 1;
            }
            done => return done,
        }
    }
}
