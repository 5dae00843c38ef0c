//! The bucket `measures`: the sanctions in force, which gateways enforce from.

use std::time::Duration;

use qiyu_nats::{bucket::BucketError, chain, now_ms};
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId,
    codec::{self, EncodeError},
    sanction::{self, Sanction, SanctionEntry, SanctionKind},
};
use tracing::warn;

use crate::inner::LivingInner;

/// Attempts at one compare-and-set. Each one that is lost is another sanction against the user.
const ATTEMPTS_MAX: u32 = 20;

/// The bucket could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SanctionEntryError {
    #[error("store sanctions in the bucket")]
    Bucket(#[from] BucketError),
    #[error("encode sanctions")]
    Encode(#[from] EncodeError),
}

/// A sanction that was imposed or lifted, as an event of the log has it.
#[derive(Clone, Debug)]
pub(crate) struct SanctionChange {
    pub(crate) app: AppId,
    /// `None`: in the whole app.
    pub(crate) room: Option<RoomId>,
    pub(crate) user: UserId,
    pub(crate) sanction: SanctionKind,
    /// `None`: lifted.
    pub(crate) taken: Option<Sanction>,
    pub(crate) msg_id: MsgId,
}

/// Applies a change to the user's entry. Concurrent writers repeat their compare-and-set.
pub(crate) async fn apply(
    inner: &LivingInner,
    change: &SanctionChange,
) -> Result<(), SanctionEntryError> {
    let key = sanction::key(change.app, change.room, change.user);
    let mut attempt = 0;
    loop {
        let kv_entry = inner.sanctions.read(&key).await?;
        let mut entry = decode(kv_entry.value.as_deref());
        let is_new = match &change.taken {
            Some(taken) => entry.impose(change.sanction, taken.clone()),
            None => entry.lift(change.sanction, change.msg_id),
        };
        if !is_new {
            return Ok(());
        }
        // An entry lives at least as long as the log keeps its events. If it expired earlier, a
        // replay would rebuild it from its first event alone.
        let ttl = entry
            .ends_ms()
            .map(|ends| Duration::from_millis(ends.saturating_sub(now_ms())).max(inner.retain));
        let value = codec::encode(&entry)?;
        match inner.sanctions.set_if(&key, kv_entry.revision, value, ttl).await {
            Ok(_) => return Ok(()),
            Err(BucketError::Conflict { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes the entries of a room that is over. An entry that stays after a failure is harmless,
/// because a room's id is never used again.
pub(crate) async fn remove_room(inner: &LivingInner, app: AppId, room: RoomId) {
    let is_in_room =
        |key: &str| sanction::parse_key(key).is_some_and(|(a, r, _)| a == app && r == Some(room));
    let entries = inner.sanctions_mirror.all();
    for (key, kv_entry) in entries.into_iter().filter(|(key, _)| is_in_room(key)) {
        if let Err(error) = inner.sanctions.remove_if(&key, kv_entry.revision).await {
            warn!(%room, key, error = %chain(&error), "sanction not removed with its room");
        }
    }
}

/// Decodes an entry. The next event replaces one that cannot be decoded.
pub(crate) fn decode(value: Option<&[u8]>) -> SanctionEntry {
    value.and_then(|value| codec::decode(value).ok()).unwrap_or_default()
}
