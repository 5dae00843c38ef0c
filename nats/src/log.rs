//! The log: appending to it, and reading it back.

use std::{collections::VecDeque, time::Duration};

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    context::PublishErrorKind,
    message::{PublishMessage, StreamMessage},
    stream::{DirectGetErrorKind, RawMessageErrorKind, Stream},
};
use bytes::Bytes;
use tokio::{sync::watch, time::Instant};
use tracing::debug;

use crate::{
    bus::{self, Bus, Parting},
    chain,
    pull::Pulling,
    stream,
    trace_context::TraceContext,
};
use qiyu_schema::{
    codec::{self, DecodeError},
    event::Record,
    id::{MsgId, Partition, RoomId},
};

/// Where an event was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its position. Of the first copy, if this one was a repeat.
    pub msg_id: MsgId,
    /// Whether an event with this key had been stored before.
    pub repeated: bool,
}

/// Why an event is not in the log.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// No PubAck until the deadline. It may be stored; the same key may be tried again.
    #[error("{subject} was not confirmed within {waited:?}")]
    Unconfirmed {
        /// Where to.
        subject: String,
        /// How long it was tried.
        waited: Duration,
        /// The last attempt's fault.
        source: async_nats::jetstream::context::PublishError,
    },
    /// Something else is there already.
    #[error("{subject} is already taken")]
    Taken {
        /// Where to.
        subject: String,
    },
    /// It can never be stored.
    #[error("{subject} was refused")]
    Refused {
        /// Where to.
        subject: String,
        /// Why.
        source: async_nats::Error,
    },
}

/// How long an append is tried before its sender is told that it failed.
pub const APPEND_DEADLINE: Duration = Duration::from_secs(10);
/// First pause between attempts; doubled up to [`APPEND_RETRY_MAX`].
const APPEND_RETRY_MIN: Duration = Duration::from_millis(50);
/// Last pause between attempts.
const APPEND_RETRY_MAX: Duration = Duration::from_millis(500);

/// What the subject must be like for an append to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendCondition {
    /// Nothing is asked.
    Any,
    /// Nothing was ever stored under this subject: the first one wins.
    First,
}

impl Bus {
    /// Stores `record`, and waits for the log to say so.
    ///
    /// The same `key` again within [`stream::DEDUP_WINDOW`] stores nothing and
    /// returns the first position. Silence is answered by trying the same key
    /// again, so an answer means exactly one copy.
    ///
    /// # Errors
    ///
    /// - [`AppendError::Unconfirmed`] after `deadline`: unknown, the same key may be tried again.
    /// - [`AppendError::Taken`]: `condition` did not hold.
    /// - [`AppendError::Refused`]: too large, or not encodable; trying again cannot help.
    ///
    /// # Source
    ///
    /// nats-server `server/stream.go`: a duplicate `Nats-Msg-Id` is answered
    /// with the sequence kept for it and `"duplicate": true`.
    pub async fn append(
        &self,
        subject: String,
        record: &Record,
        key: &str,
        condition: AppendCondition,
        deadline: Duration,
    ) -> Result<Appended, AppendError> {
        let payload = encoded(&subject, record)?;
        let ack = self.publish_stored(subject, payload, key, condition, deadline).await?;
        Ok(Appended { msg_id: MsgId::at(ack.sequence), repeated: ack.duplicate })
    }

    /// As [`Bus::append`], whatever is there already, with the trail of the
    /// message this is about.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`], never [`AppendError::Taken`].
    pub async fn append_traced(
        &self,
        subject: String,
        record: &Record,
        key: &str,
        deadline: Duration,
        trace_context: Option<&TraceContext>,
    ) -> Result<Appended, AppendError> {
        let payload = encoded(&subject, record)?;
        let any = AppendCondition::Any;
        let ack = self.publish_traced(subject, payload, key, any, deadline, trace_context).await?;
        Ok(Appended { msg_id: MsgId::at(ack.sequence), repeated: ack.duplicate })
    }

