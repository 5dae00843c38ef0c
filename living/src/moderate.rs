//! Measures against users: an event in the log first, then the bucket that
//! gateways enforce from; the replay makes good what a death in between left out.

use std::time::Duration;

use qiyu_nats::{
    bucket::BucketError,
    log::{AppendError, Condition},
    now_ms,
    service::Refusal,
};
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId,
    codec::{self, EncodeError},
    command::{InForce, ListMeasures, Measures, Moderate, Pardon},
    event::{Event, Record},
    measure::{self, Measure, MeasureEntry, Taken},
    subject::{self, RoomKind},
    ticket::fresh_nonce,
};
use tracing::{info, warn};

use crate::{
    project::{ProjectError, Rooms},
    standing::Standing,
};

/// How long an event may take to be stored.
const APPEND_DEADLINE: Duration = Duration::from_secs(5);
/// A reason is a sentence for people.
const REASON_CHARS_MAX: usize = 200;
/// Users listed in one answer.
const LIST_MAX: u32 = 1000;
/// Attempts at one compare-and-set: each loss is another measure against the same user.
const ATTEMPTS_MAX: u32 = 20;

/// Why no measure was taken, lifted or listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModerateError {
    /// The asker's fault.
    #[error("{0}")]
    Asked(&'static str),
    #[error("room {room} is not open")]
    NotOpen { room: RoomId },
    #[error("room {room} is not the asker's")]
    NotTheirs { room: RoomId },
    #[error(transparent)]
    Unknown(ProjectError),
    #[error("append a measure against user {user}")]
    Append { user: UserId, source: AppendError },
    #[error(transparent)]
    Project(MeasureError),
}

/// The bucket does not hold what the log tells.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    #[error("keep measures in the bucket")]
    Bucket(#[from] BucketError),
    #[error("encode measures")]
    Encode(#[from] EncodeError),
}

impl ModerateError {
    /// What the asker hears.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Asked(message) => Refusal { code: 400, message: (*message).into() },
            Self::NotOpen { .. } => Refusal { code: 404, message: "the room is not open".into() },
            Self::NotTheirs { .. } => {
                Refusal { code: 403, message: "only the room's anchor may do this".into() }
            }
            Self::Unknown(_) | Self::Append { .. } | Self::Project(_) => {
                Refusal { code: 500, message: "系统异常".into() }
            }
        }
    }
}

/// A measure taken or lifted, as the log tells it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) app: AppId,
    pub(crate) room: Option<RoomId>,
    pub(crate) user: UserId,
    pub(crate) measure: Measure,
    /// `None`: lifted.
    pub(crate) taken: Option<Taken>,
    pub(crate) msg_id: MsgId,
}

/// Takes a measure. Returns once gateways are being told.
pub(crate) async fn moderate(rooms: &Rooms, asked: Moderate) -> Result<MsgId, ModerateError> {
    let Moderate { app, room, user, measure, until_ms, reason, by } = asked;
    if measure == Measure::Unknown {
        return Err(ModerateError::Asked("this measure is unknown here"));
    }
    if REASON_CHARS_MAX < reason.chars().count() {
        return Err(ModerateError::Asked("the reason is longer than 200 characters"));
    }
    let until_ms = until_ms.filter(|_| measure != Measure::Kick);
    if until_ms.is_some_and(|until| until <= now_ms()) {
        return Err(ModerateError::Asked("the measure would end before it begins"));
    }
    if by == Some(user) {
        return Err(ModerateError::Asked("nobody takes measures against themselves"));
    }
    check(rooms, app, room, by).await?;
    let reason_kept = reason.clone();
    let event = Event::MeasureTaken { app, room, user, measure, until_ms, reason, by };
    let (msg_id, at_ms) = append(rooms, app, room, user, event).await?;
    let taken = Some(Taken { msg_id, at_ms, until_ms, reason: reason_kept, by });
    let step = Step { app, room, user, measure, taken, msg_id };
    project(rooms, &step).await.map_err(ModerateError::Project)?;
    rooms.metrics.measures.inc();
    info!(%app, ?room, %user, ?measure, ?until_ms, ?by, %msg_id, "measure taken");
    Ok(msg_id)
}

/// Lifts a mute or a ban. `false`: there was none.
pub(crate) async fn pardon(rooms: &Rooms, asked: Pardon) -> Result<bool, ModerateError> {
    let Pardon { app, room, user, measure, by } = asked;
    if !matches!(measure, Measure::Mute | Measure::Ban) {
        return Err(ModerateError::Asked("only a mute or a ban can be lifted"));
    }
    check(rooms, app, room, by).await?;
    let slot = rooms.measures.read(&measure::key(app, room, user)).await;
    let slot = slot.map_err(|source| ModerateError::Project(source.into()))?;
    let entry = decoded(slot.value.as_deref());
    let holds = match measure {
        Measure::Mute => entry.is_muted(now_ms()),
        _ => entry.is_banned(now_ms()),
    };
    if !holds {
        return Ok(false);
    }
    let event = Event::MeasureLifted { app, room, user, measure, by };
    let (msg_id, _) = append(rooms, app, room, user, event).await?;
    let step = Step { app, room, user, measure, taken: None, msg_id };
    project(rooms, &step).await.map_err(ModerateError::Project)?;
    info!(%app, ?room, %user, ?measure, ?by, %msg_id, "measure lifted");
    Ok(true)
}

