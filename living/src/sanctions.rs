//! The commands about sanctions (kick, mute, ban): impose, lift, list.
//!
//! A sanction is an event in the log first, then an entry in the bucket that gateways enforce from.
//! After a death in between, the projector completes it.

use std::time::Duration;

use qiyu_nats::{
    bucket::BucketError,
    log::{AppendCondition, AppendError},
    now_ms,
    service::CommandRefusal,
};
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId,
    command::{ActiveSanction, ImposeSanction, LiftSanction, ListSanctions, SanctionPage},
    event::{Event, Record},
    sanction::{self, Sanction, SanctionEntry, SanctionKind},
    subject::{self, RoomKind},
    ticket::fresh_nonce,
};
use tracing::info;

use crate::{
    inner::LivingInner,
    sanction_entries::{self, SanctionChange, SanctionEntryError},
    status::{RoomStatus, StatusError},
    texts,
};

/// How long an event may take to be stored.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Characters of a reason.
const REASON_CHARS_MAX: usize = 200;
/// Users listed in one reply.
const LIST_MAX: u32 = 1000;

/// A sanction was not imposed, lifted or listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SanctionError {
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("room {room} is not open")]
    NotOpen { room: RoomId },
    #[error("room {room} belongs to another anchor")]
    NotTheAnchor { room: RoomId },
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error("append a sanction against user {user}")]
    Append { user: UserId, source: AppendError },
    #[error(transparent)]
    Entry(#[from] SanctionEntryError),
}

impl SanctionError {
    /// Returns the reply to the caller.
    pub(crate) fn refusal(&self) -> CommandRefusal {
        let (code, message) = match self {
            Self::BadRequest(message) => (400, *message),
            Self::NotOpen { .. } => (404, texts::ROOM_NOT_OPEN),
            Self::NotTheAnchor { .. } => (403, texts::NOT_THE_ANCHOR),
            Self::Status(_) | Self::Append { .. } | Self::Entry(_) => (500, texts::SYSTEM_ERROR),
        };
        CommandRefusal { code, message: message.into() }
    }
}

/// Imposes a sanction. Returns once the bucket has it, from which gateways learn it.
pub(crate) async fn impose(
    inner: &LivingInner,
    request: ImposeSanction,
) -> Result<MsgId, SanctionError> {
    let ImposeSanction { app, room, user, sanction, until_ms, reason, by } = request;
    if sanction == SanctionKind::Unknown {
        return Err(SanctionError::BadRequest(texts::UNKNOWN_SANCTION));
    }
    if reason.chars().count() > REASON_CHARS_MAX {
        return Err(SanctionError::BadRequest(texts::REASON_TOO_LONG));
    }
    let until_ms = until_ms.filter(|_| sanction != SanctionKind::Kick);
    if until_ms.is_some_and(|until| until <= now_ms()) {
        return Err(SanctionError::BadRequest(texts::ENDS_BEFORE_START));
    }
    if by == Some(user) {
        return Err(SanctionError::BadRequest(texts::AGAINST_ONESELF));
    }
    check_allowed(inner, app, room, by).await?;
    let event =
        Event::SanctionImposed { app, room, user, sanction, until_ms, reason: reason.clone(), by };
    let (msg_id, at_ms) = append(inner, app, room, user, event).await?;
    let taken = Some(Sanction { msg_id, at_ms, until_ms, reason, by });
    let change = SanctionChange { app, room, user, sanction, taken, msg_id };
    sanction_entries::apply(inner, &change).await?;
    inner.metrics.sanctions.inc();
    info!(%app, ?room, %user, ?sanction, ?until_ms, ?by, %msg_id, "sanction imposed");
    Ok(msg_id)
}

/// Lifts a mute or a ban. Returns false when there was none.
pub(crate) async fn lift(
    inner: &LivingInner,
    request: LiftSanction,
) -> Result<bool, SanctionError> {
    let LiftSanction { app, room, user, sanction, by } = request;
    if !matches!(sanction, SanctionKind::Mute | SanctionKind::Ban) {
        return Err(SanctionError::BadRequest(texts::NOT_LIFTABLE));
    }
    check_allowed(inner, app, room, by).await?;
    let kv_entry =
        inner.sanctions.read(&sanction::key(app, room, user)).await.map_err(bucket_failed)?;
    let entry = sanction_entries::decode(kv_entry.value.as_deref());
    let in_force = match sanction {
        SanctionKind::Mute => entry.is_muted(now_ms()),
        _ => entry.is_banned(now_ms()),
    };
    if !in_force {
        return Ok(false);
    }
    let event = Event::SanctionLifted { app, room, user, sanction, by };
    let (msg_id, _) = append(inner, app, room, user, event).await?;
    let change = SanctionChange { app, room, user, sanction, taken: None, msg_id };
    sanction_entries::apply(inner, &change).await?;
    info!(%app, ?room, %user, ?sanction, ?by, %msg_id, "sanction lifted");
    Ok(true)
}

