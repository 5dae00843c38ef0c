//! Writing and reading the ledger `IM_LEDGER`.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::debug;

use crate::{
    bus::Bus,
    chain,
    log::{AppendCondition, AppendError, BoundedReader, ReadError, ReadFrom, encode_for},
    stream,
};
use qiyu_schema::{
    codec::{self, DecodeError},
    id::{GatewayId, WorkerId},
    ledger::{DispatchBatch, LedgerBatch, OUTCOMES_MAX, ReadBatch},
    subject,
};

/// The kinds of ledger records, each under subjects of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerKind {
    /// Outcomes at gateways, except those of resumed messages.
    Outcomes,
    /// Outcomes of resumed messages.
    Resumes,
    /// Dispatches to gateways.
    Dispatches,
    /// Pages read over HTTP.
    Reads,
}

impl LedgerKind {
    fn filter(self) -> &'static str {
        match self {
            Self::Outcomes => subject::ANY_OUTCOMES,
            Self::Resumes => subject::ANY_RESUMES,
            Self::Dispatches => subject::ANY_DISPATCHES,
            Self::Reads => subject::LEDGER_READS,
        }
    }

    fn of_subject(subject: &str) -> Self {
        match subject.splitn(4, '.').nth(3) {
            Some("resumes") => Self::Resumes,
            Some("handovers") => Self::Dispatches,
            Some("reads") => Self::Reads,
            _ => Self::Outcomes,
        }
    }
}

/// Collects the records of one batch: `first`, and those that come within `wait`
/// or until there are [`OUTCOMES_MAX`].
pub async fn collect_batch<T>(first: T, more: &mut mpsc::Receiver<T>, wait: Duration) -> Vec<T> {
    let mut batch = vec![first];
    let waited = tokio::time::sleep(wait);
    tokio::pin!(waited);
    while batch.len() < OUTCOMES_MAX {
        tokio::select! {
            biased; // records that are already there are taken first
            one = more.recv() => match one {
                Some(one) => batch.push(one),
                None => break,
            },
            () = &mut waited => break,
        }
    }
    batch
}

/// One entry of the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerEntry {
    /// Time of storage by the server's clock, ms since 1970.
    pub stored_ms: u64,
    pub record: LedgerRecord,
}

/// The record in an entry of the ledger.
#[derive(Clone, Debug, PartialEq)]
pub enum LedgerRecord {
    /// Of [`LedgerKind::Outcomes`] and [`LedgerKind::Resumes`].
    Outcomes(LedgerBatch),
    /// Of [`LedgerKind::Dispatches`].
    Dispatches(DispatchBatch),
    /// Of [`LedgerKind::Reads`].
    Reads(ReadBatch),
}

impl LedgerRecord {
    fn decode(kind: LedgerKind, payload: &[u8]) -> Result<Self, DecodeError> {
        match kind {
            LedgerKind::Outcomes | LedgerKind::Resumes => {
                codec::decode(payload).map(Self::Outcomes)
            }
            LedgerKind::Dispatches => codec::decode(payload).map(Self::Dispatches),
            LedgerKind::Reads => codec::decode(payload).map(Self::Reads),
        }
    }
}

impl Bus {
    /// Stores outcomes. The caller acknowledges their envelopes afterwards.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`].
    pub async fn record_outcomes(
        &self,
        gateway: &GatewayId,
        batch: &LedgerBatch,
        key: &str,
        deadline: Duration,
    ) -> Result<(), AppendError> {
        self.record(subject::ledger(gateway), batch, key, deadline).await
    }

    /// Stores outcomes of resumed messages.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`].
    pub async fn record_resumes(
        &self,
        gateway: &GatewayId,
        batch: &LedgerBatch,
        key: &str,
        deadline: Duration,
    ) -> Result<(), AppendError> {
        self.record(subject::ledger_resumes(gateway), batch, key, deadline).await
    }

    /// Stores dispatches of a worker.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`].
    pub async fn record_dispatches(
        &self,
        worker: &WorkerId,
        batch: &DispatchBatch,
        key: &str,
        deadline: Duration,
    ) -> Result<(), AppendError> {
        self.record(subject::ledger_dispatches(worker), batch, key, deadline).await
    }

    /// Stores pages read over HTTP.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`].
    pub async fn record_reads(
        &self,
        batch: &ReadBatch,
        key: &str,
        deadline: Duration,
    ) -> Result<(), AppendError> {
        self.record(subject::LEDGER_READS.to_owned(), batch, key, deadline).await
    }

    async fn record<T: serde::Serialize>(
        &self,
        subject: String,
        batch: &T,
        key: &str,
        deadline: Duration,
    ) -> Result<(), AppendError> {
        let payload = encode_for(&subject, batch)?;
        self.publish_confirmed(subject, payload, key, AppendCondition::Any, deadline)
            .await
            .map(drop)
    }

    /// Reads the records of some kinds that were stored at `from_ms` or later (ms
    /// since 1970, by the server's clock), up to the present end of the ledger.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`].
    pub async fn read_ledger(
        &self,
        kinds: &[LedgerKind],
        from_ms: u64,
    ) -> Result<LedgerReader, ReadError> {
        let filters = kinds.iter().map(|kind| kind.filter().to_owned()).collect();
        let from = ReadFrom::At { unix_ms: from_ms };
        let reader = self.open_history(stream::LEDGER, filters, from).await?;
        let entries = reader.to_end_at_opening().with_entry_timeout();
        Ok(LedgerReader { entries, unreadable: 0 })
    }
}

/// An open reader of the ledger.
pub struct LedgerReader {
    entries: BoundedReader,
    unreadable: u64,
}

impl LedgerReader {
    /// Returns the next entry; `None` at the end. Entries that this build cannot
    /// decode are counted and skipped.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: this reader is finished, and another one must be opened.
    pub async fn next(&mut self) -> Result<Option<LedgerEntry>, ReadError> {
        while let Some(entry) = self.entries.next().await? {
            let kind = LedgerKind::of_subject(&entry.subject);
            match LedgerRecord::decode(kind, &entry.payload) {
                Ok(record) => {
                    return Ok(Some(LedgerEntry { stored_ms: entry.written_ms, record }));
                }
                Err(error) => {
                    self.unreadable += 1;
                    debug!(seq = entry.seq, error = %chain(&error), "entry of the ledger passed over");
                }
            }
        }
        Ok(None)
    }

    /// Returns the number of skipped entries so far.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Ends the reading and removes its consumer.
    pub async fn close(self) {
        self.entries.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_of_the_ledger_tells_its_kind() {
        let (gateway, worker) = ("reads".parse().unwrap(), "w-1".parse().unwrap());
        for (subject, kind) in [
            (subject::ledger(&gateway), LedgerKind::Outcomes),
            (subject::ledger_resumes(&gateway), LedgerKind::Resumes),
            (subject::ledger_dispatches(&worker), LedgerKind::Dispatches),
            (subject::LEDGER_READS.to_owned(), LedgerKind::Reads),
        ] {
            assert_eq!(LedgerKind::of_subject(&subject), kind, "{subject}");
        }
    }
}
