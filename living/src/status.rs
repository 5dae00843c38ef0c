//! Whether a room is open: the log decides, and the bucket `rooms` remembers.

use qiyu_nats::{
    Bus,
    bucket::{Bucket, BucketError, KvEntry},
    log::{LogEntry, ReadError},
    stream::BucketName,
};
use qiyu_schema::{
    AppId, RoomId, codec,
    room::{self, RoomEntry},
    subject::{self, RoomKind},
};
use tracing::error;

use crate::room::Room;

/// The status of a room according to the log and the bucket `rooms`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RoomStatus {
    Open(Room),
    Closed,
    /// The room was never opened, or the log no longer holds its events.
    Unknown,
}

/// The log or the bucket `rooms` did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusError {
    #[error("read the events of room {room}")]
    Log { room: RoomId, source: ReadError },
    #[error("read the bucket entry of room {room}")]
    Bucket { room: RoomId, source: BucketError },
}

/// Looks up the status of rooms.
pub(crate) struct RoomStatusReader {
    bus: Bus,
    entries: Bucket,
}

impl RoomStatusReader {
    pub(crate) fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone(), entries: bus.bucket(BucketName::Rooms) }
    }

    /// Reads the log first, because it decides. The bucket answers for a room that has been open
    /// for longer than the log is kept.
    pub(crate) async fn status(&self, app: AppId, room: RoomId) -> Result<RoomStatus, StatusError> {
        if self.closing(app, room).await?.is_some() {
            return Ok(RoomStatus::Closed);
        }
        let kv_entry = self.entries.read(&room::key(app, room)).await;
        let kv_entry = kv_entry.map_err(|source| StatusError::Bucket { room, source })?;
        match kv_entry {
            KvEntry { value: Some(value), .. } => {
                if let Ok(entry) = codec::decode::<RoomEntry>(&value) {
                    return Ok(RoomStatus::Open(Room::from_entry(app, room, entry)));
                }
                error!(%room, "entry of the bucket rooms cannot be read");
            }
            KvEntry { revision: 0, value: None } => {}
            KvEntry { value: None, .. } => return Ok(RoomStatus::Closed),
        }
        Ok(self.opening(app, room).await?.map_or(RoomStatus::Unknown, RoomStatus::Open))
    }

    /// Reads the `opened` event of a room. `None`: the log holds none, or holds it no longer.
    pub(crate) async fn opening(
        &self,
        app: AppId,
        room: RoomId,
    ) -> Result<Option<Room>, StatusError> {
        let opened = subject::room(app, room, RoomKind::Opened);
        let entry = self.bus.read_last(&opened).await;
        let entry = entry.map_err(|source| StatusError::Log { room, source })?;
        let opened = entry.and_then(|entry| match entry.record() {
            Ok(record) => Room::opened_by(&entry, record),
            Err(_) => None, // the projector dead-letters it
        });
        Ok(opened)
    }

    /// Reads the `closed` event of a room. `None`: the log holds none, or holds it no longer.
    pub(crate) async fn closing(
        &self,
        app: AppId,
        room: RoomId,
    ) -> Result<Option<LogEntry>, StatusError> {
        let closed = subject::room(app, room, RoomKind::Closed);
        let entry = self.bus.read_last(&closed).await;
        entry.map_err(|source| StatusError::Log { room, source })
    }

    /// Lists every room in the bucket `rooms`.
    pub(crate) async fn bucket_rooms(&self) -> Result<Vec<Room>, BucketError> {
        let decoded = |(key, kv_entry): (String, KvEntry)| {
            let (app, room) = room::parse_key(&key)?;
            let entry = codec::decode::<RoomEntry>(&kv_entry.value?).ok()?;
            Some(Room::from_entry(app, room, entry))
        };
        Ok(self.entries.list().await?.into_iter().filter_map(decoded).collect())
    }
}
