//! A capsule: an incident in a file. It holds a window of one room's log, the state of the
//! room at its beginning, and the settings and versions it was taken under.
//!
//! The format is gzipped JSON lines, so that `zcat` and `jq` read it too: a header, the
//! seed events, the events, an end. Version [`VERSION`]; names are only added.

mod redact;

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use qiyu_fanout::fold::Fold;
use qiyu_nats::{log::LogEntry, log_identity::LogIdentity};
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId, codec,
    event::{Event, MemberChange, Record, SessionChange},
    sanction::SanctionKind,
};
use serde::{Deserialize, Serialize};

use self::redact::redact;
use crate::{
    log::{event_view::for_each_view, point::LogPoint, room_snapshot::RoomSnapshot, seed_events},
    timestamp,
};

/// The format version that this build writes, and the newest it reads.
const VERSION: u32 = 1;
/// Events in a capsule: they are held in memory when it is played. A busy room
/// says some hundred a second, so this is hours of it.
pub(crate) const EVENTS_MAX: usize = 2_000_000;
/// Bytes of one line, unpacked: an event is 256 KiB at most, and grows as JSON.
const LINE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// The header line of a capsule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Header {
    /// Of the format: [`VERSION`].
    pub(crate) capsule: u32,
    /// Of the build that wrote it.
    pub(crate) qiyu: String,
    /// Of the server it was read from.
    pub(crate) nats: String,
    pub(crate) saved_at: String,
    pub(crate) app: AppId,
    pub(crate) room: RoomId,
    /// The window: events after this one …
    pub(crate) after: String,
    /// … up to and with this one.
    pub(crate) until: String,
    /// The instant just before the window, ms since 1970.
    pub(crate) from_ms: u64,
    /// The window's last instant.
    pub(crate) until_ms: u64,
    /// Whether the room's state at the beginning is known and included.
    pub(crate) start_known: bool,
    /// Whether typed text was removed.
    pub(crate) redacted: bool,
    pub(crate) log: LogFacts,
    /// Of the command that wrote it, secrets masked.
    pub(crate) settings: Vec<String>,
}

/// The log it was taken from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogFacts {
    /// Text, because it is larger than a float holds.
    pub(crate) created_ns: String,
    pub(crate) retain_seconds: u64,
    pub(crate) replicas: usize,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
}

impl LogFacts {
    pub(crate) fn of(origin: &LogIdentity) -> Self {
        Self {
            created_ns: origin.created_ns.to_string(),
            retain_seconds: origin.retain.as_secs(),
            replicas: origin.replicas,
            first_seq: origin.first,
            last_seq: origin.last,
        }
    }
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Header(Box<Header>),
    /// An event that brings an empty fold to the state at the beginning of the window.
    Before(StoredEvent),
    Event(StoredEvent),
    /// Nothing is missing.
    End {
        events: usize,
    },
}

/// One event.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredEvent {
    msg_id: String,
    stored_ms: u64,
    subject: String,
    /// As this build understands it.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Record>,
    /// Its bytes in Base64, where this build does not understand all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
}

/// Whether typed text is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextPolicy {
    Kept,
    Redacted,
}

/// A window of a room.
#[derive(Debug)]
pub(crate) struct Capsule {
    pub(crate) header: Header,
    pub(crate) before: Vec<LogEntry>,
    pub(crate) events: Vec<LogEntry>,
}

