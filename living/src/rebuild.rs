//! Rebuilds the tables about rooms from the log, regardless of their content.
//!
//! It may run while the system runs. Each room is restored in one transaction, so no reader ever
//! sees a closed room as open. Rooms that open or close meanwhile are in the log before they are in
//! the tables. So they are either read here, or written after this program.
//!
//! Events that the log no longer holds cannot be restored:
//!
//! - Records from before the log's first event stay as they are.
//! - An open room without an opening in the log comes from the bucket `rooms`.
//! - A row of a room that neither the log nor the bucket shows as open becomes a record without an
//!   end time.

use qiyu_nats::{Bus, bucket::BucketError, chain, log::ReadError};
use qiyu_schema::{
    AppId, RoomId, Secret,
    event::Event,
    subject::{self, RoomKind},
};
use tracing::warn;

use crate::{
    cache::{Cache, CacheError},
    room::{Room, RoomClosing},
    status::{RoomStatus, RoomStatusReader, StatusError},
    store::{Store, StoreError},
};

/// The tables could not be rebuilt. Finished rooms stay restored, and the command may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("parse the URL of Redis")]
    Redis(#[from] CacheError),
    #[error("read the log of rooms")]
    Log(#[from] ReadError),
    #[error("list the bucket rooms")]
    Bucket(#[from] BucketError),
    #[error("find out which rooms are open")]
    Status(#[source] StatusLookupError),
}

/// The log or the bucket `rooms` did not answer.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StatusLookupError(StatusError);

impl From<StatusError> for RebuildError {
    fn from(error: StatusError) -> Self {
        Self::Status(StatusLookupError(error))
    }
}

/// The result of a rebuild.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Rooms that are open.
    pub open: u64,
    /// Closed rooms with a restored record.
    pub closed: u64,
    /// Rows of rooms that are not known to be open; now records without an end time.
    pub retired: u64,
    /// The sequence of the log entry after which the next living process continues.
    pub position: u64,
}

/// Rebuilds the tables in `database_url` from the log behind `bus`. Creates missing tables.
///
/// # Errors
///
/// [`RebuildError`].
pub async fn rebuild(
    database_url: &str,
    redis_url: Option<&Secret>,
    bus: &Bus,
) -> Result<Rebuilt, RebuildError> {
    let cache = Cache::new(redis_url)?;
    let store = Store::open(database_url).await?;
    let rebuilder = Rebuilder { bus, statuses: RoomStatusReader::new(bus), store, cache };
    let rebuilt = rebuilder.rebuild().await;
    rebuilder.store.close().await;
    rebuilt
}

struct Rebuilder<'a> {
    bus: &'a Bus,
    statuses: RoomStatusReader,
    store: Store,
    cache: Cache,
}

impl Rebuilder<'_> {
    async fn rebuild(&self) -> Result<Rebuilt, RebuildError> {
        let (_, last) = self.bus.log_bounds().await?;
        // Never forwards: the projector applies more than the tables show (sanctions), and to apply
        // an event twice is harmless.
        let position = self.store.position().await.unwrap_or(0);
        let position = if position <= last { position } else { 0 };
        let mut done = Rebuilt { position, ..Rebuilt::default() };
        self.restore_from_log(&mut done).await?;
        self.restore_from_bucket(&mut done).await?;
        self.retire_unknown_rows(&mut done).await?;
        self.store.set_position(position).await?;
        Ok(done)
    }

    /// Restores every room with an event in the log.
    async fn restore_from_log(&self, done: &mut Rebuilt) -> Result<(), RebuildError> {
        let filters = [RoomKind::Opened, RoomKind::Closed].map(subject::any_room).to_vec();
        let mut reader = self.bus.read_log(filters, 0, None).await?.to_end_at_opening();
        while let Some(entry) = reader.next().await? {
            let record = match entry.record() {
                Ok(record) => record,
                Err(error) => {
                    let error = chain(&error);
                    warn!(seq = entry.seq, error, "event of a room unreadable, skipped");
                    continue;
                }
            };
            if let Some(room) = Room::opened_by(&entry, record.clone()) {
                match self.restore(&room).await? {
                    RoomStatus::Closed => done.closed += 1,
                    RoomStatus::Open(_) | RoomStatus::Unknown => done.open += 1,
                }
            } else if let Event::RoomClosed { app, room, .. } = record.event
                && self.statuses.opening(app, room).await?.is_none()
            {
                // Only the tables can hold its opening.
                self.store.archive(&RoomClosing::from_log(app, room, &entry)).await?;
                self.cache.remove(room).await;
            }
        }
        reader.close().await;
        Ok(())
    }

    /// Restores every open room without an opening in the log.
    async fn restore_from_bucket(&self, done: &mut Rebuilt) -> Result<(), RebuildError> {
        for room in self.statuses.bucket_rooms().await? {
            if self.statuses.opening(room.app, room.room).await?.is_none()
                && let RoomStatus::Open(room) = self.statuses.status(room.app, room.room).await?
            {
                self.restore(&room).await?;
                done.open += 1;
            }
        }
        Ok(())
    }

    /// Retires every row of an open room that neither the log nor the bucket shows as open.
    async fn retire_unknown_rows(&self, done: &mut Rebuilt) -> Result<(), RebuildError> {
        let mut after = None;
        loop {
            let rows = self.store.rows_after(after).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.room);
            for row in &rows {
                match self.statuses.status(row.app, row.room).await? {
                    RoomStatus::Open(_) => continue,
                    RoomStatus::Closed | RoomStatus::Unknown => {}
                }
                match self.closing(row.app, row.room).await? {
                    Some(closing) => drop(self.store.archive(&closing).await?),
                    None => {
                        self.store.retire(row.app, row.room).await?;
                        done.retired += 1;
                    }
                }
                self.cache.remove(row.room).await;
            }
        }
    }

    /// Makes the tables agree with the log about one room.
    async fn restore(&self, room: &Room) -> Result<RoomStatus, RebuildError> {
        let mut closing = self.closing(room.app, room.room).await?;
        if closing.is_none() {
            self.store.restore_open(room).await?;
            // The room may have closed between the read and the write, and the write may have
            // removed its record.
            closing = self.closing(room.app, room.room).await?;
        }
        let status = match closing {
            Some(closing) => {
                self.store.restore_closed(room, &closing).await?;
                RoomStatus::Closed
            }
            None => RoomStatus::Open(room.clone()),
        };
        self.cache.remove(room.room).await;
        Ok(status)
    }

    async fn closing(&self, app: AppId, room: RoomId) -> Result<Option<RoomClosing>, RebuildError> {
        let entry = self.statuses.closing(app, room).await?;
        Ok(entry.map(|entry| RoomClosing::from_log(app, room, &entry)))
    }
}
