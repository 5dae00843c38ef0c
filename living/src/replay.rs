//! Applies the log's openings and closings again, so that a process which died
//! between an append and its projections is made good by any other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use qiyu_nats::log::{Dead, LogEntry, LogReader, ReadError};
use qiyu_schema::{
    codec::DecodeError,
    event::Event,
    subject::{self, RoomKind},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{project::Rooms, store::StoreError};

/// Between attempts when the bus or the database does not answer.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Trouble shorter than this is an election or a locked file, and nobody's business.
const TROUBLE_TOLERATED: Duration = Duration::from_secs(10);

/// Since when events cannot be applied.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<Option<Instant>>);

impl Trouble {
    /// For how long, if that is worth a complaint.
    pub(crate) fn lasting(&self) -> Option<Duration> {
        let since = self.0.lock().map(|since| since.elapsed());
        since.filter(|since| TROUBLE_TOLERATED < *since)
    }

    fn begins(&self) {
        self.0.lock().get_or_insert_with(Instant::now);
    }

    fn ends(&self) {
        *self.0.lock() = None;
    }
}

/// The reading broke off; it starts again from the stored position.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error("open the log of rooms")]
    Open(#[source] ReadError),
    #[error("read the log of rooms")]
    Read(#[source] ReadError),
    #[error("keep the position in the log of rooms")]
    Position(#[source] StoreError),
}

/// Replays until `stop`.
pub(crate) async fn run(rooms: Arc<Rooms>, trouble: Arc<Trouble>, stop: CancellationToken) {
    let _alarm = stop.clone().drop_guard(); // without it a crash would leave rooms half open
    let replay = async {
        loop {
            let Err(error) = replay(&rooms, &trouble).await;
            trouble.begins();
            warn!(error = &error as &dyn std::error::Error, "replay of rooms broke off");
            tokio::time::sleep(RETRY_AFTER).await;
        }
    };
    stop.run_until_cancelled(replay).await;
}

async fn replay(rooms: &Rooms, trouble: &Trouble) -> Result<std::convert::Infallible, ReplayError> {
    let mut reader = open(rooms).await?;
    trouble.ends();
    loop {
        let entry = reader.next().await.map_err(ReplayError::Read)?;
        settle(rooms, trouble, &entry).await;
        rooms.store.advance(entry.seq).await.map_err(ReplayError::Position)?;
    }
}

async fn open(rooms: &Rooms) -> Result<LogReader, ReplayError> {
    let mut position = rooms.store.position().await.map_err(ReplayError::Position)?;
    let (first, last) = rooms.bus.log_bounds().await.map_err(ReplayError::Open)?;
    if last < position {
        error!(
            position,
            last, "the log is younger than the database; rooms may show that never end"
        );
        rooms.store.set_position(0).await.map_err(ReplayError::Position)?;
        position = 0;
    } else if 0 < position && position + 1 < first {
        warn!(
            position,
            first, "the log has forgotten what happened since; rooms may show that ended"
        );
    }
    info!(after = position, "replaying rooms");
    let kinds = [RoomKind::Opened, RoomKind::Closed, RoomKind::Measures];
    let mut filters = kinds.map(subject::any_room).to_vec();
    filters.push(subject::any_user_measures());
    rooms.bus.read_log(filters, position, None).await.map_err(ReplayError::Open)
}

/// Applies one entry, however long that takes: skipping it would lose a room.
async fn settle(rooms: &Rooms, trouble: &Trouble, entry: &LogEntry) {
    let record = match entry.record() {
        Ok(record) if record.event == Event::Unknown => {
            return rooms.bus.bury(entry, Dead::UnknownKind).await;
        }
        Ok(record) => record,
        Err(error) => return bury(rooms, entry, &error).await,
    };
    while let Err(error) = rooms.apply(record.clone(), entry.msg_id()).await {
        trouble.begins();
        rooms.metrics.replays_failed.inc();
        warn!(
            seq = entry.seq,
            error = &error as &dyn std::error::Error,
            "event of a room not applied, trying again"
        );
        tokio::time::sleep(RETRY_AFTER).await;
    }
    trouble.ends();
}

async fn bury(rooms: &Rooms, entry: &LogEntry, error: &DecodeError) {
    error!(seq = entry.seq, error = error as &dyn std::error::Error, "event of a room unreadable");
    rooms.bus.bury(entry, Dead::Decode).await;
}
