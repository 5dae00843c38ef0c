//! The command that opens a room. An anchor has one open room, however many calls ask for it at
//! once, in any process.
//!
//! The claim in the bucket `anchors` is taken by compare-and-set before the `opened` event is
//! appended. A process that dies in between leaves a claim that is void after [`VOID_AFTER`]. A
//! process that was only frozen finds after its append that the claim is no longer its own, and
//! closes the room again. So two open rooms of one anchor never last.

use std::time::{Duration, Instant};

use qiyu_nats::{
    bucket::BucketError,
    chain,
    log::{AppendCondition, AppendError},
    now_ms,
    service::{COMMAND_TIMEOUT, CommandRefusal},
};
use qiyu_schema::{
    AppId, RoomId,
    codec::{self, EncodeError},
    command::OpenRoom,
    event::{Event, Record},
    subject::{self, RoomKind},
};
use tracing::{error, info, warn};

use crate::{
    inner::LivingInner,
    project::{self, ProjectError},
    room::{Claim, ROOM_TYPES, Room, claim_key},
    status::{RoomStatus, StatusError},
    texts,
};

/// A claim this old without an opening was left by a process that died.
const VOID_AFTER: Duration = Duration::from_secs(10);
/// How long the id and the event may each take, well within the life of a claim.
const APPEND_TIMEOUT: Duration = Duration::from_secs(4);
/// How often a claim that another process has just taken is read.
const CLAIM_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The column's width in `t_living_room`.
const NAME_CHARS_MAX: usize = 60;
/// The column's width in `t_living_room`.
const COVER_CHARS_MAX: usize = 255;

const _: () = assert!(2 * APPEND_TIMEOUT.as_millis() < VOID_AFTER.as_millis());
const _: () = assert!(VOID_AFTER.as_millis() < COMMAND_TIMEOUT.as_millis());

/// A room was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("claim the room of anchor {key}")]
    Claim { key: String, source: BucketError },
    #[error("encode the claim of anchor {key}")]
    Encode { key: String, source: EncodeError },
    #[error("get a room id for anchor {key}")]
    Id { key: String, source: AppendError },
    #[error("append the opening of room {room}")]
    Append { room: RoomId, source: AppendError },
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error(transparent)]
    Project(ProjectError),
    /// Another process has been opening a room for the whole time of the call.
    #[error("anchor {key} has a room that is neither open nor void")]
    Stuck { key: String },
}

impl OpenError {
    /// Returns the reply to the caller.
    pub(crate) fn refusal(&self) -> CommandRefusal {
        match self {
            Self::BadRequest(message) => CommandRefusal { code: 400, message: (*message).into() },
            _ => CommandRefusal { code: 500, message: texts::SYSTEM_ERROR.into() },
        }
    }
}

/// Opens a room, or returns the anchor's open one, once it can be entered, found and listed.
pub(crate) async fn open(inner: &LivingInner, request: OpenRoom) -> Result<RoomId, OpenError> {
    check(&inner.apps, &request)?;
    let key = claim_key(request.app, request.anchor);
    let claim_failed = |source| OpenError::Claim { key: key.clone(), source };
    let started = Instant::now();
    let mut watched = None;
    while started.elapsed() < COMMAND_TIMEOUT {
        let kv_entry = inner.anchors.read(&key).await.map_err(claim_failed)?;
        let claim = kv_entry.value.as_deref().and_then(|value| codec::decode::<Claim>(value).ok());
        if let Some(claim) = claim {
            match inner.statuses.status(request.app, claim.room).await? {
                RoomStatus::Open(room) => {
                    // The process that opened it may be dead: then this completes its work.
                    publish(inner, &room).await?;
                    return Ok(room.room);
                }
                RoomStatus::Closed => {} // the closing process has not released the claim yet
                RoomStatus::Unknown if !is_void(&claim, kv_entry.revision, &mut watched) => {
                    tokio::time::sleep(CLAIM_POLL_INTERVAL).await;
                    continue;
                }
                RoomStatus::Unknown => {
                    inner.metrics.claims_void.inc();
                    warn!(anchor = %key, room = %claim.room, "void claim of an anchor taken over");
                }
            }
        }
        if let Some(room) = claim_and_open(inner, &request, &key, kv_entry.revision).await? {
            inner.metrics.opened.inc();
            info!(app = %request.app, room = %room, anchor = %request.anchor, "room opened");
            return Ok(room);
        }
    }
    Err(OpenError::Stuck { key })
}