    /// A room id no room ever had: the position of an empty entry in a stream of its own.
    ///
    /// # Errors
    ///
    /// [`AppendError`]; an id may then be lost, which harms nobody.
    pub async fn next_room_id(&self, deadline: Duration) -> Result<RoomId, AppendError> {
        let subject = qiyu_schema::subject::ROOM_IDS.to_owned();
        // A repeat after a timeout gets the id of the first copy.
        let key = format!("id:{:032x}", qiyu_schema::ticket::fresh_nonce());
        let ack = self
            .publish_stored(subject.clone(), Bytes::new(), &key, AppendCondition::Any, deadline)
            .await?;
        RoomId::try_from(ack.sequence)
            .map_err(|error| AppendError::Refused { subject, source: error.into() })
    }

    /// Makes every further room id larger than `taken`: rooms of another system
    /// were brought here.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the stream of ids does not answer.
    ///
    /// # Source
    ///
    /// nats-server `server/filestore.go`, `Compact`: purging up to a sequence
    /// above the last one makes the next one that sequence.
    pub async fn skip_room_ids(&self, taken: RoomId) -> Result<(), ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let ids = self.control.get_stream(stream::IDS).await;
        let ids = ids.map_err(|error| open(error.into()))?;
        if ids.cached_info().state.last_sequence < taken.get() {
            let purged = ids.purge().sequence(taken.get() + 1).await;
            purged.map_err(|error| open(error.into()))?;
        }
        Ok(())
    }

    /// Publishes to any stream until it is confirmed.
    pub(crate) async fn publish_stored(
        &self,
        subject: String,
        payload: Bytes,
        key: &str,
        condition: AppendCondition,
        deadline: Duration,
    ) -> Result<async_nats::jetstream::publish::PublishAck, AppendError> {
        self.publish_traced(subject, payload, key, condition, deadline, None).await
    }

    async fn publish_traced(
        &self,
        subject: String,
        payload: Bytes,
        key: &str,
        condition: AppendCondition,
        deadline: Duration,
        trace_context: Option<&TraceContext>,
    ) -> Result<async_nats::jetstream::publish::PublishAck, AppendError> {
        let started = Instant::now();
        let mut pause = APPEND_RETRY_MIN;
        loop {
            let message = PublishMessage::build().payload(payload.clone()).message_id(key);
            let message = match condition {
                AppendCondition::Any => message,
                AppendCondition::First => message.expected_last_subject_sequence(0),
            };
            let message = with_trace_context(message, trace_context);
            let attempt =
                async { self.publish.send_publish(subject.clone(), message).await?.await };
            let error = match attempt.await {
                Ok(ack) => return Ok(ack),
                Err(error) => error,
            };
            match error.kind() {
                PublishErrorKind::WrongLastSequence => return Err(AppendError::Taken { subject }),
                kind if !bus::is_transient(kind, &error) => {
                    return Err(AppendError::Refused { subject, source: error.into() });
                }
                _ if deadline <= started.elapsed() + pause => {
                    let waited = started.elapsed();
                    return Err(AppendError::Unconfirmed { subject, waited, source: error });
                }
                _ => {}
            }
            debug!(%subject, error = %chain(&error), "append not confirmed, trying again");
            self.metrics.retries.inc();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(APPEND_RETRY_MAX);
        }
    }

    /// Reads much of the log at once, from a position or an instant on: for
    /// people and tools. No filters: all of it. The consumer is gone 10 s after
    /// the reader fell silent.
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

    /// As [`Bus::read_history`], of any stream.
    pub(crate) async fn open_history(
        &self,
        stream: &str,
        filters: Vec<String>,
        from: ReadFrom,
    ) -> Result<LogReader, ReadError> {
        let deliver_policy = match from {
            ReadFrom::After(seq) => DeliverPolicy::ByStartSequence { start_sequence: seq + 1 },
            // From a time, a consumer with several filters passes over entries when its
            // server has been restarted (2.15.1, measured: 4 of 33); from a sequence, or
            // with one filter or none, it does not.
            ReadFrom::At { unix_ms } if 1 < filters.len() => {
                let start = by_start_time(unix_ms)?;
                let mut any =
                    self.open_reader(stream, vec![], start, None, HISTORY_SILENCE).await?;
                let start = match any.pending_at_start() {
                    0 => DeliverPolicy::New,
                    _ => {
                        let start_sequence = any.next().await?.seq;
                        DeliverPolicy::ByStartSequence { start_sequence }
                    }
                };
                any.close().await;
                start
            }
            ReadFrom::At { unix_ms } => by_start_time(unix_ms)?,
        };
        self.open_reader(stream, filters, deliver_policy, None, HISTORY_SILENCE).await
    }

    /// Reads the log from `after` on: what matches any of `filters`, in log order.
    ///
    /// The consumer belongs to this reader alone and goes away with it, or 30 s
    /// after it fell silent. `name`: unique among living readers; `None` lets
    /// the server choose.
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
        self.open_reader(stream::IN, filters, start, name, READ_SILENCE).await
    }

    async fn open_reader(
        &self,
        stream: &str,
        filters: Vec<String>,
        deliver_policy: DeliverPolicy,
        name: Option<String>,
        silence: Duration,
    ) -> Result<LogReader, ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let log = self.consume.get_stream_no_info(stream).await;
        let log = log.map_err(|error| open(error.into()))?;
        let creating = log.create_consumer(pull::Config {
            name,
            deliver_policy,
            ack_policy: AckPolicy::None,
            filter_subjects: filters,
            inactive_threshold: silence,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        });
        let consumer = tokio::time::timeout(OPEN_PATIENCE, Box::pin(creating))
            .await
            .map_err(|elapsed| open(elapsed.into()))?
            .map_err(|error| open(error.into()))?;
        let pending = consumer.cached_info().num_pending;
        let name = consumer.cached_info().name.clone();
        let messages = Pulling::from(consumer).await.map_err(open)?;
        let reconnects = self.reconnects();
        let (delivered, trace_context, parting) = (0, None, self.parting);
        Ok(LogReader {
            log,
            name,
            messages,
            delivered,
            pending,
            trace_context,
            reconnects,
            parting,
        })
    }

    /// The `wanted` of what matches any of `filters` in (after, until], oldest
    /// first, `max` of them at most. `until` itself must match a filter: seeing
    /// it is the proof that nothing before it is missing, which an "end of what
    /// I have" of a lagging replica is not.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; after 2 s without news of `until` it is [`ReadError::Timeout`].
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
            let entry = match tokio::time::timeout(RANGE_PATIENCE, reader.next()).await {
                Ok(entry) => entry?,
                // The log may have forgotten `until` itself.
                Err(_) if until.seq() < self.log_bounds().await?.0 => break,
                Err(_) => return Err(ReadError::Timeout),
            };
            let msg_id = entry.msg_id();
            if msg_id <= until && wanted(&entry) {
                if max <= found.len() {
                    reader.close().await;
                    return Ok(LogRange { entries: found, complete: false });
                }
                found.push(entry);
            }
            if until <= msg_id {
                break;
            }
        }
        reader.close().await;
        Ok(LogRange { entries: found, complete: true })
    }

    /// The newest `max` entries under exactly `subject` that lie before `before`
    /// and are `wanted`, oldest first.
    ///
    /// The log reads forwards only: so a window before `before` is read, and a
    /// wider one as long as it holds too few.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when the log does not answer.
    pub async fn read_back(
        &self,
        subject: &str,
        before: u64,
        max: usize,
        wanted: impl Fn(&LogEntry) -> bool,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let (first, last) = self.log_bounds().await?;
        // By the leader's word: the replica that is read from may not have it yet.
        let newest = self.read_last(subject).await?.map_or(0, |entry| entry.seq);
        let mut end = before.min(last + 1);
        let mut window = BACK_WINDOW_MIN;
        let mut found: VecDeque<LogEntry> = VecDeque::new();
        while first < end && found.len() < max {
            let start = end.saturating_sub(window).max(first);
            let mut reader = self.read_log(vec![subject.to_owned()], start - 1, None).await?;
            let (mut here, mut left) = (Vec::new(), reader.pending_at_start());
            let mut awaited = (start..end).contains(&newest);
            while 0 < left || awaited {
                let entry = tokio::time::timeout(RANGE_PATIENCE, reader.next()).await;
                let entry = entry.map_err(|_| ReadError::Timeout)??;
                (left, awaited) = (left.saturating_sub(1), awaited && entry.seq < newest);
                if end <= entry.seq {
                    break;
                }
                if wanted(&entry) {
                    here.push(entry);
                }
            }
            reader.close().await;
            for entry in here.into_iter().rev().take(max - found.len()) {
                found.push_front(entry);
            }
            (end, window) = (start, window.saturating_mul(4));
        }
        Ok(found.into())
    }

    /// One entry of the log.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the log does not answer. `Ok(None)`: not there (any more).
    pub async fn read_one(&self, msg_id: MsgId) -> Result<Option<LogEntry>, ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let log = self.control.get_stream_no_info(stream::IN).await;
        let log = log.map_err(|error| open(error.into()))?;
        let entry = |message: StreamMessage| LogEntry {
            seq: message.sequence,
            subject: message.subject.to_string(),
            payload: message.payload,
            pending: 0,
            written_ms: unix_ms(message.time),
        };
        match log.direct_get(msg_id.seq()).await {
            Ok(message) => return Ok(Some(entry(message))),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => {}
            Err(error) => return Err(open(error.into())),
        }
        // A replica that is behind says so of what it does not have yet: only the
        // leader's word counts.
        match log.get_raw_message(msg_id.seq()).await {
            Ok(message) => Ok(Some(entry(message))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(open(error.into())),
        }
    }

    /// The newest entry under exactly `subject`, as the log's leader knows it.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the log does not answer. `Ok(None)`: never written, or forgotten.
    pub async fn read_last(&self, subject: &str) -> Result<Option<LogEntry>, ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let log = self.control.get_stream_no_info(stream::IN).await;
        let log = log.map_err(|error| open(error.into()))?;
        match log.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(LogEntry {
                seq: message.sequence,
                subject: message.subject.to_string(),
                payload: message.payload,
                pending: 0,
                written_ms: unix_ms(message.time),
            })),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(open(error.into())),
        }
    }

    /// The first and the last sequence of the log.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the log does not answer.
    pub async fn log_bounds(&self) -> Result<(u64, u64), ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let log = self.control.get_stream(stream::IN).await;
        let log = log.map_err(|error| open(error.into()))?;
        let state = &log.cached_info().state;
        Ok((state.first_sequence, state.last_sequence))
    }

    /// Keeps what could not be decoded, with where it stood and why.
    pub async fn dead_letter(&self, entry: &LogEntry, reason: DeadLetterReason) {
        let key = format!("dead:{}", entry.seq);
        let subject = qiyu_schema::subject::dead(reason.as_str());
        let stored = self.publish_stored(
            subject,
            entry.payload.clone(),
            &key,
            AppendCondition::Any,
            Duration::from_secs(2),
        );
        if let Err(error) = stored.await {
            tracing::error!(seq = entry.seq, error = %chain(&error), "undecodable event not copied to im.dead");
        }
    }
}

