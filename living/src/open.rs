//! Opening a room: an anchor has one, however many ask at once, and wherever.
//!
//! The claim in the bucket `anchors` is taken by compare-and-set before the
//! log hears of the room. A claimer that dies in between leaves a claim that
//! is void after [`VOID_AFTER`]. One that was only frozen finds, after its
//! append, that the claim is no longer its own, and closes what it opened:
//! so two open rooms of one anchor never last.

use std::time::{Duration, Instant};

use qiyu_nats::{
    bucket::BucketError,
    log::{AppendError, Condition},
    now_ms,
    service::{COMMAND_TIMEOUT, Refusal},
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
    project::{ProjectError, Rooms},
    room::{Claim, ROOM_TYPES, Room, claim_key},
    standing::Standing,
};

/// A claim this old without an opening was left by a process that died.
const VOID_AFTER: Duration = Duration::from_secs(10);
/// How long the id and the opening may each take: well within the claim's life.
const APPEND_DEADLINE: Duration = Duration::from_secs(4);
/// How often a claim somebody else has just taken is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The column's width in `t_living_room`.
const NAME_CHARS_MAX: usize = 60;
/// The column's width in `t_living_room`.
const COVER_CHARS_MAX: usize = 255;

const _: () = assert!(2 * APPEND_DEADLINE.as_millis() < VOID_AFTER.as_millis());
const _: () = assert!(VOID_AFTER.as_millis() < COMMAND_TIMEOUT.as_millis());

/// Why a room did not open.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The asker's fault.
    #[error("{0}")]
    Asked(&'static str),
    #[error("claim the room of anchor {key}")]
    Claim { key: String, source: BucketError },
    #[error("encode the claim of anchor {key}")]
    Encode { key: String, source: EncodeError },
    #[error("get a room id for anchor {key}")]
    Id { key: String, source: AppendError },
    #[error("append the opening of room {room}")]
    Append { room: RoomId, source: AppendError },
    #[error(transparent)]
    Project(ProjectError),
    /// Somebody else has been opening one all the time we waited.
    #[error("anchor {key} has a room that is neither open nor void")]
    Stuck { key: String },
}

impl OpenError {
    /// What the asker hears.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Asked(message) => Refusal { code: 400, message: (*message).into() },
            _ => Refusal { code: 500, message: "系统异常".into() },
        }
    }
}

/// Opens a room, or finds the one that is open. Returns once it can be entered, found and listed.
pub(crate) async fn open(rooms: &Rooms, asked: OpenRoom) -> Result<RoomId, OpenError> {
    check(&rooms.apps, &asked)?;
    let key = claim_key(asked.app, asked.anchor);
    let claim_failed = |source| OpenError::Claim { key: key.clone(), source };
    let started = Instant::now();
    let mut watched = None;
    while started.elapsed() < COMMAND_TIMEOUT {
        let slot = rooms.anchors.read(&key).await.map_err(claim_failed)?;
        let claim = slot.value.as_deref().and_then(|value| codec::decode::<Claim>(value).ok());
        if let Some(claim) = claim {
            match rooms.standing(asked.app, claim.room).await.map_err(OpenError::Project)? {
                Standing::Open(room) => {
                    // Its opener may still be at it, or dead: then this finishes the work.
                    show(rooms, &room).await?;
                    return Ok(room.room);
                }
                Standing::Closed => {} // its closer has not released it yet
                Standing::Unheard if !is_void(&claim, slot.revision, &mut watched) => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                Standing::Unheard => {
                    rooms.metrics.claims_void.inc();
                    warn!(anchor = %key, room = %claim.room, "void claim of an anchor taken over");
                }
            }
        }
        if let Some(room) = claim_and_open(rooms, &asked, &key, slot.revision).await? {
            rooms.metrics.opened.inc();
            info!(app = %asked.app, room = %room, anchor = %asked.anchor, "room opened");
            return Ok(room);
        }
    }
    Err(OpenError::Stuck { key })
}

/// Takes the claim at `revision` and opens a room under it. `None`: somebody else was faster.
async fn claim_and_open(
    rooms: &Rooms,
    asked: &OpenRoom,
    key: &str,
    revision: u64,
) -> Result<Option<RoomId>, OpenError> {
    let owned = || key.to_owned();
    let claim_failed = |source| OpenError::Claim { key: owned(), source };
    let id = rooms.bus.next_room_id(APPEND_DEADLINE).await;
    let id = id.map_err(|source| OpenError::Id { key: owned(), source })?;
    let claim = codec::encode(&Claim { room: id, at_ms: now_ms() });
    let claim = claim.map_err(|source| OpenError::Encode { key: owned(), source })?;
    let ours = match rooms.anchors.set_if(key, revision, claim, None).await {
        Ok(ours) => ours,
        Err(BucketError::Changed { .. }) => return Ok(None),
        Err(error) => return Err(claim_failed(error)),
    };
    let record = Record::at(
        qiyu_nats::now_ms(),
        Event::RoomOpened {
            app: asked.app,
            room: id,
            anchor: asked.anchor,
            room_type: asked.room_type,
            name: asked.name.clone().unwrap_or_else(|| default_name(asked)),
            cover: asked.cover.clone(),
        },
    );
    let subject = subject::room(asked.app, id, RoomKind::Opened);
    let dedup = format!("opened:{}.{id}", asked.app);
    let stored = rooms.bus.append(subject, &record, &dedup, Condition::First, APPEND_DEADLINE);
    let opened = match stored.await {
        Ok(appended) => appended.msg_id,
        Err(AppendError::Taken { .. }) => {
            // Ids start over only when their stream was lost and the log was not.
            error!(room = %id, "a fresh room id has been used before");
            give_back(rooms, key, ours).await;
            return Ok(None);
        }
        // Perhaps stored: the claim stays, and whoever asks next finds out.
        Err(source) => return Err(OpenError::Append { room: id, source }),
    };
    let now = rooms.anchors.read(key).await.map_err(claim_failed)?;
    if now.revision != ours {
        // Frozen for so long that the claim was taken for void.
        warn!(room = %id, anchor = %key, "claim lost while opening, closing the room again");
        undo(rooms, asked.app, id).await?;
        return Ok(None);
    }
    let room = Room {
        app: asked.app,
        room: id,
        anchor: asked.anchor,
        room_type: asked.room_type,
        name: asked.name.clone().unwrap_or_else(|| default_name(asked)),
        cover: asked.cover.clone(),
        good_num: 0,
        opened,
        opened_at_ms: record.at_ms,
    };
    show(rooms, &room).await?;
    Ok(Some(id))
}

