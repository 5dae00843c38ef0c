//! The sessions of users, for the is-online query and the limit of connections.
//!
//! Beside the log, not part of it: routing follows the `online` and `offline`
//! events. An entry counts only while its gateway's lease has the same epoch,
//! so the entries of a dead gateway are void without being removed.

use std::{collections::HashMap, time::Duration};

use qiyu_nats::{
    Bus,
    bucket::{Bucket, BucketError},
    stream::BucketName,
};
use qiyu_schema::{AppId, ConnId, Incarnation, RoomId, UserId, codec};
use serde::{Deserialize, Serialize};

use crate::gateways::Gateways;

/// Connections one user may have at once: a phone, a tablet, a few tabs.
pub const SESSIONS_MAX: usize = 5;
/// The age at which an entry that was never removed expires; gateways refresh theirs
/// long before.
const SESSION_TTL: Duration = Duration::from_secs(15 * 60);
/// Attempts at one compare-and-set: each loss means another session of the
/// same user got through, so more than a few cannot be a person.
const ATTEMPTS_MAX: u32 = 20;

/// One connection of a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Where it is.
    pub gateway: Incarnation,
    /// Which one it is there.
    pub connection: ConnId,
    /// The room it entered. `None`: none.
    pub room: Option<RoomId>,
    /// Since when, ms since 1970.
    pub since_ms: u64,
}

/// The effect of a further connection of the same user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionPolicy {
    /// Up to [`SESSIONS_MAX`] at once; a further one is refused.
    Allow,
    /// The newest login ends the older ones.
    Replace,
}

/// The sessions could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("sessions of user {user}")]
pub struct SessionError {
    user: UserId,
    source: BucketError,
}

/// A user may not connect now.
#[derive(Debug, thiserror::Error)]
pub enum AddSessionError {
    /// The limit is reached.
    #[error("user {user} has {SESSIONS_MAX} connections already")]
    TooMany { user: UserId },
    /// Not known, because the bucket did not answer.
    #[error(transparent)]
    Unknown(SessionError),
}

/// Sessions by user; `None` for an entry that cannot be decoded.
pub type SessionsByUser = HashMap<(AppId, UserId), Option<Vec<Session>>>;

/// The sessions of all users.
#[derive(Clone)]
pub struct Sessions {
    bucket: Bucket,
    gateways: Gateways,
}

impl Sessions {
    /// The sessions on this bus.
    pub fn new(bus: &Bus, gateways: Gateways) -> Self {
        Self { bucket: bus.bucket(BucketName::Presence), gateways }
    }

    /// Whether the user has a session on a living gateway.
    ///
    /// # Errors
    ///
    /// When the bucket does not answer.
    pub async fn is_online(&self, app: AppId, user: UserId) -> Result<bool, SessionError> {
        let slot = self.bucket.read(&key(app, user)).await;
        let slot = slot.map_err(|source| SessionError { user, source })?;
        let sessions = decoded(slot.value.as_deref());
        Ok(sessions.iter().any(|session| self.gateways.is_live(&session.gateway)))
    }

    /// Returns all users' sessions on live gateways; `None` for an entry that cannot
    /// be decoded.
    ///
    /// # Errors
    ///
    /// When the bucket does not answer.
    pub async fn all(&self) -> Result<SessionsByUser, BucketError> {
        let mut everybody = HashMap::new();
        for (key, slot) in self.bucket.list().await? {
            let Some((app, user)) = parse_key(&key) else { continue };
            let Some(value) = slot.value else { continue };
            let Ok(mut sessions) = codec::decode::<Vec<Session>>(&value) else {
                everybody.insert((app, user), None);
                continue;
            };
            sessions.retain(|session| self.gateways.is_live(&session.gateway));
            if !sessions.is_empty() {
                everybody.insert((app, user), Some(sessions));
            }
        }
        Ok(everybody)
    }

    /// Adds `session`, or writes it anew. Returns the sessions it took the place of.
    ///
    /// # Errors
    ///
    /// [`AddSessionError::TooMany`] under [`SessionPolicy::Allow`], else when the bucket does not answer.
    pub async fn add(
        &self,
        app: AppId,
        user: UserId,
        session: &Session,
        policy: SessionPolicy,
    ) -> Result<Vec<Session>, AddSessionError> {
        let mut replaced = Vec::new();
        self.change(app, user, |sessions| {
            // Sessions of this gateway count even before the mirror shows its lease.
            sessions.retain(|s| s.gateway == session.gateway || self.gateways.is_live(&s.gateway));
            sessions.retain(|s| !same(s, session));
            replaced = match policy {
                SessionPolicy::Replace => std::mem::take(sessions),
                SessionPolicy::Allow if SESSIONS_MAX <= sessions.len() => return Err(()),
                SessionPolicy::Allow => Vec::new(),
            };
            sessions.push(session.clone());
            Ok(())
        })
        .await
        .map_err(|error| match error {
            ChangeError::Refused => AddSessionError::TooMany { user },
            ChangeError::Bucket(source) => AddSessionError::Unknown(SessionError { user, source }),
        })?;
        Ok(replaced)
    }

    /// Removes `session`, and no other.
    ///
    /// # Errors
    ///
    /// When the bucket does not answer; the entry then ends with the gateway's
    /// lease or after 15 minutes.
    pub async fn remove(
        &self,
        app: AppId,
        user: UserId,
        session: &Session,
    ) -> Result<(), SessionError> {
        let left = self.change(app, user, |sessions| {
            let before = sessions.len();
            sessions.retain(|s| !same(s, session));
            if sessions.len() == before { Err(()) } else { Ok(()) }
        });
        match left.await {
            Ok(()) | Err(ChangeError::Refused) => Ok(()),
            Err(ChangeError::Bucket(source)) => Err(SessionError { user, source }),
        }
    }

    async fn change(
        &self,
        app: AppId,
        user: UserId,
        mut apply: impl FnMut(&mut Vec<Session>) -> Result<(), ()>,
    ) -> Result<(), ChangeError> {
        let key = key(app, user);
        let mut attempt = 0;
        loop {
            let slot = self.bucket.read(&key).await.map_err(ChangeError::Bucket)?;
            let before = decoded(slot.value.as_deref());
            let mut after = before.clone();
            apply(&mut after).map_err(|()| ChangeError::Refused)?;
            let written = if after.is_empty() {
                match slot.value {
                    Some(_) => self.bucket.remove_if(&key, slot.revision).await,
                    None => return Ok(()),
                }
            } else {
                let value = codec::encode(&after).expect("plain data encodes");
                self.bucket.set_if(&key, slot.revision, value, Some(SESSION_TTL)).await.map(drop)
            };
            match written {
                Ok(()) => return Ok(()),
                Err(BucketError::Conflict { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
                Err(error) => return Err(ChangeError::Bucket(error)),
            }
        }
    }
}

enum ChangeError {
    Refused,
    Bucket(BucketError),
}

fn same(a: &Session, b: &Session) -> bool {
    a.gateway == b.gateway && a.connection == b.connection
}

fn key(app: AppId, user: UserId) -> String {
    format!("{app}.{user}")
}

fn parse_key(key: &str) -> Option<(AppId, UserId)> {
    let (app, user) = key.split_once('.')?;
    Some((app.parse().ok()?, user.parse().ok()?))
}

/// Decodes an entry. An undecodable one counts as empty: the bucket is a cache of the
/// log.
fn decoded(value: Option<&[u8]>) -> Vec<Session> {
    value.and_then(|value| codec::decode(value).ok()).unwrap_or_default()
}
