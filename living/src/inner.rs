//! The state that all commands of this crate share.

use std::time::Duration;

use qiyu_nats::{
    Bus,
    bucket::{Bucket, Mirror},
    service::CommandRefusal,
};
use qiyu_presence::Gateways;
use qiyu_schema::{
    AppId, RoomId, codec,
    room::{self, RoomCounts},
};

use crate::{
    cache::Cache, metrics::Metrics, room::Room, room_lists::RoomLists, single_flight::SingleFlight,
    status::RoomStatusReader, store::Store,
};

/// The state that all commands share.
pub(crate) struct LivingInner {
    pub(crate) bus: Bus,
    pub(crate) apps: Vec<AppId>,
    pub(crate) statuses: RoomStatusReader,
    pub(crate) store: Store,
    pub(crate) cache: Cache,
    /// Merges concurrent look-ups of one room.
    pub(crate) lookups: SingleFlight<(AppId, RoomId), Result<Option<Room>, CommandRefusal>>,
    /// The bucket `rooms`.
    pub(crate) entries: Bucket,
    pub(crate) anchors: Bucket,
    pub(crate) watch: Mirror,
    /// The bucket `measures`.
    pub(crate) sanctions: Bucket,
    /// A local copy of it, which may lag by a moment.
    pub(crate) sanctions_mirror: Mirror,
    /// How long the log keeps an event.
    pub(crate) retain: Duration,
    pub(crate) gateways: Gateways,
    pub(crate) lists: RoomLists,
    pub(crate) metrics: Metrics,
}

impl LivingInner {
    /// Returns the number of users inside the room and its likes, which lag by about a second.
    pub(crate) fn counts(&self, app: AppId, room: RoomId) -> RoomCounts {
        let counts = self.watch.get(&room::key(app, room));
        counts.and_then(|counts| codec::decode(&counts).ok()).unwrap_or_default()
    }
}