/// Lists the mutes and bans in force. It reads the leader of the bucket, so a caller finds a
/// sanction that it has just imposed.
pub(crate) async fn list(
    inner: &LivingInner,
    request: ListSanctions,
) -> Result<SanctionPage, SanctionError> {
    let ListSanctions { app, room, user, by, after, limit } = request;
    check_allowed(inner, app, room, by).await?;
    let kv_entries = inner.sanctions.list().await.map_err(bucket_failed)?;
    let wanted = |key: &str| {
        let (key_app, key_room, key_user) = sanction::parse_key(key)?;
        let matches = key_app == app
            && key_room == room
            && user.is_none_or(|user| user == key_user)
            && after.is_none_or(|after| key_user > after);
        matches.then_some(key_user)
    };
    let now_ms = now_ms();
    let mut found: Vec<(UserId, SanctionEntry)> = kv_entries
        .into_iter()
        .filter_map(|(key, kv_entry)| {
            Some((wanted(&key)?, sanction_entries::decode(kv_entry.value.as_deref())))
        })
        .filter(|(_, entry)| entry.is_muted(now_ms) || entry.is_banned(now_ms))
        .collect();
    found.sort_unstable_by_key(|(user, _)| *user);
    let limit = usize::try_from(limit.clamp(1, LIST_MAX)).unwrap_or(1);
    let has_next = found.len() > limit;
    found.truncate(limit);
    let list = found.into_iter().flat_map(|(user, entry)| in_force(user, entry, now_ms)).collect();
    Ok(SanctionPage { list, has_next })
}

fn in_force(user: UserId, entry: SanctionEntry, now_ms: u64) -> Vec<ActiveSanction> {
    [(SanctionKind::Mute, entry.mute), (SanctionKind::Ban, entry.ban)]
        .into_iter()
        .filter_map(|(sanction, taken)| Some((sanction, taken?)))
        .filter(|(_, taken)| taken.is_active(now_ms))
        .map(|(sanction, taken)| {
            let Sanction { msg_id, until_ms, reason, by, .. } = taken;
            ActiveSanction { user, sanction, until_ms, reason, by, msg_id }
        })
        .collect()
}

/// Checks that `by` may impose sanctions in the room, or in the whole app.
async fn check_allowed(
    inner: &LivingInner,
    app: AppId,
    room: Option<RoomId>,
    by: Option<UserId>,
) -> Result<(), SanctionError> {
    if !inner.apps.contains(&app) {
        return Err(SanctionError::BadRequest(texts::APP_NOT_SERVED));
    }
    let Some(room) = room else {
        return match by {
            None => Ok(()),
            Some(_) => Err(SanctionError::BadRequest(texts::ROOM_ID_MISSING)),
        };
    };
    match inner.statuses.status(app, room).await? {
        RoomStatus::Open(open) if by.is_none_or(|by| by == open.anchor) => Ok(()),
        RoomStatus::Open(_) => Err(SanctionError::NotTheAnchor { room }),
        RoomStatus::Closed | RoomStatus::Unknown => Err(SanctionError::NotOpen { room }),
    }
}

async fn append(
    inner: &LivingInner,
    app: AppId,
    room: Option<RoomId>,
    user: UserId,
    event: Event,
) -> Result<(MsgId, u64), SanctionError> {
    let subject = match room {
        Some(room) => subject::room(app, room, RoomKind::Sanctions),
        None => subject::user(app, user, subject::UserKind::Sanctions),
    };
    let record = Record::at(now_ms(), event);
    let key = format!("measure:{:032x}", fresh_nonce());
    let stored =
        inner.bus.append(subject, &record, &key, AppendCondition::Any, APPEND_TIMEOUT).await;
    let stored = stored.map_err(|source| SanctionError::Append { user, source })?;
    Ok((stored, record.at_ms))
}

fn bucket_failed(source: BucketError) -> SanctionError {
    SanctionEntryError::from(source).into()
}
