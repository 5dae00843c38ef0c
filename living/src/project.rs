//! What an opening and a closing leave behind, wherever they were decided.
//!
//! The command that appended the event does this before it answers, and the
//! [`replay`](crate::replay) of every living process does it again. So each
//! step is idempotent, and none lets a closed room reopen:
//!
//! - The key of a room in the bucket `rooms` is created only at revision 0, and
//!   its removal always leaves a marker, even where there was no key.
//! - A record in SQL keeps the room's row from coming back.
//! - A claim of a closed room in `anchors` binds nobody.

use std::time::Duration;

use qiyu_nats::{
    Bus,
    bucket::{Bucket, BucketError, Mirror},
    log::{LogEntry, ReadError},
    service::Refusal,
};
use qiyu_presence::Gateways;
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId,
    codec::{self, EncodeError},
    event::{Event, Record},
    measure::Taken,
    room::{self, RoomCounts, RoomEntry},
};
use tracing::warn;

use crate::{
    cache::Cache,
    flight::Flights,
    list::Lists,
    metrics::Metrics,
    moderate::{self, MeasureError, Step},
    room::{Claim, Room, claim_key},
    standing::{Facts, Standing},
    store::{Store, StoreError},
};

/// Everything the commands work on.
pub(crate) struct Rooms {
    pub(crate) bus: Bus,
    pub(crate) apps: Vec<AppId>,
    pub(crate) facts: Facts,
    pub(crate) store: Store,
    pub(crate) cache: Cache,
    /// Looks at single rooms under way.
    pub(crate) looks: Flights<(AppId, RoomId), Result<Option<Room>, Refusal>>,
    pub(crate) entries: Bucket,
    pub(crate) anchors: Bucket,
    pub(crate) watch: Mirror,
    pub(crate) measures: Bucket,
    /// A copy of it, for what may trail by a moment.
    pub(crate) measured: Mirror,
    /// How long the log is kept.
    pub(crate) retain: Duration,
    pub(crate) gateways: Gateways,
    pub(crate) lists: Lists,
    pub(crate) metrics: Metrics,
}

/// A projection is not whole; the next attempt may make it so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProjectError {
    #[error("ask the log about room {room}")]
    Log { room: RoomId, source: ReadError },
    #[error("write the buckets of room {room}")]
    Bucket { room: RoomId, source: BucketError },
    #[error("write the rows of room {room}")]
    Store { room: RoomId, source: StoreError },
    #[error("measures against user {user}")]
    Measure { user: UserId, source: MeasureError },
    #[error("encode room {room}")]
    Encode { room: RoomId, source: EncodeError },
}

/// A closing, as the log tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closing {
    pub(crate) app: AppId,
    pub(crate) room: RoomId,
    pub(crate) closed: MsgId,
    pub(crate) closed_at_ms: u64,
    /// The most users inside at once. `None`: the closer did not know.
    pub(crate) peak: Option<u64>,
    /// Likes, likewise.
    pub(crate) good_num: Option<u64>,
}

impl Closing {
    /// The closing of a room that this entry of the log is. One whose details
    /// cannot be read has ended the room all the same.
    pub(crate) fn at(app: AppId, room: RoomId, entry: &LogEntry) -> Self {
        let record = entry.record().ok();
        let closed_at_ms = record.as_ref().map_or(0, |record| record.at_ms);
        let (peak, good_num) = match record.map(|record| record.event) {
            Some(Event::RoomClosed { peak, good_num, .. }) => (peak, good_num),
            _ => (None, None),
        };
        Self { app, room, closed: entry.msg_id(), closed_at_ms, peak, good_num }
    }
}

impl Rooms {
    /// Users inside the room and its likes; trails by a moment.
    pub(crate) fn counts(&self, app: AppId, room: RoomId) -> RoomCounts {
        let counts = self.watch.get(&room::key(app, room));
        counts.and_then(|counts| codec::decode(&counts).ok()).unwrap_or_default()
    }

    /// What the log and the bucket know of a room.
    pub(crate) async fn standing(
        &self,
        app: AppId,
        room: RoomId,
    ) -> Result<Standing, ProjectError> {
        self.facts.standing(app, room).await
    }

    /// Makes an opening visible: to gateways, to the anchor, in SQL, in the list.
    pub(crate) async fn opened(&self, room: &Room) -> Result<(), ProjectError> {
        let bucket = |source| ProjectError::Bucket { room: room.room, source };
        let encode = |source| ProjectError::Encode { room: room.room, source };
        let entry = codec::encode(&room.entry()).map_err(encode)?;
        match self.entries.set_if(&room::key(room.app, room.room), 0, entry, None).await {
            // There already, or there no more: both are further than we are.
            Ok(_) | Err(BucketError::Changed { .. }) => {}
            Err(error) => return Err(bucket(error)),
        }
        let claim = Claim { room: room.room, at_ms: room.opened_at_ms };
        let claim = codec::encode(&claim).map_err(encode)?;
        let key = claim_key(room.app, room.anchor);
        let slot = self.anchors.read(&key).await.map_err(bucket)?;
        if slot.value.is_none() {
            match self.anchors.set_if(&key, slot.revision, claim, None).await {
                Ok(_) | Err(BucketError::Changed { .. }) => {}
                Err(error) => return Err(bucket(error)),
            }
        }
        let written = self.store.insert(room).await;
        self.cache.forget(room.room).await; // that there was no such room
        self.lists.opened(room.clone());
        written.map_err(|source| ProjectError::Store { room: room.room, source })
    }

