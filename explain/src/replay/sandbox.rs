//! Appends a window to the log of another NATS, a sandbox on which an ordinary system runs.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use qiyu_nats::{
    Bus, BusConfig, bus,
    log::{APPEND_DEADLINE, AppendCondition, AppendError, LogEntry},
};
use qiyu_schema::{
    AppId, RoomId, Secret,
    event::{Event, Record},
    subject::{self, RoomKind},
};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    pace::Pace,
    translate::{Translated, Translator},
};
use crate::{access::LogAccessConfig, log::window::LogWindow, terminal::progress};

/// Time in which the sandbox must answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The origin of the events, which must not be the sandbox itself.
pub(crate) enum EventOrigin<'a> {
    Log(&'a Bus),
    /// A capsule, with the creation time of its log in ns since 1970.
    Capsule {
        created_ns: &'a str,
    },
}

/// The log to append to.
pub(crate) struct Sandbox {
    bus: Bus,
    shown: String,
    translator: Translator,
}

/// Counts of a play.
#[derive(Debug, Default)]
struct Counts {
    appended: u64,
    left_out: u64,
    unknown: u64,
}

impl Sandbox {
    /// Connects to the log at `url`.
    ///
    /// # Errors
    ///
    /// When it does not answer, is no log of a qiyu, or is the one `source` is of.
    pub(crate) async fn open(
        url: &str,
        log: &LogAccessConfig,
        source: EventOrigin<'_>,
    ) -> anyhow::Result<Self> {
        let shown = bus::redact_url(url);
        let config = BusConfig {
            url: Secret::new(url),
            name: "qiyu replay --into".to_owned(),
            replicas: log.replicas,
            retain: log.retain,
            ack_wait: log.ack_wait,
            profile: log.profile,
        };
        let connected = timeout(TIMEOUT, Bus::connect(&config)).await;
        let bus = connected.with_context(|| format!("no NATS answers at {shown}"))??;
        let there = bus.log_identity().await;
        let there = there.with_context(|| {
            format!("the NATS at {shown} holds no log: run `qiyu up` or `qiyu run` there first")
        })?;
        let same = match source {
            EventOrigin::Capsule { created_ns } => created_ns == there.created_ns.to_string(),
            EventOrigin::Log(here) => {
                here.log_identity().await?.created_ns == there.created_ns
                    || here.is_same_system(&bus).await.map_err(|e| anyhow::anyhow!(e))?
                    || bus.is_same_system(here).await.map_err(|e| anyhow::anyhow!(e))?
            }
        };
        ensure!(
            !same,
            "the log at {shown} is the one these events come from (or a copy of it, or in one \
             system with it): nothing was written"
        );
        let run = format!("replay{:x}", qiyu_nats::now_ms());
        Ok(Self { bus, shown, translator: Translator::new(run) })
    }

    /// Checks that a room can be played there, and reserves its id.
    pub(crate) async fn make_way(&self, app: AppId, room: RoomId) -> anyhow::Result<()> {
        let closed = self.bus.read_last(&subject::room(app, room, RoomKind::Closed)).await?;
        ensure!(
            closed.is_none(),
            "room {room} is closed at {}, and a closed room does not open again: use a fresh \
             sandbox",
            self.shown
        );
        self.bus.skip_room_ids(room).await.context("keep the room's id from being given again")
    }

    /// Appends the seed events, then the window at its pace, then the ends of the
    /// replayed gateways; the ends also when stopped.
    pub(crate) async fn play(
        mut self,
        before: Vec<LogEntry>,
        window: &mut LogWindow,
        pace: Pace,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut counts = Counts::default();
        let played = self.window(before, window, pace, stop, &mut counts).await;
        let ended = self.end_gateways().await;
        let Counts { appended, left_out, unknown } = counts;
        progress(&format!(
            "{appended} events appended at {}, {left_out} left out because they are about what is \
             not there, {unknown} because this build does not know them",
            self.shown
        ));
        played.and(ended)
    }

    async fn window(
        &mut self,
        before: Vec<LogEntry>,
        window: &mut LogWindow,
        mut pace: Pace,
        stop: &CancellationToken,
        counts: &mut Counts,
    ) -> anyhow::Result<()> {
        for entry in before {
            self.append(&entry, counts).await?;
        }
        loop {
            let Some(entry) = stop.run_until_cancelled(window.next()).await else { return Ok(()) };
            let Some(entry) = entry? else { return Ok(()) };
            if let Some(due) = pace.due(entry.written_ms)
                && stop.run_until_cancelled(sleep_until(due)).await.is_none()
            {
                return Ok(());
            }
            self.append(&entry, counts).await?;
        }
    }

    async fn append(&mut self, entry: &LogEntry, counts: &mut Counts) -> anyhow::Result<()> {
        let (subject, record) = match self.translator.translate(entry, qiyu_nats::now_ms()) {
            Translated::Event { subject, record } => (subject, record),
            Translated::Meaningless => {
                counts.left_out += 1;
                return Ok(());
            }
            Translated::Unknown => {
                counts.unknown += 1;
                return Ok(());
            }
        };
        let opening = matches!(record.event, Event::RoomOpened { .. });
        if let Event::RoomOpened { app, room, .. } = record.event {
            self.make_way(app, room).await?;
        }
        let condition = condition_of(&record);
        let key = self.translator.key(entry);
        let appended = self.bus.append(subject, &record, &key, condition, APPEND_DEADLINE).await;
        match appended {
            Ok(msg_id) => {
                self.translator.stored(entry.msg_id(), msg_id);
                counts.appended += 1;
            }
            // A play of an earlier window has opened the room.
            Err(AppendError::Taken { .. }) if opening => counts.left_out += 1,
            Err(error) => bail!(anyhow::Error::from(error).context("write into the sandbox")),
        }
        Ok(())
    }

    async fn end_gateways(&self) -> anyhow::Result<()> {
        for (subject, record) in self.translator.ends() {
            let key = format!("replay-gone:{subject}:{}", record.at_ms);
            let appended = self
                .bus
                .append(subject, &record, &key, AppendCondition::Any, APPEND_DEADLINE)
                .await;
            appended.context("end the replayed gateways in the sandbox")?;
        }
        Ok(())
    }
}

/// Returns the append condition with which the original event was stored.
fn condition_of(record: &Record) -> AppendCondition {
    match record.event {
        Event::RoomOpened { .. } | Event::RoomClosed { .. } => AppendCondition::First,
        _ => AppendCondition::Any,
    }
}
