//! Readers of the log: with an open end, and up to the present end.

use std::time::Duration;

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use tokio::sync::watch;
use tracing::debug;

use crate::{
    bus::{Bus, ConsumerCleanup},
    chain,
    log::entry::{LogEntry, ReadError, ReadFrom, unix_ms},
    pull::PullStream,
    stream,
    trace_context::TraceContext,
};

/// The server removes a reader's consumer after this time of inactivity.
const READER_INACTIVE_MAX: Duration = Duration::from_secs(30);
/// The same for tools, which are often killed. A tool that was only busy
/// elsewhere opens a reader again.
const HISTORY_INACTIVE_MAX: Duration = Duration::from_secs(10);
/// Time limit for the next entry where a reading is not worth a longer wait.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(5);
/// A cluster may place a new consumer on a server that has just died; the next
/// attempt may be placed on any of them.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// An open reader of a stream, usually the log. It acknowledges nothing: its
/// owner records its own position.
pub struct LogReader {
    stream: Stream<()>,
    name: String,
    messages: PullStream,
    /// The consumer's number of the last entry.
    delivered: u64,
    pending: u64,
    /// Of the entry read last.
    trace_context: Option<TraceContext>,
    reconnects: watch::Receiver<u64>,
    cleanup: ConsumerCleanup,
}

impl Bus {
    /// Reads the entries of the log after `after` that match any of `filters`,
    /// in log order.
    ///
    /// The consumer belongs to this reader and is removed with it, or after 30 s
    /// of inactivity. `name` must be unique among open readers; `None` lets the
    /// server choose.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`].
    pub async fn read_log(
        &self,
        filters: Vec<String>,
        after: u64,
        name: Option<String>,
    ) -> Result<LogReader, ReadError> {
        let start = DeliverPolicy::ByStartSequence { start_sequence: after + 1 };
        self.open_reader(stream::IN, filters, start, name, READER_INACTIVE_MAX).await
    }

    /// Reads much of the log for a tool. Without filters it reads all entries.
    /// The consumer is removed after 10 s of inactivity.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`].
    pub async fn read_history(
        &self,
        filters: Vec<String>,
        from: ReadFrom,
    ) -> Result<LogReader, ReadError> {
        self.open_history(stream::IN, filters, from).await
    }

    /// Opens a reader as [`Bus::read_history`] does, of any stream.
    pub(crate) async fn open_history(
        &self,
        stream: &str,
        filters: Vec<String>,
        from: ReadFrom,
    ) -> Result<LogReader, ReadError> {
        let start = match from {
            ReadFrom::After(seq) => DeliverPolicy::ByStartSequence { start_sequence: seq + 1 },
            ReadFrom::At { unix_ms } if filters.len() > 1 => {
                self.first_sequence_at(stream, unix_ms).await?
            }
            ReadFrom::At { unix_ms } => start_at_time(unix_ms)?,
        };
        self.open_reader(stream, filters, start, None, HISTORY_INACTIVE_MAX).await
    }

    /// Returns a start by sequence for a start by time.
    ///
    /// A consumer with several filters that starts by time skips entries after
    /// its server was restarted (2.15.1, measured: 4 of 33). One that starts by
    /// sequence, or with one filter or none, does not.
    async fn first_sequence_at(
        &self,
        stream: &str,
        unix_ms: u64,
    ) -> Result<DeliverPolicy, ReadError> {
        let start = start_at_time(unix_ms)?;
        let mut reader =
            self.open_reader(stream, vec![], start, None, HISTORY_INACTIVE_MAX).await?;
        let start = match reader.pending_at_start() {
            0 => DeliverPolicy::New,
            _ => DeliverPolicy::ByStartSequence { start_sequence: reader.next().await?.seq },
        };
        reader.close().await;
        Ok(start)
    }

    async fn open_reader(
        &self,
        stream: &str,
        filters: Vec<String>,
        deliver_policy: DeliverPolicy,
        name: Option<String>,
        inactive_threshold: Duration,
    ) -> Result<LogReader, ReadError> {
        let stream = self.consume.get_stream_no_info(stream).await;
        let stream = stream.map_err(ReadError::unavailable)?;
        let creating = stream.create_consumer(pull::Config {
            name,
            deliver_policy,
            ack_policy: AckPolicy::None,
            filter_subjects: filters,
            inactive_threshold,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        });
        let consumer = tokio::time::timeout(OPEN_TIMEOUT, Box::pin(creating))
            .await
            .map_err(ReadError::unavailable)?
            .map_err(ReadError::unavailable)?;
        let pending = consumer.cached_info().num_pending;
        let name = consumer.cached_info().name.clone();
        let messages = PullStream::open(consumer).await.map_err(ReadError::unavailable)?;
        let (reconnects, cleanup) = (self.reconnects(), self.cleanup);
        let (delivered, trace_context) = (0, None);
        Ok(LogReader {
            stream,
            name,
            messages,
            delivered,
            pending,
            trace_context,
            reconnects,
            cleanup,
        })
    }
}