/// Makes the room visible. It is open without its row, which the replay writes
/// as soon as the database is back.
async fn show(rooms: &Rooms, room: &Room) -> Result<(), OpenError> {
    match rooms.opened(room).await {
        Err(error @ ProjectError::Store { .. }) => {
            let error = &error as &dyn std::error::Error;
            warn!(room = %room.room, error, "opening not in the tables at once");
            Ok(())
        }
        shown => shown.map_err(OpenError::Project),
    }
}

/// Whether nobody will open a room under this claim any more. Another machine's
/// clock may run ahead, so having watched the claim for as long counts too.
fn is_void(claim: &Claim, revision: u64, watched: &mut Option<(u64, Instant)>) -> bool {
    let age = Duration::from_millis(now_ms().saturating_sub(claim.at_ms));
    let since = match *watched {
        Some((seen, since)) if seen == revision => since,
        _ => watched.insert((revision, Instant::now())).1,
    };
    VOID_AFTER <= age || VOID_AFTER <= since.elapsed()
}

async fn give_back(rooms: &Rooms, key: &str, revision: u64) {
    match rooms.anchors.remove_if(key, revision).await {
        Ok(()) | Err(BucketError::Changed { .. }) => {}
        Err(error) => warn!(anchor = %key, %error, "claim not given back, it will be void"),
    }
}

/// Closes a room that should not have opened. The replay clears up behind it.
async fn undo(rooms: &Rooms, app: AppId, room: RoomId) -> Result<(), OpenError> {
    let record = Record::at(
        qiyu_nats::now_ms(),
        Event::RoomClosed { app, room, by: None, peak: None, good_num: None },
    );
    let subject = subject::room(app, room, RoomKind::Closed);
    let key = format!("undone:{app}.{room}");
    match rooms.bus.append(subject, &record, &key, Condition::First, APPEND_DEADLINE).await {
        Ok(_) | Err(AppendError::Taken { .. }) => Ok(()),
        Err(source) => Err(OpenError::Append { room, source }),
    }
}

/// Every rule about what may be asked for, and no I/O.
fn check(apps: &[AppId], asked: &OpenRoom) -> Result<(), OpenError> {
    if !apps.contains(&asked.app) {
        return Err(OpenError::Asked("应用不存在"));
    }
    if !ROOM_TYPES.contains(&asked.room_type) {
        return Err(OpenError::Asked("需要给定直播间类型"));
    }
    if asked.name.as_ref().is_some_and(|name| NAME_CHARS_MAX < name.chars().count()) {
        return Err(OpenError::Asked("直播间名称过长"));
    }
    if COVER_CHARS_MAX < asked.cover.chars().count() {
        return Err(OpenError::Asked("封面地址过长"));
    }
    Ok(())
}

fn default_name(asked: &OpenRoom) -> String {
    format!("主播-{}的直播间", asked.anchor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> OpenRoom {
        OpenRoom {
            app: "10001".parse().unwrap(),
            anchor: "285608972927369217".parse().unwrap(),
            room_type: 1,
            name: None,
            cover: String::new(),
        }
    }

    #[test]
    fn only_what_fits_the_tables_is_opened() {
        let apps = [asked().app];
        assert!(check(&apps, &asked()).is_ok());
        let sixty = Some("名".repeat(NAME_CHARS_MAX));
        assert!(check(&apps, &OpenRoom { name: sixty, ..asked() }).is_ok());
        let over = Some("名".repeat(NAME_CHARS_MAX + 1));
        for bad in [
            OpenRoom { app: "10002".parse().unwrap(), ..asked() },
            OpenRoom { room_type: 0, ..asked() },
            OpenRoom { room_type: 3, ..asked() },
            OpenRoom { name: over, ..asked() },
            OpenRoom { cover: "c".repeat(COVER_CHARS_MAX + 1), ..asked() },
        ] {
            assert!(matches!(check(&apps, &bad), Err(OpenError::Asked(_))), "{bad:?}");
        }
        assert_eq!(default_name(&asked()), "主播-285608972927369217的直播间");
    }

    #[test]
    fn a_claim_is_void_by_its_age_and_by_ours() {
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
