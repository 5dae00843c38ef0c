//! Dead letters: entries that no process of this build can apply.

use std::time::Duration;

use crate::{
    bus::Bus,
    chain,
    log::{append::AppendCondition, entry::LogEntry},
};
use qiyu_schema::subject;

const DEAD_LETTER_TIMEOUT: Duration = Duration::from_secs(2);

/// The reason an entry is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLetterReason {
    /// Its bytes are not an event.
    Decode,
    /// It is an event of a kind newer than this build.
    UnknownKind,
}

impl DeadLetterReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::UnknownKind => "unknown_kind",
        }
    }
}

impl Bus {
    /// Copies an entry that cannot be applied to the dead letters. A failure is
    /// logged: a bad entry never stops a partition.
    pub async fn dead_letter(&self, entry: &LogEntry, reason: DeadLetterReason) {
        let key = format!("dead:{}", entry.seq);
        let subject = subject::dead(reason.as_str());
        let (payload, any) = (entry.payload.clone(), AppendCondition::Any);
        let stored = self.publish_confirmed(subject, payload, &key, any, DEAD_LETTER_TIMEOUT);
        if let Err(error) = stored.await {
            tracing::error!(seq = entry.seq, error = %chain(&error), "undecodable event not copied to im.dead");
        }
    }
}
