//! The ledger, written and read: what became of messages.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::debug;

use crate::{
    bus::Bus,
    chain,
    log::{AppendCondition, AppendError, Extent, ReadError, ReadFrom, encoded},
    stream,
};
use qiyu_schema::{
    codec,
    id::{GatewayId, WorkerId},
    ledger::{DispatchBatch, LedgerBatch, OUTCOMES_MAX, ReadBatch},
    subject,
};

/// What of the ledger is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerKind {
    /// How messages ended at gateways, but for resumes.
    Outcomes,
    /// How messages that a resume brought ended.
    Resumes,
    /// What fan-out handed to gateways.
    Dispatches,
    /// What was read over HTTP.
    Reads,
}

impl LedgerKind {
    fn filter(self) -> String {
        let filter = match self {
            Self::Outcomes => subject::ANY_OUTCOMES,
            Self::Resumes => subject::ANY_RESUMES,
            Self::Dispatches => subject::ANY_DISPATCHES,
            Self::Reads => subject::LEDGER_READS,
        };
        filter.to_owned()
    }
}

/// `first`, and what comes within `wait` or until there are [`OUTCOMES_MAX`]: what
/// is written to the ledger together.
pub async fn collect_batch<T>(first: T, more: &mut mpsc::Receiver<T>, wait: Duration) -> Vec<T> {
    let mut gathered = vec![first];
    let waited = tokio::time::sleep(wait);
    tokio::pin!(waited);
    while gathered.len() < OUTCOMES_MAX {
        tokio::select! {
            biased; // what is there already comes along
            one = more.recv() => match one {
                Some(one) => gathered.push(one),
                None => break,
            },
            () = &mut waited => break,
        }
    }
    gathered
}

/// One entry of the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerEntry {
    /// When it was stored, by the server's clock, ms since 1970.
    pub stored_ms: u64,
    /// What it says.
    pub page: LedgerRecord,
}

/// What an entry of the ledger says.
#[derive(Clone, Debug, PartialEq)]
pub enum LedgerRecord {
    /// Of [`LedgerKind::Outcomes`] and [`LedgerKind::Resumes`].
    Outcomes(LedgerBatch),
    /// Of [`LedgerKind::Dispatches`].
    Dispatches(DispatchBatch),
    /// Of [`LedgerKind::Reads`].
    Reads(ReadBatch),
}

impl Bus {
    /// Stores outcomes. Before their envelopes are acknowledged.
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

    /// Stores outcomes of what resumes brought.
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

    /// Stores what a worker handed over.
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

    /// Stores what was read over HTTP.
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
        let payload = encoded(&subject, batch)?;
        self.publish_stored(subject, payload, key, AppendCondition::Any, deadline).await.map(drop)
    }

    /// Reads what was stored on some shelves of the ledger at `from_ms` (ms
    /// since 1970, by the server's clock) or later, up to where it ends now.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`].
    pub async fn read_ledger(
        &self,
        shelves: &[LedgerKind],
        from_ms: u64,
    ) -> Result<LedgerReader, ReadError> {
        let filters = shelves.iter().map(|shelf| shelf.filter()).collect();
        let reader =
            self.open_history(stream::LEDGER, filters, ReadFrom::At { unix_ms: from_ms }).await?;
        Ok(LedgerReader { entries: Extent::of(reader), unreadable: 0 })
    }
}

/// An open reading of the ledger.
pub struct LedgerReader {
    entries: Extent,
    unreadable: u64,
}

impl LedgerReader {
    /// The next entry; `None` at what was the end when the reading was opened.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: this reader is finished, open another one.
    pub async fn next(&mut self) -> Result<Option<LedgerEntry>, ReadError> {
        while let Some(entry) = self.entries.next().await? {
            let page = if entry.subject.ends_with(".handovers") {
                codec::decode(&entry.payload).map(LedgerRecord::Dispatches)
            } else if entry.subject.ends_with(".reads") {
                codec::decode(&entry.payload).map(LedgerRecord::Reads)
            } else {
                codec::decode(&entry.payload).map(LedgerRecord::Outcomes)
            };
            match page {
                Ok(page) => return Ok(Some(LedgerEntry { stored_ms: entry.written_ms, page })),
                Err(error) => {
                    self.unreadable += 1;
                    debug!(seq = entry.seq, error = %chain(&error), "entry of the ledger passed over");
                }
            }
        }
        Ok(None)
    }

    /// Entries so far that this build cannot read.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Ends the reading.
    pub async fn close(self) {
        self.entries.close().await;
    }
}