/// Takes the claim at `revision` and opens a room under it. `None`: another process was faster.
async fn claim_and_open(
    inner: &LivingInner,
    request: &OpenRoom,
    key: &str,
    revision: u64,
) -> Result<Option<RoomId>, OpenError> {
    let owned = || key.to_owned();
    let claim_failed = |source| OpenError::Claim { key: owned(), source };
    let id = inner.bus.next_room_id(APPEND_TIMEOUT).await;
    let id = id.map_err(|source| OpenError::Id { key: owned(), source })?;
    let claim = codec::encode(&Claim { room: id, at_ms: now_ms() });
    let claim = claim.map_err(|source| OpenError::Encode { key: owned(), source })?;
    let ours = match inner.anchors.set_if(key, revision, claim, None).await {
        Ok(ours) => ours,
        Err(BucketError::Conflict { .. }) => return Ok(None),
        Err(error) => return Err(claim_failed(error)),
    };
    let record = Record::at(
        qiyu_nats::now_ms(),
        Event::RoomOpened {
            app: request.app,
            room: id,
            anchor: request.anchor,
            room_type: request.room_type,
            name: request.name.clone().unwrap_or_else(|| texts::default_room_name(request.anchor)),
            cover: request.cover.clone(),
        },
    );
    let subject = subject::room(request.app, id, RoomKind::Opened);
    let dedup = format!("opened:{}.{id}", request.app);
    let stored = inner.bus.append(subject, &record, &dedup, AppendCondition::First, APPEND_TIMEOUT);
    let opened = match stored.await {
        Ok(msg_id) => msg_id,
        Err(AppendError::Taken { .. }) => {
            // Ids start over only when their stream was lost and the log was kept.
            error!(room = %id, "a fresh room id has been used before");
            release_claim(inner, key, ours).await;
            return Ok(None);
        }
        // The event may be stored: the claim stays, and the next call finds out.
        Err(source) => return Err(OpenError::Append { room: id, source }),
    };
    let now = inner.anchors.read(key).await.map_err(claim_failed)?;
    if now.revision != ours {
        // This process was frozen for so long that the claim was taken as void.
        warn!(room = %id, anchor = %key, "claim lost while opening, closing the room again");
        close_again(inner, request.app, id).await?;
        return Ok(None);
    }
    let room = Room {
        app: request.app,
        room: id,
        anchor: request.anchor,
        room_type: request.room_type,
        name: request.name.clone().unwrap_or_else(|| texts::default_room_name(request.anchor)),
        cover: request.cover.clone(),
        good_num: 0,
        opened,
        opened_at_ms: record.at_ms,
    };
    publish(inner, &room).await?;
    Ok(Some(id))
}

/// Makes the room visible. A room is open without its row, which the projector writes once the
/// database is back.
async fn publish(inner: &LivingInner, room: &Room) -> Result<(), OpenError> {
    match project::apply_opening(inner, room).await {
        Err(error @ ProjectError::Store { .. }) => {
            warn!(room = %room.room, error = %chain(&error), "opening not in the tables at once");
            Ok(())
        }
        done => done.map_err(OpenError::Project),
    }
}

/// Returns whether no process will open a room under this claim any more. The clock of another
/// machine may run ahead, so the time since this process first saw the claim counts too.
fn is_void(claim: &Claim, revision: u64, watched: &mut Option<(u64, Instant)>) -> bool {
    let age = Duration::from_millis(now_ms().saturating_sub(claim.at_ms));
    let since = match *watched {
        Some((seen, since)) if seen == revision => since,
        _ => watched.insert((revision, Instant::now())).1,
    };
    age >= VOID_AFTER || since.elapsed() >= VOID_AFTER
}