impl Capsule {
    /// Writes the capsule to a new file that only its owner may read, because it holds
    /// private messages.
    pub(crate) fn save(&self, path: &Path, words: TextPolicy) -> anyhow::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("make {}", path.display()))?;
        let written = self.write(file, words);
        if written.is_err() {
            std::fs::remove_file(path).ok(); // a partial capsule is useless
        }
        written.with_context(|| format!("write {}", path.display()))
    }

    fn write(&self, file: File, words: TextPolicy) -> anyhow::Result<()> {
        let mut out = BufWriter::new(GzEncoder::new(file, Compression::default()));
        let mut line = |line: &Line| -> anyhow::Result<()> {
            serde_json::to_writer(&mut out, line)?;
            Ok(out.write_all(b"\n")?)
        };
        line(&Line::Header(Box::new(self.header.clone())))?;
        for entry in &self.before {
            line(&Line::Before(StoredEvent::of(entry, words)))?;
        }
        for entry in &self.events {
            line(&Line::Event(StoredEvent::of(entry, words)))?;
        }
        line(&Line::End { events: self.events.len() })?;
        let packed = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        packed.finish()?.sync_all()?;
        Ok(())
    }

    /// Loads a capsule from a file.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Self::read(file).with_context(|| format!("read the capsule {}", path.display()))
    }

    fn read(file: File) -> anyhow::Result<Self> {
        let mut lines = Lines(BufReader::new(GzDecoder::new(file)));
        let Some(Line::Header(header)) = lines.next()? else { bail!("it has no header") };
        ensure!(
            header.capsule <= VERSION,
            "it has format {}, and this build reads up to {VERSION}: use a newer qiyu",
            header.capsule
        );
        let (mut before, mut events) = (Vec::new(), Vec::new());
        loop {
            match lines.next()? {
                Some(Line::Before(kept)) => before.push(kept.entry()?),
                Some(Line::Event(kept)) => events.push(kept.entry()?),
                Some(Line::End { events: counted }) => {
                    ensure!(counted == events.len(), "events are missing from it");
                    return Ok(Self { header: *header, before, events });
                }
                Some(Line::Header(_)) => bail!("it has two headers"),
                None => bail!("its end is missing"),
            }
            let held = before.len() + events.len();
            ensure!(held <= 2 * EVENTS_MAX, "it holds more than {EVENTS_MAX} events");
        }
    }

    /// Describes the capsule in one line.
    pub(crate) fn describe(&self) -> String {
        let Header { app, room, from_ms, until_ms, saved_at, qiyu, redacted, .. } = &self.header;
        format!(
            "capsule of room {room} of app {app}, {} to {}, {} events{}; saved at {saved_at} by \
             qiyu {qiyu}",
            timestamp::rfc3339(*from_ms),
            timestamp::rfc3339(*until_ms),
            self.events.len(),
            if *redacted { ", redacted" } else { "" }
        )
    }

    /// The events of a part of the window.
    pub(crate) fn window(&self, from: Option<LogPoint>, to: Option<LogPoint>) -> Vec<LogEntry> {
        let begun = |entry: &LogEntry| match from {
            None => true,
            Some(LogPoint::Msg(msg_id)) => msg_id.seq() <= entry.seq,
            Some(LogPoint::At(unix_ms)) => unix_ms <= entry.written_ms,
        };
        let ended = |entry: &LogEntry| match to {
            None => false,
            Some(LogPoint::Msg(msg_id)) => msg_id.seq() < entry.seq,
            Some(LogPoint::At(unix_ms)) => unix_ms < entry.written_ms,
        };
        self.events.iter().filter(|entry| begun(entry) && !ended(entry)).cloned().collect()
    }

    /// The room right after `at`, or at the window's end.
    pub(crate) fn snapshot(&self, at: Option<LogPoint>) -> anyhow::Result<RoomSnapshot> {
        let header = &self.header;
        ensure!(
            header.start_known,
            "what the room was at the window's beginning was forgotten when this was saved"
        );
        let outside = || {
            let (from, until) =
                (timestamp::rfc3339(header.from_ms), timestamp::rfc3339(header.until_ms));
            format!(
                "this capsule knows the room from {from} ({}) to {until} ({})",
                header.after, header.until
            )
        };
        let (after, until) = (header.after.parse::<MsgId>()?, header.until.parse::<MsgId>()?);
        let inside = match at {
            None => true,
            Some(LogPoint::Msg(msg_id)) => after <= msg_id && msg_id <= until,
            Some(LogPoint::At(unix_ms)) => (header.from_ms..=header.until_ms).contains(&unix_ms),
        };
        ensure!(inside, outside());
        let (mut fold, mut name, mut position) = (Fold::default(), None, after);
        let counted = self.window(None, at);
        let mut at_ms = header.from_ms;
        for entry in self.before.iter().chain(&counted) {
            let Ok(record) = entry.record() else { continue };
            if let Event::RoomOpened { name: opened, .. } = &record.event {
                name = Some(opened.clone());
            }
            fold.apply(entry.msg_id(), record);
        }
        if let Some(last) = counted.last() {
            (position, at_ms) = (last.msg_id(), last.written_ms);
        }
        match at {
            None => (position, at_ms) = (until, header.until_ms),
            Some(LogPoint::Msg(msg_id)) => position = msg_id,
            Some(LogPoint::At(unix_ms)) => at_ms = unix_ms,
        }
        Ok(RoomSnapshot::of_fold(&fold, (header.app, header.room), (position, at_ms), name))
    }

    /// The room's name, as its opening says, before the window or in it.
    pub(crate) fn name(&self) -> Option<String> {
        self.before.iter().chain(&self.events).find_map(|entry| match entry.record().ok()?.event {
            Event::RoomOpened { name, .. } => Some(name),
            _ => None,
        })
    }

    /// The room right before `from`, or before the window. `None`: forgotten.
    pub(crate) fn snapshot_before(
        &self,
        from: Option<LogPoint>,
    ) -> anyhow::Result<Option<RoomSnapshot>> {
        if !self.header.start_known {
            return Ok(None);
        }
        let after: MsgId = self.header.after.parse()?;
        let before = match from {
            None => LogPoint::Msg(after),
            Some(LogPoint::Msg(msg_id)) => {
                LogPoint::Msg(MsgId::at(msg_id.seq().saturating_sub(1)).max(after))
            }
            Some(LogPoint::At(unix_ms)) if unix_ms <= self.header.from_ms => LogPoint::Msg(after),
            Some(LogPoint::At(unix_ms)) => LogPoint::At(unix_ms - 1),
        };
        self.snapshot(Some(before)).map(Some)
    }

    /// Builds a capsule. `events` may hold sanctions of the whole app against any user;
    /// those against users that never occur are left out.
    pub(crate) fn of(header: Header, start: Option<&RoomSnapshot>, events: Vec<LogEntry>) -> Self {
        let before = start.map(seed_events::seed_events).unwrap_or_default();
        let mut seen: BTreeSet<UserId> = BTreeSet::new();
        for entry in before.iter().chain(&events) {
            let Ok(record) = entry.record() else { continue };
            for_each_view(entry, Some(&record), |view| {
                if view.room.is_some() {
                    seen.extend(view.user);
                }
            });
        }
        let concerns = |entry: &LogEntry| match entry.record().map(|record| record.event) {
            Ok(
                Event::SanctionImposed { room: None, user, .. }
                | Event::SanctionLifted { room: None, user, .. },
            ) => seen.contains(&user),
            _ => true,
        };
        let events = events.into_iter().filter(concerns).collect();
        Self { header, before, events }
    }
}