/// Lists the mutes and bans in force, read from the bucket's leader: whoever
/// has just taken one finds it.
pub(crate) async fn list(rooms: &Rooms, asked: ListMeasures) -> Result<Measures, ModerateError> {
    let ListMeasures { app, room, user, by, after, limit } = asked;
    check(rooms, app, room, by).await?;
    let slots = rooms.measures.list().await;
    let slots = slots.map_err(|source| ModerateError::Project(source.into()))?;
    let wanted = |key: &str| {
        let (of, there, whose) = measure::parse_key(key)?;
        let fits = of == app
            && there == room
            && user.is_none_or(|user| user == whose)
            && after.is_none_or(|after| after < whose);
        fits.then_some(whose)
    };
    let now_ms = now_ms();
    let mut found: Vec<(UserId, MeasureEntry)> = slots
        .into_iter()
        .filter_map(|(key, slot)| Some((wanted(&key)?, decoded(slot.value.as_deref()))))
        .filter(|(_, entry)| entry.is_muted(now_ms) || entry.is_banned(now_ms))
        .collect();
    found.sort_unstable_by_key(|(user, _)| *user);
    let limit = usize::try_from(limit.clamp(1, LIST_MAX)).unwrap_or(1);
    let has_next = limit < found.len();
    found.truncate(limit);
    let in_force = |(user, entry): (UserId, MeasureEntry)| {
        [(Measure::Mute, entry.mute), (Measure::Ban, entry.ban)]
            .into_iter()
            .filter_map(|(measure, taken)| Some((measure, taken?)))
            .filter(|(_, taken)| taken.holds(now_ms))
            .map(|(measure, taken)| {
                let Taken { msg_id, until_ms, reason, by, .. } = taken;
                InForce { user, measure, until_ms, reason, by, msg_id }
            })
            .collect::<Vec<_>>()
    };
    Ok(Measures { list: found.into_iter().flat_map(in_force).collect(), has_next })
}

/// Whether `by` may take measures there.
async fn check(
    rooms: &Rooms,
    app: AppId,
    room: Option<RoomId>,
    by: Option<UserId>,
) -> Result<(), ModerateError> {
    if !rooms.apps.contains(&app) {
        return Err(ModerateError::Asked("this app is not served here"));
    }
    let Some(room) = room else {
        return match by {
            None => Ok(()),
            Some(_) => Err(ModerateError::Asked("roomId is missing")),
        };
    };
    match rooms.standing(app, room).await.map_err(ModerateError::Unknown)? {
        Standing::Open(open) if by.is_none_or(|by| by == open.anchor) => Ok(()),
        Standing::Open(_) => Err(ModerateError::NotTheirs { room }),
        Standing::Closed | Standing::Unheard => Err(ModerateError::NotOpen { room }),
    }
}

async fn append(
    rooms: &Rooms,
    app: AppId,
    room: Option<RoomId>,
    user: UserId,
    event: Event,
) -> Result<(MsgId, u64), ModerateError> {
    let subject = match room {
        Some(room) => subject::room(app, room, RoomKind::Measures),
        None => subject::user_measures(app, user),
    };
    let record = Record::at(qiyu_nats::now_ms(), event);
    let key = format!("measure:{:032x}", fresh_nonce());
    let stored = rooms.bus.append(subject, &record, &key, Condition::Any, APPEND_DEADLINE).await;
    let stored = stored.map_err(|source| ModerateError::Append { user, source })?;
    Ok((stored.msg_id, record.at_ms))
}

/// Folds a step into the bucket, whoever else is at it.
pub(crate) async fn project(rooms: &Rooms, step: &Step) -> Result<(), MeasureError> {
    let key = measure::key(step.app, step.room, step.user);
    let mut attempt = 0;
    loop {
        let slot = rooms.measures.read(&key).await?;
        let mut entry = decoded(slot.value.as_deref());
        let news = match &step.taken {
            Some(taken) => entry.take(step.measure, taken.clone()),
            None => entry.lift(step.measure, step.msg_id),
        };
        if !news {
            return Ok(());
        }
        // Kept for as long as the log can tell it again: an entry that was gone
        // by then would be made anew from its first event alone.
        let ttl = entry
            .ends_ms()
            .map(|ends| Duration::from_millis(ends.saturating_sub(now_ms())).max(rooms.retain));
        let value = codec::encode(&entry)?;
        match rooms.measures.set_if(&key, slot.revision, value, ttl).await {
            Ok(_) => return Ok(()),
            Err(BucketError::Changed { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Forgets the measures in a room that is over. What fails here stays behind
/// and harms nobody: rooms are never used again.
pub(crate) async fn forget(rooms: &Rooms, app: AppId, room: RoomId) {
    let of_it = |key: &str| {
        measure::parse_key(key).is_some_and(|(of, there, _)| of == app && there == Some(room))
    };
    let entries = rooms.measured.all();
    for (key, slot) in entries.into_iter().filter(|(key, _)| of_it(key)) {
        if let Err(error) = rooms.measures.remove_if(&key, slot.revision).await {
            warn!(%room, key, error = &error as &dyn std::error::Error, "measure outlives its room");
        }
    }
}

/// What cannot be read is made anew by the next event.
fn decoded(value: Option<&[u8]>) -> MeasureEntry {
    value.and_then(|value| codec::decode(value).ok()).unwrap_or_default()
}