/// The bytes of what is to be stored under `subject`.
pub(crate) fn encoded<T: serde::Serialize>(subject: &str, value: &T) -> Result<Bytes, AppendError> {
    codec::encode(value)
        .map_err(|error| AppendError::Refused { subject: subject.to_owned(), source: error.into() })
}

fn by_start_time(unix_ms: u64) -> Result<DeliverPolicy, ReadError> {
    let nanos = i128::from(unix_ms) * 1_000_000;
    let start_time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .map_err(|error| ReadError::Unavailable { source: error.into() })?;
    Ok(DeliverPolicy::ByStartTime { start_time })
}

/// The message, with the trail beside its bytes.
pub(crate) fn with_trace_context(
    message: PublishMessage,
    trace_context: Option<&TraceContext>,
) -> PublishMessage {
    match trace_context.map(TraceContext::header) {
        Some((name, value)) => message.header(name, value.as_str()),
        None => message,
    }
}

/// Why an event is dead.
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

fn unix_ms(at: time::OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// How long a reader may say nothing before its consumer goes away.
const READ_SILENCE: Duration = Duration::from_secs(30);
/// The same for people and tools, who are killed more often than they matter;
/// whoever was only busy elsewhere begins anew.
const HISTORY_SILENCE: Duration = Duration::from_secs(10);

/// Where a reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// Behind this position; 0: at the beginning.
    After(u64),
    /// With the first entry stored then or later.
    At {
        /// Milliseconds since 1970, by the server's clock.
        unix_ms: u64,
    },
}

