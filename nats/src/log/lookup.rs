//! Look-ups in the log: single entries, its bounds, ranges, and backwards.

use std::{collections::VecDeque, time::Duration};

use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind, Stream};

use crate::{
    bus::Bus,
    log::entry::{LogEntry, ReadError},
    stream,
};
use qiyu_schema::id::MsgId;

/// Sequences of the first window of a backward reading; each further window is
/// four times as wide.
const BACK_WINDOW_MIN: u64 = 4_096;
/// Time the next entry of a range may take.
const RANGE_ENTRY_TIMEOUT: Duration = Duration::from_secs(2);

/// The entries of a range.
#[derive(Clone, Debug)]
pub struct LogRange {
    /// Oldest first.
    pub entries: Vec<LogEntry>,
    /// Whether it reaches the requested end.
    pub complete: bool,
}

impl Bus {
    /// Returns one entry; `None` if the log does not hold it (any more).
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the log does not respond.
    pub async fn read_one(&self, msg_id: MsgId) -> Result<Option<LogEntry>, ReadError> {
        let log = self.log_stream().await?;
        match log.direct_get(msg_id.seq()).await {
            Ok(message) => return Ok(Some(message.into())),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => {}
            Err(error) => return Err(ReadError::unavailable(error)),
        }
        // A replica that is behind also reports "not found" for an entry it does
        // not have yet. The leader decides.
        match log.get_raw_message(msg_id.seq()).await {
            Ok(message) => Ok(Some(message.into())),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ReadError::unavailable(error)),
        }
    }

    /// Returns the newest entry under exactly `subject`, as the log's leader
    /// knows it; `None` if there is none (any more).
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the log does not respond.
    pub async fn read_last(&self, subject: &str) -> Result<Option<LogEntry>, ReadError> {
        match self.log_stream().await?.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(message.into())),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ReadError::unavailable(error)),
        }
    }

    /// Returns the first and the last sequence of the log.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the log does not respond.
    pub async fn log_bounds(&self) -> Result<(u64, u64), ReadError> {
        let log = self.control.get_stream(stream::IN).await.map_err(ReadError::unavailable)?;
        let state = &log.cached_info().state;
        Ok((state.first_sequence, state.last_sequence))
    }

    async fn log_stream(&self) -> Result<Stream<()>, ReadError> {
        self.control.get_stream_no_info(stream::IN).await.map_err(ReadError::unavailable)
    }

    /// Returns the entries in (after, until] that match any of `filters` and are
    /// `wanted`: the oldest `max`, oldest first.
    ///
    /// `until` itself must match a filter. Reading it proves that nothing before
    /// it is missing; the end of a lagging replica would not prove that.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; [`ReadError::Timeout`] after 2 s without an entry.
    pub async fn read_range(
        &self,
        filters: Vec<String>,
        after: u64,
        until: MsgId,
        max: usize,
        wanted: impl Fn(&LogEntry) -> bool,
    ) -> Result<LogRange, ReadError> {
        let mut reader = self.read_log(filters, after, None).await?;
        let mut found = Vec::new();
        while after < until.seq() {
            let entry = match tokio::time::timeout(RANGE_ENTRY_TIMEOUT, reader.next()).await {
                Ok(entry) => entry?,
                // The log may no longer hold `until` itself.
                Err(_) if until.seq() < self.log_bounds().await?.0 => break,
                Err(_) => return Err(ReadError::Timeout),
            };
            let msg_id = entry.msg_id();
            if msg_id <= until && wanted(&entry) {
                if found.len() >= max {
                    reader.close().await;
                    return Ok(LogRange { entries: found, complete: false });
                }
                found.push(entry);
            }
            if msg_id >= until {
                break;
            }
        }
        reader.close().await;
        Ok(LogRange { entries: found, complete: true })
    }

    /// Returns the newest `max` entries under exactly `subject` that lie before
    /// `before` and are `wanted`, oldest first.
    ///
    /// A stream is read forwards only. This reads a window before `before`, and
    /// then wider ones as long as they hold too few entries.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when the log does not respond.
    pub async fn read_back(
        &self,
        subject: &str,
        before: u64,
        max: usize,
        wanted: impl Fn(&LogEntry) -> bool,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let (first, last) = self.log_bounds().await?;
        // From the leader: the replica that is read from may not have it yet.
        let newest = self.read_last(subject).await?.map_or(0, |entry| entry.seq);
        let mut end = before.min(last + 1);
        let mut width = BACK_WINDOW_MIN;
        let mut found: VecDeque<LogEntry> = VecDeque::new();
        while first < end && found.len() < max {
            let start = end.saturating_sub(width).max(first);
            let window = self.read_window(subject, start, end, newest, &wanted).await?;
            for entry in window.into_iter().rev().take(max - found.len()) {
                found.push_front(entry);
            }
            (end, width) = (start, width.saturating_mul(4));
        }
        Ok(found.into())
    }

    /// Returns the wanted entries under `subject` in [start, end). `newest` is
    /// the sequence of the last entry under `subject`.
    async fn read_window(
        &self,
        subject: &str,
        start: u64,
        end: u64,
        newest: u64,
        wanted: impl Fn(&LogEntry) -> bool,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let mut reader =
            self.read_log(vec![subject.to_owned()], start.saturating_sub(1), None).await?;
        let (mut found, mut left) = (Vec::new(), reader.pending_at_start());
        let mut newest_awaited = (start..end).contains(&newest);
        while left > 0 || newest_awaited {
            let entry = tokio::time::timeout(RANGE_ENTRY_TIMEOUT, reader.next()).await;
            let entry = entry.map_err(|_| ReadError::Timeout)??;
            left = left.saturating_sub(1);
            newest_awaited = newest_awaited && entry.seq < newest;
            if entry.seq >= end {
                break;
            }
            if wanted(&entry) {
                found.push(entry);
            }
        }
        reader.close().await;
        Ok(found)
    }
}
