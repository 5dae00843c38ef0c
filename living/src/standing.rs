//! Whether a room is open: the log decides, the bucket `rooms` remembers.

use qiyu_nats::{
    Bus,
    bucket::{Bucket, BucketError, Slot},
    log::LogEntry,
    stream::BucketName,
};
use qiyu_schema::{
    AppId, RoomId, codec,
    room::{self, RoomEntry},
    subject::{self, RoomKind},
};
use tracing::error;

use crate::{project::ProjectError, room::Room};

/// What the log and the bucket know of a room.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Standing {
    /// It is open.
    Open(Room),
    /// It is over.
    Closed,
    /// Nobody has opened it, or the log has forgotten all about it.
    Unheard,
}

/// Where it is looked up.
pub(crate) struct Facts {
    bus: Bus,
    entries: Bucket,
}

impl Facts {
    pub(crate) fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone(), entries: bus.bucket(BucketName::Rooms) }
    }

    /// Asks the log first, because it decides; the bucket, because it remembers a
    /// room that has been open for longer than the log reaches back.
    pub(crate) async fn standing(
        &self,
        app: AppId,
        room: RoomId,
    ) -> Result<Standing, ProjectError> {
        if self.closing(app, room).await?.is_some() {
            return Ok(Standing::Closed);
        }
        let slot = self.entries.read(&room::key(app, room)).await;
        let slot = slot.map_err(|source| ProjectError::Bucket { room, source })?;
        match slot {
            Slot { value: Some(value), .. } => {
                if let Ok(entry) = codec::decode::<RoomEntry>(&value) {
                    return Ok(Standing::Open(Room::of_entry(app, room, entry)));
                }
                error!(%room, "entry of the bucket rooms cannot be read");
            }
            Slot { revision: 0, value: None } => {}
            Slot { value: None, .. } => return Ok(Standing::Closed),
        }
        Ok(self.opening(app, room).await?.map_or(Standing::Unheard, Standing::Open))
    }

    /// The opening of a room, as the log tells it. `None`: none there, or not any more.
    pub(crate) async fn opening(
        &self,
        app: AppId,
        room: RoomId,
    ) -> Result<Option<Room>, ProjectError> {
        let opened = subject::room(app, room, RoomKind::Opened);
        let entry = self.bus.read_last(&opened).await;
        let entry = entry.map_err(|source| ProjectError::Log { room, source })?;
        let opened = entry.and_then(|entry| match entry.record() {
            Ok(record) => Room::opened_by(&entry, record),
            Err(_) => None, // the replay buries it
        });
        Ok(opened)
    }

    /// Every room the bucket holds.
    pub(crate) async fn entries(&self) -> Result<Vec<Room>, BucketError> {
        let of = |(key, slot): (String, Slot)| {
            let (app, room) = room::parse_key(&key)?;
            let entry = codec::decode::<RoomEntry>(&slot.value?).ok()?;
            Some(Room::of_entry(app, room, entry))
        };
        Ok(self.entries.list().await?.into_iter().filter_map(of).collect())
    }

    /// The closing of a room in the log. `None`: none there, or not any more.
    pub(crate) async fn closing(
        &self,
        app: AppId,
        room: RoomId,
    ) -> Result<Option<LogEntry>, ProjectError> {
        let closed = subject::room(app, room, RoomKind::Closed);
        let entry = self.bus.read_last(&closed).await;
        entry.map_err(|source| ProjectError::Log { room, source })
    }
}
