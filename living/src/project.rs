//! Applies the events of rooms to the projections: buckets, tables, caches and lists.
//!
//! The command that appended an event does this before it replies, and the
//! [`projector`](crate::projector) of every living process does it again. So each step is
//! idempotent, and none lets a closed room reopen:
//!
//! - The key of a room in the bucket `rooms` is created only at revision 0, and its removal always
//!   leaves a marker, even where there was no key.
//! - A record in SQL keeps the room's row from coming back.
//! - A claim of a closed room in `anchors` is not valid.

use qiyu_nats::bucket::BucketError;
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId,
    codec::{self, EncodeError},
    event::{Event, Record},
    room::{self, RoomEntry},
    sanction::Sanction,
};
use tracing::warn;

use crate::{
    inner::LivingInner,
    room::{Claim, Room, RoomClosing, claim_key},
    sanction_entries::{self, SanctionChange, SanctionEntryError},
    status::{RoomStatus, StatusError},
    store::StoreError,
};

/// A projection is incomplete. The next attempt may complete it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProjectError {
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error("write the buckets of room {room}")]
    Bucket { room: RoomId, source: BucketError },
    #[error("write the rows of room {room}")]
    Store { room: RoomId, source: StoreError },
    #[error("apply a sanction against user {user}")]
    Sanction { user: UserId, source: SanctionEntryError },
    #[error("encode room {room}")]
    Encode { room: RoomId, source: EncodeError },
}

/// Applies one event of the log.
pub(crate) async fn apply(
    inner: &LivingInner,
    record: Record,
    at: MsgId,
) -> Result<(), ProjectError> {
    match record.event {
        Event::RoomOpened { app, room, anchor, room_type, name, cover } => {
            // The event may be old: a room that has ended since must not show for a moment.
            if inner.statuses.status(app, room).await? == RoomStatus::Closed {
                return Ok(());
            }
            let (opened, opened_at_ms, good_num) = (at, record.at_ms, 0);
            let room =
                Room { app, room, anchor, room_type, name, cover, good_num, opened, opened_at_ms };
            apply_opening(inner, &room).await
        }
        Event::RoomClosed { app, room, peak, good_num, .. } => {
            let closed_at_ms = record.at_ms;
            let closing = RoomClosing { app, room, closed: at, closed_at_ms, peak, good_num };
            apply_closing(inner, closing).await
        }
        Event::SanctionImposed { app, room, user, sanction, until_ms, reason, by } => {
            let at_ms = record.at_ms;
            let taken = Some(Sanction { msg_id: at, at_ms, until_ms, reason, by });
            let change = SanctionChange { app, room, user, sanction, taken, msg_id: at };
            apply_sanction(inner, change).await
        }
        Event::SanctionLifted { app, room, user, sanction, .. } => {
            let change = SanctionChange { app, room, user, sanction, taken: None, msg_id: at };
            apply_sanction(inner, change).await
        }
        _ => Ok(()), // the subject filters exclude every other event
    }
}

/// Makes an open room visible to gateways, to its anchor, in SQL and in the list.
pub(crate) async fn apply_opening(inner: &LivingInner, room: &Room) -> Result<(), ProjectError> {
    let bucket = |source| ProjectError::Bucket { room: room.room, source };
    let encode = |source| ProjectError::Encode { room: room.room, source };
    let entry = codec::encode(&room.entry()).map_err(encode)?;
    match inner.entries.set_if(&room::key(room.app, room.room), 0, entry, None).await {
        // The key exists or was removed: the other writer is ahead of this one.
        Ok(_) | Err(BucketError::Conflict { .. }) => {}
        Err(error) => return Err(bucket(error)),
    }
    let claim = Claim { room: room.room, at_ms: room.opened_at_ms };
    let claim = codec::encode(&claim).map_err(encode)?;
    let key = claim_key(room.app, room.anchor);
    let kv_entry = inner.anchors.read(&key).await.map_err(bucket)?;
    if kv_entry.value.is_none() {
        match inner.anchors.set_if(&key, kv_entry.revision, claim, None).await {
            Ok(_) | Err(BucketError::Conflict { .. }) => {}
            Err(error) => return Err(bucket(error)),
        }
    }
    let written = inner.store.insert(room).await;
    inner.cache.remove(room.room).await; // the cached absence
    inner.lists.add(room.clone());
    written.map_err(|source| ProjectError::Store { room: room.room, source })
}