/// Sequences of the first window when reading backwards; each further one is four times as wide.
const BACK_WINDOW_MIN: u64 = 4_096;
/// How long a range's next entry may take.
const RANGE_PATIENCE: Duration = Duration::from_secs(2);

/// Reading the log failed; start again from a known position.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log did not answer.
    #[error("read the log")]
    Unavailable {
        /// NATS's words.
        source: async_nats::Error,
    },
    /// Entries are missing between two that arrived.
    #[error("the log's reader got entry {got} after {expected_after}: some are missing")]
    Gap {
        /// The consumer's number of what came.
        got: u64,
        /// And of what came before.
        expected_after: u64,
    },
    /// The bus was away and is back.
    #[error("the log's reader has lost its connection")]
    Reconnected,
    /// Nothing came, not even a sign of life, for too long.
    #[error("the log's reader has fallen silent")]
    Timeout,
}

/// One entry as it lies in the log.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Its position.
    pub seq: u64,
    /// Its subject.
    pub subject: String,
    /// The encoded [`Record`].
    pub payload: Bytes,
    /// How many further entries matched when this one was read in a row; else 0.
    pub pending: u64,
    /// When it was stored, by the server's clock, ms since 1970.
    pub written_ms: u64,
}

impl LogEntry {
    /// Its id.
    pub fn msg_id(&self) -> MsgId {
        MsgId::at(self.seq)
    }