/// The header of a capsule of this build.
pub(crate) fn header(
    (app, room): (AppId, RoomId),
    (after, from_ms): (u64, u64),
    (until, until_ms): (u64, u64),
    origin: &LogIdentity,
    settings: &[String],
) -> Header {
    Header {
        capsule: VERSION,
        qiyu: env!("CARGO_PKG_VERSION").to_owned(),
        nats: origin.server.clone(),
        saved_at: timestamp::rfc3339(qiyu_nats::now_ms()),
        app,
        room,
        after: MsgId::at(after).to_string(),
        until: MsgId::at(until).to_string(),
        from_ms,
        until_ms,
        start_known: false,
        redacted: false,
        log: LogFacts::of(origin),
        settings: settings.to_vec(),
    }
}

impl StoredEvent {
    fn of(entry: &LogEntry, words: TextPolicy) -> Self {
        let known = entry.record().ok().filter(|record| is_known(&record.event));
        let (record, raw) = match (known, words) {
            (Some(record), TextPolicy::Kept) => (Some(record), None),
            (Some(mut record), TextPolicy::Redacted) => {
                redact(&mut record);
                (Some(record), None)
            }
            (None, TextPolicy::Kept) => (None, Some(BASE64_STANDARD.encode(&entry.payload))),
            (None, TextPolicy::Redacted) => (None, None), // its content is unknown
        };
        let msg_id = entry.msg_id().to_string();
        Self { msg_id, stored_ms: entry.written_ms, subject: entry.subject.clone(), record, raw }
    }

    fn entry(self) -> anyhow::Result<LogEntry> {
        let msg_id: MsgId = self.msg_id.parse()?;
        let payload = match (self.record, self.raw) {
            (Some(record), _) => codec::encode(&record)?,
            (None, Some(raw)) => BASE64_STANDARD.decode(raw).context("raw event")?.into(),
            (None, None) => Vec::new().into(),
        };
        let (seq, written_ms) = (msg_id.seq(), self.stored_ms);
        Ok(LogEntry { seq, subject: self.subject, payload, pending: 0, written_ms })
    }
}

/// Whether this build understands all of an event, so that it can write it again.
fn is_known(event: &Event) -> bool {
    match event {
        Event::Unknown => false,
        Event::MembersChanged { changes, .. } => {
            !changes.iter().any(|change| matches!(change, MemberChange::Unknown))
        }
        Event::SessionsChanged { changes, .. } => {
            !changes.iter().any(|change| matches!(change, SessionChange::Unknown))
        }
        Event::SanctionImposed { sanction, .. } | Event::SanctionLifted { sanction, .. } => {
            *sanction != SanctionKind::Unknown
        }
        _ => true,
    }
}

/// Reads the lines of a file of unknown content.
struct Lines<R>(R);

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> anyhow::Result<Option<Line>> {
        let mut text = String::new();
        let read = (&mut self.0).take(LINE_BYTES_MAX).read_line(&mut text)?;
        if read == 0 {
            return Ok(None);
        }
        ensure!(text.ends_with('\n'), "a line of it is too long, or cut short");
        serde_json::from_str(&text).map(Some).context("a line of it cannot be read")
    }
}
