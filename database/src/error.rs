//! The errors of opening a database and of running a statement.

use sqlx::migrate::MigrateError;

/// The database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory of a SQLite file could not be created.
    #[error("make the directory of {url}")]
    Directory {
        /// Holds no password.
        url: String,
        source: std::io::Error,
    },
    /// The database could not be reached, or refused the login.
    #[error("connect to {url}")]
    Connect {
        /// Holds no password.
        url: String,
        source: sqlx::Error,
    },
    /// A migration failed.
    #[error("migrate {tables}")]
    Migrate { tables: &'static str, source: MigrateError },
}

/// A statement did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// The database answered with an error, or could not be reached.
    #[error("{action} in {tables}")]
    Failed { action: &'static str, tables: &'static str, source: sqlx::Error },
    /// The statement was not answered in time. It may have been carried out.
    #[error("{action} in {tables}: no answer")]
    TimedOut { action: &'static str, tables: &'static str },
    /// The statement was not tried, because the database could not be reached a moment ago.
    #[error("{action} in {tables}: the database was unavailable a moment ago")]
    Unavailable { action: &'static str, tables: &'static str },
}
