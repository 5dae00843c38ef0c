//! The task that applies the events of rooms in the log again, so that any process completes the
//! work of one that died between an append and its projections.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use qiyu_nats::{
    chain,
    log::{DeadLetterReason, LogEntry, LogReader, ReadError},
};
use qiyu_schema::{
    codec::DecodeError,
    event::Event,
    subject::{self, RoomKind},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{inner::LivingInner, project, store::StoreError};

/// Pause after a failure of the bus or the database.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// A shorter failure is an election or a locked file, and does not affect readiness.
const FAILURE_TOLERATED: Duration = Duration::from_secs(10);

/// Since when events cannot be applied.
#[derive(Debug, Default)]
pub(crate) struct ProjectorHealth(Mutex<Option<Instant>>);

impl ProjectorHealth {
    /// Returns for how long events have not been applied, if that exceeds [`FAILURE_TOLERATED`].
    pub(crate) fn failing_for(&self) -> Option<Duration> {
        let since = self.0.lock().map(|since| since.elapsed());
        since.filter(|since| *since > FAILURE_TOLERATED)
    }

    fn record_failure(&self) {
        self.0.lock().get_or_insert_with(Instant::now);
    }

    fn record_success(&self) {
        *self.0.lock() = None;
    }
}

/// Reading the log stopped. It starts again from the stored position.
#[derive(Debug, thiserror::Error)]
enum ProjectorError {
    #[error("open the log of rooms")]
    Open(#[source] ReadError),
    #[error("read the log of rooms")]
    Read(#[source] ReadError),
    #[error("store the position in the log of rooms")]
    Position(#[source] StoreError),
}

/// Applies events until `stop`.
pub(crate) async fn run(
    inner: Arc<LivingInner>,
    health: Arc<ProjectorHealth>,
    stop: CancellationToken,
) {
    let _guard = stop.clone().drop_guard(); // without this task a crash would leave rooms half open
    let attempts = async {
        loop {
            let Err(error) = apply_all(&inner, &health).await;
            health.record_failure();
            warn!(error = %chain(&error), "projector stopped, starting again");
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    };
    stop.run_until_cancelled(attempts).await;
}

async fn apply_all(
    inner: &LivingInner,
    health: &ProjectorHealth,
) -> Result<std::convert::Infallible, ProjectorError> {
    let mut reader = open(inner).await?;
    health.record_success();
    loop {
        let entry = reader.next().await.map_err(ProjectorError::Read)?;
        apply_entry(inner, health, &entry).await;
        inner.store.advance(entry.seq).await.map_err(ProjectorError::Position)?;
    }
}

async fn open(inner: &LivingInner) -> Result<LogReader, ProjectorError> {
    let mut position = inner.store.position().await.map_err(ProjectorError::Position)?;
    let (first, last) = inner.bus.log_bounds().await.map_err(ProjectorError::Open)?;
    if last < position {
        error!(
            position,
            last, "the log is younger than the database; rooms may show that never end"
        );
        inner.store.set_position(0).await.map_err(ProjectorError::Position)?;
        position = 0;
    } else if position > 0 && position + 1 < first {
        warn!(
            position,
            first, "the log no longer holds the next events; rooms may show that ended"
        );
    }
    info!(after = position, "projector started");
    let kinds = [RoomKind::Opened, RoomKind::Closed, RoomKind::Sanctions];
    let mut filters = kinds.map(subject::any_room).to_vec();
    filters.push(subject::any_user_sanctions());
    inner.bus.read_log(filters, position, None).await.map_err(ProjectorError::Open)
}

/// Applies one entry and retries without end: a skipped entry would lose a room.
async fn apply_entry(inner: &LivingInner, health: &ProjectorHealth, entry: &LogEntry) {
    let record = match entry.record() {
        Ok(record) if record.event == Event::Unknown => {
            return inner.bus.dead_letter(entry, DeadLetterReason::UnknownKind).await;
        }
        Ok(record) => record,
        Err(error) => return dead_letter(inner, entry, &error).await,
    };
    while let Err(error) = project::apply(inner, record.clone(), entry.msg_id()).await {
        health.record_failure();
        inner.metrics.replays_failed.inc();
        warn!(seq = entry.seq, error = %chain(&error), "event of a room not applied, trying again");
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    health.record_success();
}

async fn dead_letter(inner: &LivingInner, entry: &LogEntry, error: &DecodeError) {
    error!(seq = entry.seq, error = %chain(error), "event of a room unreadable");
    inner.bus.dead_letter(entry, DeadLetterReason::Decode).await;
}
