//! The error of the tables about rooms.

use qiyu_database::{OpenError, StatementError};

/// The tables about rooms could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// A row holds a value that this program never writes.
    #[error("room {id} has a row with invalid values")]
    Row {
        /// Its id column.
        id: i64,
    },
}