    /// Makes a closing visible, everywhere an opening was. Every step is tried,
    /// whatever becomes of the others; the first failure is reported.
    pub(crate) async fn closed(&self, closing: Closing) -> Result<(), ProjectError> {
        let Closing { app, room, .. } = closing;
        let known = self.take_down(app, room).await;
        let archived = self.archive(closing).await;
        // The row may hold an anchor that the bucket no longer names.
        let anchor = known.as_ref().ok().and_then(|known| *known);
        let anchor = anchor.or(archived.as_ref().ok().and_then(|opened| *opened));
        let released = match anchor {
            Some(anchor) => self.release(app, anchor, room).await,
            None => Ok(()),
        };
        self.cache.forget(room).await; // after the row, or it would be read again
        self.lists.closed(app, room);
        moderate::forget(self, app, room).await;
        known.map(drop).and(archived.map(drop)).and(released)
    }

    /// Takes the room out of the bucket `rooms`. Returns whose it was, if it was there.
    async fn take_down(&self, app: AppId, room: RoomId) -> Result<Option<UserId>, ProjectError> {
        let key = room::key(app, room);
        let failed = |source| ProjectError::Bucket { room, source };
        loop {
            let slot = self.entries.read(&key).await.map_err(failed)?;
            if slot.value.is_none() && slot.revision != 0 {
                return Ok(None); // the marker of an earlier attempt
            }
            match self.entries.remove_if(&key, slot.revision).await {
                Ok(()) => {
                    let entry = slot.value.and_then(|v| codec::decode::<RoomEntry>(&v).ok());
                    return Ok(entry.map(|entry| entry.anchor));
                }
                // Each loss is one write by somebody else, and a room has two in its life.
                Err(BucketError::Changed { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Gives the anchor's claim back, if it is for this room.
    async fn release(&self, app: AppId, anchor: UserId, room: RoomId) -> Result<(), ProjectError> {
        let key = claim_key(app, anchor);
        let failed = |source| ProjectError::Bucket { room, source };
        let slot = self.anchors.read(&key).await.map_err(failed)?;
        let claim = slot.value.and_then(|value| codec::decode::<Claim>(&value).ok());
        if claim.is_none_or(|claim| claim.room != room) {
            return Ok(());
        }
        match self.anchors.remove_if(&key, slot.revision).await {
            Ok(()) | Err(BucketError::Changed { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Moves the row to the records. Returns whose room it was, if the log had to be asked.
    async fn archive(&self, closing: Closing) -> Result<Option<UserId>, ProjectError> {
        let Closing { app, room, .. } = closing;
        let failed = |source| ProjectError::Store { room, source };
        if self.store.archive(&closing).await.map_err(failed)? {
            return Ok(None);
        }
        // Neither row nor record: closed before anybody wrote the row.
        let Some(opened) = self.facts.opening(app, room).await? else {
            warn!(%room, "a room closed of which the log tells no opening");
            return Ok(None);
        };
        self.store.insert(&opened).await.map_err(failed)?;
        self.store.archive(&closing).await.map_err(failed)?;
        Ok(Some(opened.anchor))
    }

    /// Makes a measure visible to gateways, unless its room is over.
    async fn measured(&self, step: Step) -> Result<(), ProjectError> {
        if let Some(room) = step.room
            && self.standing(step.app, room).await? == Standing::Closed
        {
            return Ok(());
        }
        let user = step.user;
        moderate::project(self, &step)
            .await
            .map_err(|source| ProjectError::Measure { user, source })
    }

    /// Applies one event of the log.
    pub(crate) async fn apply(&self, record: Record, at: MsgId) -> Result<(), ProjectError> {
        match record.event {
            Event::RoomOpened { app, room, anchor, room_type, name, cover } => {
                // Long ago, perhaps: a room that has ended since must not show for a moment.
                if self.standing(app, room).await? == Standing::Closed {
                    return Ok(());
                }
                let (opened, opened_at_ms, good_num) = (at, record.at_ms, 0);
                let room = Room {
                    app,
                    room,
                    anchor,
                    room_type,
                    name,
                    cover,
                    good_num,
                    opened,
                    opened_at_ms,
                };
                self.opened(&room).await
            }
            Event::RoomClosed { app, room, peak, good_num, .. } => {
                let closed_at_ms = record.at_ms;
                self.closed(Closing { app, room, closed: at, closed_at_ms, peak, good_num }).await
            }
            Event::MeasureTaken { app, room, user, measure, until_ms, reason, by } => {
                let at_ms = record.at_ms;
                let taken = Some(Taken { msg_id: at, at_ms, until_ms, reason, by });
                self.measured(Step { app, room, user, measure, taken, msg_id: at }).await
            }
            Event::MeasureLifted { app, room, user, measure, .. } => {
                self.measured(Step { app, room, user, measure, taken: None, msg_id: at }).await
            }
            _ => Ok(()), // the filters let nothing else through
        }
    }
}