async fn release_claim(inner: &LivingInner, key: &str, revision: u64) {
    match inner.anchors.remove_if(key, revision).await {
        Ok(()) | Err(BucketError::Conflict { .. }) => {}
        Err(error) => {
            warn!(anchor = %key, error = %chain(&error), "claim not released, it will be void");
        }
    }
}

/// Closes a room that should not have opened. The projector removes it from the projections.
async fn close_again(inner: &LivingInner, app: AppId, room: RoomId) -> Result<(), OpenError> {
    let record = Record::at(
        qiyu_nats::now_ms(),
        Event::RoomClosed { app, room, by: None, peak: None, good_num: None },
    );
    let subject = subject::room(app, room, RoomKind::Closed);
    let key = format!("undone:{app}.{room}");
    match inner.bus.append(subject, &record, &key, AppendCondition::First, APPEND_TIMEOUT).await {
        Ok(_) | Err(AppendError::Taken { .. }) => Ok(()),
        Err(source) => Err(OpenError::Append { room, source }),
    }
}

/// Checks a request without I/O.
fn check(apps: &[AppId], request: &OpenRoom) -> Result<(), OpenError> {
    if !apps.contains(&request.app) {
        return Err(OpenError::BadRequest(texts::UNKNOWN_APP));
    }
    if !ROOM_TYPES.contains(&request.room_type) {
        return Err(OpenError::BadRequest(texts::ROOM_TYPE_MISSING));
    }
    if request.name.as_ref().is_some_and(|name| name.chars().count() > NAME_CHARS_MAX) {
        return Err(OpenError::BadRequest(texts::NAME_TOO_LONG));
    }
    if request.cover.chars().count() > COVER_CHARS_MAX {
        return Err(OpenError::BadRequest(texts::COVER_TOO_LONG));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> OpenRoom {
        OpenRoom {
            app: "10001".parse().unwrap(),
            anchor: "285608972927369217".parse().unwrap(),
            room_type: 1,
            name: None,
            cover: String::new(),
        }
    }

    #[test]
    fn a_request_that_does_not_fit_the_tables_is_refused() {
        let apps = [request().app];
        assert!(check(&apps, &request()).is_ok());
        let sixty = Some("名".repeat(NAME_CHARS_MAX));
        assert!(check(&apps, &OpenRoom { name: sixty, ..request() }).is_ok());
        let over = Some("名".repeat(NAME_CHARS_MAX + 1));
        for bad in [
            OpenRoom { app: "10002".parse().unwrap(), ..request() },
            OpenRoom { room_type: 0, ..request() },
            OpenRoom { room_type: 3, ..request() },
            OpenRoom { name: over, ..request() },
            OpenRoom { cover: "c".repeat(COVER_CHARS_MAX + 1), ..request() },
        ] {
            assert!(matches!(check(&apps, &bad), Err(OpenError::BadRequest(_))), "{bad:?}");
        }
        assert_eq!(texts::default_room_name(request().anchor), "主播-285608972927369217的直播间");
    }

    #[test]
    fn a_claim_is_void_by_its_age_or_by_the_time_it_was_watched() {
        let room = RoomId::try_from(1).unwrap();
        let mut watched = None;
        let old = Claim { room, at_ms: now_ms() - 10_001 };
        assert!(is_void(&old, 1, &mut watched));

        let ahead = Claim { room, at_ms: now_ms() + 3_600_000 };
        assert!(!is_void(&ahead, 2, &mut watched));
        watched = watched.map(|(seen, since)| (seen, since.checked_sub(VOID_AFTER).unwrap()));
        assert!(is_void(&ahead, 2, &mut watched));
        assert!(!is_void(&ahead, 3, &mut watched), "another claim starts over");
    }
}
