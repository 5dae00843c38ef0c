//! The log: appends, readers, look-ups and dead letters.

mod append;
mod dead_letter;
mod entry;
mod lookup;
mod reader;

pub(crate) use append::encode_for;
pub use append::{APPEND_DEADLINE, AppendCondition, AppendError};
pub use dead_letter::DeadLetterReason;
pub use entry::{LogEntry, ReadError, ReadFrom};
pub use lookup::LogRange;
pub use reader::{BoundedReader, LogReader};
