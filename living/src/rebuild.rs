//! The tables about rooms, made anew from the log: whatever they held, they say
//! afterwards what the log says.
//!
//! It may run while the system runs. Each room is put right in one transaction,
//! so nobody ever reads a closed room as open; and what is opened and closed
//! meanwhile is in the log before it is in the tables, so it is either read
//! here or written after us.
//!
//! What the log has forgotten cannot be made anew. So records from before its
//! beginning stay as they are, an open room whose opening it has forgotten
//! comes from the bucket `rooms`, and a row of a room that neither knows to be
//! open becomes a record without an end.

use qiyu_nats::{Bus, bucket::BucketError, log::ReadError};
use qiyu_schema::{
    AppId, RoomId, Secret,
    event::Event,
    subject::{self, RoomKind},
};
use tracing::warn;

use crate::{
    cache::{Cache, CacheError},
    project::{Closing, ProjectError},
    room::Room,
    standing::{Facts, Standing},
    store::{Store, StoreError},
};

/// The tables could not be made anew. What was done stays done, and the command may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache's URL.
    #[error("understand the URL of Redis")]
    Redis(#[from] CacheError),
    /// The log.
    #[error("read the log of rooms")]
    Log(#[from] ReadError),
    /// The bucket `rooms`.
    #[error("list the bucket rooms")]
    Bucket(#[from] BucketError),
    /// What is open.
    #[error("find out which rooms are open")]
    Facts(#[source] FactError),
}

/// What became of the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Rooms that are open.
    pub open: u64,
    /// Closed rooms whose record was made anew.
    pub closed: u64,
    /// Rows of rooms that nobody knows to be open; now records without an end.
    pub retired: u64,
    /// The entry of the log after which the next living process goes on.
    pub position: u64,
}

/// Makes the tables in `database_url` anew from the log behind `bus`. Makes
/// them if there are none.
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
    let rebuilder = Rebuilder { bus, facts: Facts::new(bus), store, cache };
    let rebuilt = rebuilder.rebuild().await;
    rebuilder.store.close().await;
    rebuilt
}

struct Rebuilder<'a> {
    bus: &'a Bus,
    facts: Facts,
    store: Store,
    cache: Cache,
}

impl Rebuilder<'_> {
    async fn rebuild(&self) -> Result<Rebuilt, RebuildError> {
        let (_, last) = self.bus.log_bounds().await?;
        // Never forwards: the replay applies more than the tables show (measures),
        // and telling it something twice is harmless.
        let position = self.store.position().await.unwrap_or(0);
        let position = if position <= last { position } else { 0 };
        let mut done = Rebuilt { position, ..Rebuilt::default() };
        self.follow_the_log(&mut done).await?;
        self.follow_the_bucket(&mut done).await?;
        self.look_through_the_rows(&mut done).await?;
        self.store.set_position(position).await?;
        Ok(done)
    }

    /// Every room that was opened or closed as far back as the log reaches.
    async fn follow_the_log(&self, done: &mut Rebuilt) -> Result<(), RebuildError> {
        let filters = [RoomKind::Opened, RoomKind::Closed].map(subject::any_room).to_vec();
        let mut reader = self.bus.read_log(filters, 0, None).await?;
        for _ in 0..reader.pending_at_start() {
            let entry = reader.next().await?;
            let record = match entry.record() {
                Ok(record) => record,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(seq = entry.seq, error, "event of a room unreadable, passed over");
                    continue;
                }
            };
            if let Some(room) = Room::opened_by(&entry, record.clone()) {
                match self.put_right(&room).await? {
                    Standing::Closed => done.closed += 1,
                    Standing::Open(_) | Standing::Unheard => done.open += 1,
                }
            } else if let Event::RoomClosed { app, room, .. } = record.event
                && self.facts.opening(app, room).await?.is_none()
            {
                // Of its opening only the tables can know.
                self.store.archive(&Closing::at(app, room, &entry)).await?;
                self.cache.forget(room).await;
            }
        }
        reader.close().await;
        Ok(())
    }

    /// Every open room whose opening the log has forgotten.
    async fn follow_the_bucket(&self, done: &mut Rebuilt) -> Result<(), RebuildError> {
        for room in self.facts.entries().await? {
            if self.facts.opening(room.app, room.room).await?.is_none()
                && let Standing::Open(room) = self.facts.standing(room.app, room.room).await?
            {
                self.put_right(&room).await?;
                done.open += 1;
            }
        }
        Ok(())
    }

    /// Every row that says open, of which nobody else does.
    async fn look_through_the_rows(&self, done: &mut Rebuilt) -> Result<(), RebuildError> {
        let mut after = None;
        loop {
            let rows = self.store.rows_after(after).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.room);
            for row in &rows {
                match self.facts.standing(row.app, row.room).await? {
                    Standing::Open(_) => continue,
                    Standing::Closed | Standing::Unheard => {}
                }
                match self.closing(row.app, row.room).await? {
                    Some(closing) => drop(self.store.archive(&closing).await?),
                    None => {
                        self.store.retire(row.app, row.room).await?;
                        done.retired += 1;
                    }
                }
                self.cache.forget(row.room).await;
            }
        }
    }

    /// Makes the tables say of one room what the log says.
    async fn put_right(&self, room: &Room) -> Result<Standing, RebuildError> {
        let standing = match self.closing(room.app, room.room).await? {
            Some(closing) => {
                self.store.restore_closed(room, &closing).await?;
                Standing::Closed
            }
            None => {
                self.store.restore_open(room).await?;
                // It may have closed between the look and the write, and its
                // record be what the write took away.
                match self.closing(room.app, room.room).await? {
                    Some(closing) => {
                        self.store.restore_closed(room, &closing).await?;
                        Standing::Closed
                    }
                    None => Standing::Open(room.clone()),
                }
            }
        };
        self.cache.forget(room.room).await;
        Ok(standing)
    }

    async fn closing(&self, app: AppId, room: RoomId) -> Result<Option<Closing>, RebuildError> {
        let entry = self.facts.closing(app, room).await?;
        // What cannot be read ended the room all the same: when is what the log says of it.
        Ok(entry.map(|entry| Closing::at(app, room, &entry)))
    }
}

/// The log or the bucket did not answer.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FactError(ProjectError);

impl From<ProjectError> for RebuildError {
    fn from(error: ProjectError) -> Self {
        Self::Facts(FactError(error))
    }
}