/// Removes a closed room from everywhere [`apply_opening`] has put it. Every step is tried, also
/// after the failure of another. The first failure is returned.
pub(crate) async fn apply_closing(
    inner: &LivingInner,
    closing: RoomClosing,
) -> Result<(), ProjectError> {
    let RoomClosing { app, room, .. } = closing;
    let removed = remove_entry(inner, app, room).await;
    let archived = archive(inner, closing).await;
    // The log may have the anchor when the bucket no longer has it.
    let anchor = removed.as_ref().ok().and_then(|anchor| *anchor);
    let anchor = anchor.or(archived.as_ref().ok().and_then(|anchor| *anchor));
    let released = match anchor {
        Some(anchor) => release_claim(inner, app, anchor, room).await,
        None => Ok(()),
    };
    inner.cache.remove(room).await; // after the row, or it would be cached again
    inner.lists.remove(app, room);
    sanction_entries::remove_room(inner, app, room).await;
    removed.map(drop).and(archived.map(drop)).and(released)
}

/// Makes a sanction visible to gateways, unless its room is over.
async fn apply_sanction(inner: &LivingInner, change: SanctionChange) -> Result<(), ProjectError> {
    if let Some(room) = change.room
        && inner.statuses.status(change.app, room).await? == RoomStatus::Closed
    {
        return Ok(());
    }
    let user = change.user;
    let applied = sanction_entries::apply(inner, &change).await;
    applied.map_err(|source| ProjectError::Sanction { user, source })
}

/// Removes the room from the bucket `rooms`. Returns its anchor if it was there.
async fn remove_entry(
    inner: &LivingInner,
    app: AppId,
    room: RoomId,
) -> Result<Option<UserId>, ProjectError> {
    let key = room::key(app, room);
    let failed = |source| ProjectError::Bucket { room, source };
    loop {
        let kv_entry = inner.entries.read(&key).await.map_err(failed)?;
        if kv_entry.value.is_none() && kv_entry.revision != 0 {
            return Ok(None); // the marker of an earlier attempt
        }
        match inner.entries.remove_if(&key, kv_entry.revision).await {
            Ok(()) => {
                let entry = kv_entry.value.and_then(|v| codec::decode::<RoomEntry>(&v).ok());
                return Ok(entry.map(|entry| entry.anchor));
            }
            // Each loss is one write by another process, and a room has two writes in its life.
            Err(BucketError::Conflict { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Releases the anchor's claim if it is for this room.
async fn release_claim(
    inner: &LivingInner,
    app: AppId,
    anchor: UserId,
    room: RoomId,
) -> Result<(), ProjectError> {
    let key = claim_key(app, anchor);
    let failed = |source| ProjectError::Bucket { room, source };
    let kv_entry = inner.anchors.read(&key).await.map_err(failed)?;
    let claim = kv_entry.value.and_then(|value| codec::decode::<Claim>(&value).ok());
    if claim.is_none_or(|claim| claim.room != room) {
        return Ok(());
    }
    match inner.anchors.remove_if(&key, kv_entry.revision).await {
        Ok(()) | Err(BucketError::Conflict { .. }) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Moves the row to the records. Returns the anchor if it had to be read from the log.
async fn archive(
    inner: &LivingInner,
    closing: RoomClosing,
) -> Result<Option<UserId>, ProjectError> {
    let RoomClosing { app, room, .. } = closing;
    let failed = |source| ProjectError::Store { room, source };
    if inner.store.archive(&closing).await.map_err(failed)? {
        return Ok(None);
    }
    // There is neither row nor record: the room closed before its row was written.
    let Some(opened) = inner.statuses.opening(app, room).await? else {
        warn!(%room, "the log holds no opening of a closed room");
        return Ok(None);
    };
    inner.store.insert(&opened).await.map_err(failed)?;
    inner.store.archive(&closing).await.map_err(failed)?;
    Ok(Some(opened.anchor))
}
