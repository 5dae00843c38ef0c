//! The first connection to a database, and the settings of every connection.

use std::time::{Duration, Instant};

use sqlx::{AnyConnection, Connection as _, Executor as _};
use tracing::warn;

/// How long the first connection is tried: a database that starts at the same time may be later.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between attempts at the first connection.
const START_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// SQLite's result code for a lock held by another connection. No code of MySQL is as short.
const SQLITE_BUSY: &str = "5";
/// The name of SQLite in [`AnyConnection::backend_name`].
pub(crate) const SQLITE: &str = "SQLite";

/// Connects, and waits for a database that is not there yet. A wrong password or name fails at once.
pub(crate) async fn first_connection(
    url: &str,
    connect_timeout: Duration,
) -> Result<AnyConnection, sqlx::Error> {
    let started = Instant::now();
    loop {
        let attempt = async {
            let mut connection = AnyConnection::connect(url).await?;
            prepare(&mut connection).await?;
            Ok(connection)
        };
        let attempt = tokio::time::timeout(connect_timeout, attempt).await;
        match attempt.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Err(error) if is_transient(&error) && started.elapsed() < START_TIMEOUT => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "database not reached, trying again"
                );
                tokio::time::sleep(START_RETRY_INTERVAL).await;
            }
            done => return done,
        }
    }
}

/// Returns whether another attempt may succeed. SQLite refuses to turn on WAL while another
/// connection does so, however long a statement would wait for the lock.
fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => error.code().as_deref() == Some(SQLITE_BUSY),
        _ => false,
    }
}

/// Applies the settings that every connection begins with.
pub(crate) async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    if connection.backend_name() == SQLITE {
        // First, because turning on WAL takes the write lock too.
        connection.execute("PRAGMA busy_timeout = 5000").await?;
        connection.execute("PRAGMA journal_mode = WAL").await?;
        // A power cut may take the last commits. The log restores rooms, and tokens bring names.
        connection.execute("PRAGMA synchronous = NORMAL").await?;
    } else {
        // A value that does not fit is an error, whatever the server's own setting. (sqlx itself
        // asks for utf8mb4 and UTC.)
        let strict = "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')";
        connection.execute(strict).await?;
        // Rows that a transaction has read do not change before it writes.
        connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    }
    Ok(())
}
