//! A window of the log, read entry by entry from the log or from a capsule.
//!
//! A reader must not disturb the system: its consumer is its own, lives in the server's
//! memory and ends with it. It is released while a slow replay shows one batch.

use std::{collections::VecDeque, time::Duration};

use anyhow::Context as _;
use qiyu_nats::{
    Bus,
    log::{LogEntry, LogReader, ReadFrom},
};
use tokio::time::timeout;

/// The end of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowEnd {
    /// At the last event that is in the log when the reading begins.
    Here,
    /// At this sequence, if it comes before [`WindowEnd::Here`].
    Seq(u64),
    /// After the events stored at this instant, ms since 1970; likewise.
    At(u64),
    /// Never: new events are read as they are appended.
    Never,
}

/// How a window is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadMode {
    /// Continuously, as fast as possible.
    Stream,
    /// In batches, without a consumer between them.
    Batched,
}

/// Entries of one batch.
const BATCH: usize = 1_000;
/// Silence after which the reader is opened again at its position.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Consecutive attempts to open a reader without an entry.
const ATTEMPTS_MAX: u32 = 5;

/// A window that is being read.
pub(crate) enum LogWindow {
    /// From the log.
    Log(Box<LogReading>),
    /// From a capsule.
    Capsule(std::vec::IntoIter<LogEntry>),
}

impl LogWindow {
    pub(crate) fn of_log(
        bus: Bus,
        filters: Vec<String>,
        from: ReadFrom,
        until: WindowEnd,
        read_mode: ReadMode,
    ) -> Self {
        let (reader, ready) = (None, VecDeque::new());
        let (attempts, done, read) = (0, false, 0);
        Self::Log(Box::new(LogReading {
            bus,
            filters,
            from,
            until,
            read_mode,
            reader,
            ready,
            attempts,
            done,
            read,
        }))
    }

    /// Returns the next entry, or `None` at the window's end. Cancel safe; only an
    /// opening of the reader is repeated.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<LogEntry>> {
        match self {
            Self::Log(window) => Box::pin(window.next()).await,
            Self::Capsule(entries) => Ok(entries.next()),
        }
    }

    /// Returns the number of entries read so far, wanted or not. `None` for a capsule.
    pub(crate) fn read(&self) -> Option<u64> {
        match self {
            Self::Log(window) => Some(window.read),
            Self::Capsule(_) => None,
        }
    }

    /// Deletes the consumer at once; otherwise the server would keep it until it is
    /// inactive.
    pub(crate) async fn close(self) {
        if let Self::Log(window) = self
            && let Some(reader) = window.reader
        {
            reader.close().await;
        }
    }
}

/// A window of the log.
pub(crate) struct LogReading {
    bus: Bus,
    filters: Vec<String>,
    /// The position at which the reader is opened next.
    from: ReadFrom,
    until: WindowEnd,
    read_mode: ReadMode,
    reader: Option<LogReader>,
    /// Read and not returned yet.
    ready: VecDeque<LogEntry>,
    attempts: u32,
    done: bool,
    read: u64,
}

impl LogReading {
    async fn next(&mut self) -> anyhow::Result<Option<LogEntry>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            if self.done {
                return Ok(None);
            }
            if self.reader.is_none() {
                self.open().await?;
                continue;
            }
            self.draw().await?;
        }
    }

    async fn open(&mut self) -> anyhow::Result<()> {
        let reader = match self.bus.read_history(self.filters.clone(), self.from).await {
            Ok(reader) => reader,
            Err(error) => return self.fail(error.into()).await,
        };
        if reader.pending_at_start() == 0 {
            // A following reader has caught up, and waits from here on.
            self.read_mode = ReadMode::Stream;
            if self.until != WindowEnd::Never {
                self.done = true;
                reader.close().await;
                return Ok(());
            }
        }
        self.reader = Some(reader);
        Ok(())
    }

    /// Receives the next entry from the open reader, or a batch of them.
    async fn draw(&mut self) -> anyhow::Result<()> {
        let wanted = |read_mode| match read_mode {
            ReadMode::Stream => 1,
            ReadMode::Batched => BATCH,
        };
        while !self.done && self.ready.len() < wanted(self.read_mode) {
            let Some(reader) = &mut self.reader else { return Ok(()) };
            let next = match self.until {
                WindowEnd::Never => Ok(reader.next().await),
                WindowEnd::Here | WindowEnd::Seq(_) | WindowEnd::At(_) => {
                    timeout(TIMEOUT, reader.next()).await
                }
            };
            match next {
                Ok(Ok(entry)) => self.take(entry),
                Ok(Err(error)) => return self.fail(error.into()).await,
                // The rest may have been deleted by age meanwhile: open the
                // reader again to find out.
                Err(_) => return self.fail(anyhow::anyhow!("the log has fallen silent")).await,
            }
        }
        if (self.done || self.read_mode == ReadMode::Batched)
            && let Some(reader) = self.reader.take()
        {
            reader.close().await;
        }
        Ok(())
    }

    fn take(&mut self, entry: LogEntry) {
        self.attempts = 0;
        self.read += 1;
        self.from = ReadFrom::After(entry.seq);
        let beyond = match self.until {
            WindowEnd::Here | WindowEnd::Never => false,
            WindowEnd::Seq(seq) => seq < entry.seq,
            WindowEnd::At(unix_ms) => unix_ms < entry.written_ms,
        };
        let last = entry.pending == 0;
        if last && self.until != WindowEnd::Never || beyond {
            self.done = true;
        }
        if last {
            self.read_mode = ReadMode::Stream; // nothing lies ready any more
        }
        if !beyond {
            self.ready.push_back(entry);
        }
    }

    /// Opens the reader again at its position, at most [`ATTEMPTS_MAX`] times in a row.
    async fn fail(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        self.reader = None;
        self.attempts += 1;
        if ATTEMPTS_MAX <= self.attempts {
            return Err(error).context("the log could not be read on");
        }
        tracing::debug!(error = %format!("{error:#}"), "reading the log anew");
        tokio::time::sleep(Duration::from_millis(200) * self.attempts).await;
        Ok(())
    }
}