    /// The partition it belongs to. `None`: it does not lie in the log.
    pub fn partition(&self) -> Option<Partition> {
        self.subject.split('.').nth(2)?.parse().ok()
    }

    /// What it says.
    ///
    /// # Errors
    ///
    /// When the bytes are no [`Record`]; they never will be.
    pub fn record(&self) -> Result<Record, DecodeError> {
        codec::decode(&self.payload)
    }
}

/// A stretch of the log.
#[derive(Clone, Debug)]
pub struct LogRange {
    /// Oldest first.
    pub entries: Vec<LogEntry>,
    /// Whether it reaches to where it was asked to.
    pub complete: bool,
}

/// An open reading of the log. No acknowledgements: the reader records its own position.
pub struct LogReader {
    log: Stream<()>,
    name: String,
    messages: Pulling,
    delivered: u64,
    pending: u64,
    /// Of the entry read last.
    trace_context: Option<TraceContext>,
    reconnects: watch::Receiver<u64>,
    parting: Parting,
}

/// How long the next entry of a reading that ends may take.
const NEXT_PATIENCE: Duration = Duration::from_secs(5);

/// A reading up to where what is read ended when it was opened.
pub(crate) struct Extent {
    reader: LogReader,
    left: u64,
}

impl Extent {
    pub(crate) fn of(reader: LogReader) -> Self {
        Self { left: reader.pending_at_start(), reader }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    ///
    /// As [`LogReader::next`]; [`ReadError::Timeout`] after 5 s without one.
    pub(crate) async fn next(&mut self) -> Result<Option<LogEntry>, ReadError> {
        if self.left == 0 {
            return Ok(None);
        }
        let entry = tokio::time::timeout(NEXT_PATIENCE, self.reader.next()).await;
        let entry = entry.map_err(|_| ReadError::Timeout)??;
        self.left = entry.pending.min(self.left - 1);
        Ok(Some(entry))
    }

    pub(crate) async fn close(self) {
        self.reader.close().await;
    }
}

/// How long a new consumer may take. A cluster may still give it to a server
/// that has just died; the next attempt is given to any of them again.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);

impl LogReader {
    /// Ends the reading, and with it its consumer, of which a stream has only so many.
    pub async fn close(self) {
        if self.parting == Parting::Left {
            return;
        }
        if let Err(error) = self.log.delete_consumer(&self.name).await {
            debug!(error = %chain(&error), "reader's consumer not removed, it ends by itself");
        }
    }

    /// The trail of the entry that was read last.
    pub fn take_trace_context(&mut self) -> Option<TraceContext> {
        self.trace_context.take()
    }

    /// How many entries matched when the reading was opened.
    pub fn pending_at_start(&self) -> u64 {
        self.pending
    }

    /// The next entry; waits for it to be written.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: this reader is finished, open another one.
    pub async fn next(&mut self) -> Result<LogEntry, ReadError> {
        let next = tokio::select! {
            biased;
            // A consumer in memory does not outlive its server, and its
            // silence would only be noticed by missed heartbeats.
            Ok(()) = self.reconnects.changed() => return Err(ReadError::Reconnected),
            next = self.messages.next() => next,
        };
        let message = match next {
            Ok(message) => message,
            Err(error) => {
                debug!(error = %chain(&*error), "log reader stumbles");
                return Err(ReadError::Timeout);
            }
        };
        let info = message.info().map_err(|source| ReadError::Unavailable { source })?;
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
}
