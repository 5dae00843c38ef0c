//! A window of the log, entry by entry: from the log itself or from a capsule.
//!
//! Whoever reads for people must not disturb: a reader's consumer is its own,
//! lives in the server's memory and goes with it, and is not kept while
//! somebody looks at one minute of the log for a minute.

use std::{collections::VecDeque, time::Duration};

use anyhow::Context as _;
use qiyu_nats::{
    Bus,
    log::{LogEntry, LogReader, ReadFrom},
};
use tokio::time::timeout;

/// Where a window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WindowEnd {
    /// With what is in the log when the reading begins.
    Here,
    /// With this sequence, if it gets there before [`WindowEnd::Here`].
    Seq(u64),
    /// With what was stored at this instant, ms since 1970; likewise.
    At(u64),
    /// Never: what is appended is read as it comes.
    Never,
}

/// How a window is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadMode {
    /// As fast as it goes.
    Stream,
    /// A little, then nothing for as long as that lasts.
    Batched,
}

/// Entries read at once for somebody who takes their time.
const BATCH: usize = 1_000;
/// Silence after which the reading is begun anew from where it stands.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Beginnings in a row that brought nothing.
const ATTEMPTS_MAX: u32 = 5;

/// A window, being read.
pub(crate) enum LogWindow {
    /// Of the log.
    Log(Box<LogReading>),
    /// Out of a file.
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

    /// The next entry; `None` at the window's end. Nothing is lost when the
    /// future is dropped, except a beginning, which is made again.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<LogEntry>> {
        match self {
            Self::Log(window) => Box::pin(window.next()).await,
            Self::Capsule(entries) => Ok(entries.next()),
        }
    }

    /// Entries read so far, wanted or not.
    pub(crate) fn read(&self) -> Option<u64> {
        match self {
            Self::Log(window) => Some(window.read),
            Self::Capsule(_) => None,
        }
    }

    /// Removes what the server keeps for this reading, rather than waiting until it does.
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
    /// Where the next beginning is made.
    from: ReadFrom,
    until: WindowEnd,
    read_mode: ReadMode,
    reader: Option<LogReader>,
    /// Read and not handed out yet.
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
            // Whoever follows has caught up, and waits from here on.
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

    /// Takes the next entry from the open reader, or a sip of them.
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
                // What was left may have been forgotten meanwhile: begin anew to see.
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

    /// Begins anew from where it stands, unless that has not helped for long.
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