fn start_at_time(unix_ms: u64) -> Result<DeliverPolicy, ReadError> {
    let nanos = i128::from(unix_ms) * 1_000_000;
    let start_time =
        time::OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(ReadError::unavailable)?;
    Ok(DeliverPolicy::ByStartTime { start_time })
}

impl LogReader {
    /// Returns the number of entries that matched when the reader was opened.
    pub fn pending_at_start(&self) -> u64 {
        self.pending
    }

    /// Limits this reader to the entries that matched when it was opened.
    pub fn to_end_at_opening(self) -> BoundedReader {
        self.bounded(ReadEnd::AtOpening)
    }

    /// Limits this reader to the present end: it also returns the entries that are
    /// stored during the reading, until it has caught up.
    pub fn to_present_end(self) -> BoundedReader {
        self.bounded(ReadEnd::Present)
    }

    fn bounded(self, end: ReadEnd) -> BoundedReader {
        BoundedReader { left: self.pending, end, entry_timeout: None, reader: self }
    }

    /// Returns the next entry, and waits for it to be stored.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: this reader is finished, and another one must be opened.
    pub async fn next(&mut self) -> Result<LogEntry, ReadError> {
        let next = tokio::select! {
            biased;
            // A consumer in memory ends with its server. Its silence would be
            // noticed only after missed heartbeats.
            Ok(()) = self.reconnects.changed() => return Err(ReadError::Reconnected),
            next = self.messages.next() => next,
        };
        let message = match next {
            Ok(message) => message,
            Err(error) => {
                debug!(error = %chain(&*error), "log reader interrupted");
                return Err(ReadError::Timeout);
            }
        };
        let info = message.info().map_err(ReadError::unavailable)?;
        // A gap in the consumer's own numbers is the only sign of a lost entry.
        if info.consumer_sequence != self.delivered + 1 {
            let (got, expected_after) = (info.consumer_sequence, self.delivered);
            return Err(ReadError::Gap { got, expected_after });
        }
        self.delivered = info.consumer_sequence;
        self.trace_context = TraceContext::of(message.headers.as_ref());
        Ok(LogEntry {
            seq: info.stream_sequence,
            subject: message.subject.to_string(),
            pending: info.pending,
            written_ms: unix_ms(info.published),
            payload: message.message.payload,
        })
    }

    /// Takes the trace context of the entry that was read last.
    pub fn take_trace_context(&mut self) -> Option<TraceContext> {
        self.trace_context.take()
    }

    /// Ends the reading and removes its consumer: a stream has only so many.
    pub async fn close(self) {
        if self.cleanup == ConsumerCleanup::Expire {
            return;
        }
        if let Err(error) = self.stream.delete_consumer(&self.name).await {
            debug!(error = %chain(&error), "reader's consumer not removed, it ends by itself");
        }
    }
}

/// The end of a bounded reading.
#[derive(Clone, Copy)]
enum ReadEnd {
    AtOpening,
    Present,
}

/// A reader that ends.
pub struct BoundedReader {
    reader: LogReader,
    left: u64,
    end: ReadEnd,
    /// `None`: only missed heartbeats end the wait for an entry.
    entry_timeout: Option<Duration>,
}

impl BoundedReader {
    /// Returns the same reader with a limit of 5 s on the wait for each entry.
    pub(crate) fn with_entry_timeout(self) -> Self {
        Self { entry_timeout: Some(ENTRY_TIMEOUT), ..self }
    }

    /// Returns the next entry; `None` at the end.
    ///
    /// # Errors
    ///
    /// As [`LogReader::next`].
    pub async fn next(&mut self) -> Result<Option<LogEntry>, ReadError> {
        if self.left == 0 {
            return Ok(None);
        }
        let next = self.reader.next();
        let entry = match self.entry_timeout {
            None => next.await?,
            Some(limit) => {
                tokio::time::timeout(limit, next).await.map_err(|_| ReadError::Timeout)??
            }
        };
        self.left = match self.end {
            // Entries may be deleted while they are being read.
            ReadEnd::AtOpening => entry.pending.min(self.left - 1),
            ReadEnd::Present => entry.pending,
        };
        Ok(Some(entry))
    }

    /// Whether every entry was read.
    pub fn is_at_end(&self) -> bool {
        self.left == 0
    }

    /// Ends the reading and removes its consumer.
    pub async fn close(self) {
        self.reader.close().await;
    }
}
