//! Users: their sessions on all gateways, and their direct messages.
//!
//! A direct message is pending from its event until a connection of its user has
//! acknowledged it, or the inbox would have dropped it. A user comes online and
//! goes offline once, with the first session and the last.

use std::collections::BTreeMap;

use qiyu_nats::stream::{INBOX_AGE_MAX, INBOX_MESSAGES_MAX};
use qiyu_schema::{
    AppId, ConnId, Incarnation, MsgId, UserId,
    envelope::{DirectTarget, Envelope},
    event::SessionChange,
};
use serde::{Deserialize, Serialize};

use super::{Effect, Fold};

/// A user that is online or has pending direct messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct User {
    pub(super) sessions: Vec<Session>,
    /// Unacknowledged direct messages.
    pub(super) waiting: BTreeMap<MsgId, Unread>,
}

/// A direct message that is pending.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Unread {
    pub(super) written_ms: u64,
    /// The inbox has a copy, which outlives the log.
    pub(super) kept: bool,
}

/// A connection of a user, in a room or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) gateway: Incarnation,
    pub(super) connection: ConnId,
    /// The last direct message sent to it.
    prev: Option<MsgId>,
}

impl Unread {
    /// Returns whether the inbox would still hold it.
    pub(super) fn waits(self, at_ms: u64) -> bool {
        let age_ms = u64::try_from(INBOX_AGE_MAX.as_millis()).unwrap_or(u64::MAX);
        at_ms < self.written_ms.saturating_add(age_ms)
    }
}

impl Fold {
    /// Adds a pending direct message, and sends it to every connection of its user.
    pub(super) fn write_to(
        &mut self,
        app: AppId,
        to: UserId,
        msg_id: MsgId,
        at_ms: u64,
        biz_code: i32,
        data: String,
    ) -> Vec<Effect> {
        let user = self.users.entry((app, to)).or_default();
        let kept = user.sessions.is_empty();
        user.waiting.insert(msg_id, Unread { written_ms: at_ms, kept });
        while INBOX_MESSAGES_MAX < i64::try_from(user.waiting.len()).unwrap_or(i64::MAX) {
            user.waiting.pop_first(); // the contract keeps the newest 1000
        }
        if user.sessions.is_empty() {
            return vec![Effect::KeepForLater { app, user: to, biz_code, data }];
        }
        // One envelope per gateway, for all connections of the user there.
        let mut targets: BTreeMap<Incarnation, Vec<DirectTarget>> = BTreeMap::new();
        for session in &mut user.sessions {
            let prev = session.prev.replace(msg_id);
            let target = DirectTarget { connection: session.connection, prev };
            targets.entry(session.gateway.clone()).or_default().push(target);
        }
        targets
            .into_iter()
            .map(|(gateway, targets)| Effect::Deliver {
                to: gateway,
                envelope: Envelope::Direct {
                    app,
                    user: to,
                    msg_id,
                    biz_code,
                    data: data.clone(),
                    to: targets,
                    at_ms: Some(at_ms),
                },
            })
            .collect()
    }

    pub(super) fn move_session(
        &mut self,
        app: AppId,
        gateway: &Incarnation,
        at_ms: u64,
        change: SessionChange,
    ) -> Vec<Effect> {
        match change {
            SessionChange::Online { connection, user, .. } => {
                self.come_online(app, user, gateway, connection, at_ms)
            }
            SessionChange::Offline { connection, user, .. } => self
                .end_sessions(app, user, |s| s.gateway == *gateway && s.connection == connection),
            SessionChange::Read { user, msg_ids } => self.read(app, user, &msg_ids),
            SessionChange::Unknown => Vec::new(),
        }
    }

    fn come_online(
        &mut self,
        app: AppId,
        user: UserId,
        gateway: &Incarnation,
        connection: ConnId,
        at_ms: u64,
    ) -> Vec<Effect> {
        let person = self.users.entry((app, user)).or_default();
        let known = |s: &Session| s.gateway == *gateway && s.connection == connection;
        if person.sessions.iter().any(known) {
            return Vec::new();
        }
        person.waiting.retain(|_, unread| unread.waits(at_ms));
        let msg_ids: Vec<MsgId> = person.waiting.keys().copied().collect();
        let first = person.sessions.is_empty();
        person.sessions.push(Session {
            gateway: gateway.clone(),
            connection,
            prev: msg_ids.last().copied(),
        });
        let mut effects = Vec::new();
        if first {
            effects.push(Effect::CameOnline { app, user });
        }
        if !msg_ids.is_empty() {
            let to = gateway.clone();
            effects.push(Effect::DeliverWaiting { to, app, user, connection, msg_ids });
        }
        effects
    }

    fn read(&mut self, app: AppId, user: UserId, msg_ids: &[MsgId]) -> Vec<Effect> {
        let Some(reader) = self.users.get_mut(&(app, user)) else { return Vec::new() };
        let mut kept = false;
        for msg_id in msg_ids {
            kept |= reader.waiting.remove(msg_id).is_some_and(|unread| unread.kept);
        }
        let nothing_waits = reader.waiting.is_empty();
        if nothing_waits && reader.sessions.is_empty() {
            self.users.remove(&(app, user));
        }
        match kept && nothing_waits {
            true => vec![Effect::NothingWaits { app, user }],
            false => Vec::new(), // the inbox has nothing, or something that still waits
        }
    }

    /// Ends all sessions at ended incarnations.
    pub(super) fn end_all_sessions(&mut self, over: impl Fn(&Incarnation) -> bool) -> Vec<Effect> {
        let mut touched: Vec<(AppId, UserId)> = self
            .users
            .iter()
            .filter(|(_, user)| user.sessions.iter().any(|s| over(&s.gateway)))
            .map(|(key, _)| *key)
            .collect();
        touched.sort_unstable(); // every owner derives the same facts in the same order
        touched
            .into_iter()
            .flat_map(|(app, user)| self.end_sessions(app, user, |s| over(&s.gateway)))
            .collect()
    }

    fn end_sessions(
        &mut self,
        app: AppId,
        user: UserId,
        ends: impl Fn(&Session) -> bool,
    ) -> Vec<Effect> {
        let Some(person) = self.users.get_mut(&(app, user)) else { return Vec::new() };
        let before = person.sessions.len();
        person.sessions.retain(|session| !ends(session));
        if person.sessions.len() == before || !person.sessions.is_empty() {
            return Vec::new();
        }
        let mut effects = vec![Effect::WentOffline { app, user }];
        let mut msg_ids = Vec::new();
        for (msg_id, unread) in person.waiting.iter_mut().filter(|(_, unread)| !unread.kept) {
            unread.kept = true;
            msg_ids.push(*msg_id);
        }
        if person.waiting.is_empty() {
            self.users.remove(&(app, user));
        }
        if !msg_ids.is_empty() {
            effects.push(Effect::KeepUnread { app, user, msg_ids });
        }
        effects
    }

    /// Removes expired messages, and offline users without pending messages.
    pub(super) fn forget_waiting(&mut self, at_ms: u64) {
        self.users.retain(|_, user| {
            user.waiting.retain(|_, unread| unread.waits(at_ms));
            !user.sessions.is_empty() || !user.waiting.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::fold::partition::{Partition, app, conn, gateway, offline, online, user};

    use super::*;

    #[test]
    fn a_user_goes_offline_once_with_the_last_session() {
        let mut log = Partition::default();
        let (a, b) = (gateway("a", 1), gateway("b", 1));
        let came = [Effect::CameOnline { app: app(), user: user(1) }];
        let went = [Effect::WentOffline { app: app(), user: user(1) }];
        assert_eq!(log.session(&a, online(1, 1)), came);
        assert_eq!(log.session(&b, online(1, 1)), []);
        assert_eq!(log.session(&a, offline(1, 1)), []);
        assert_eq!(log.session(&a, offline(1, 1)), []);
        assert_eq!(log.session(&b, offline(1, 1)), went);
        assert_eq!(log.session(&b, offline(1, 1)), []);
    }

    #[test]
    fn a_direct_message_to_an_offline_user_is_pending_until_it_is_read() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        assert!(matches!(log.writes(1)[..], [Effect::KeepForLater { .. }]));
        let first = log.here();
        log.writes(1);
        let second = log.here();
        let waiting = |connection, msg_ids: Vec<MsgId>| Effect::DeliverWaiting {
            to: a.clone(),
            app: app(),
            user: user(1),
            connection,
            msg_ids,
        };
        let login = log.session(&a, online(1, 1));
        assert_eq!(login[1], waiting(conn(1), vec![first, second]));
        let read = |ids: Vec<MsgId>| SessionChange::Read { user: user(1), msg_ids: ids };
        assert_eq!(log.session(&a, read(vec![first])), []);
        let again = log.session(&a, online(2, 1));
        assert_eq!(again, [waiting(conn(2), vec![second])]);
        let done = log.session(&a, read(vec![second, second])); // both were kept
        assert_eq!(done, [Effect::NothingWaits { app: app(), user: user(1) }]);
        assert_eq!(log.session(&a, online(3, 1)), []);
    }

    #[test]
    fn unread_direct_messages_are_copied_to_the_inbox_when_the_last_session_ends() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        log.session(&a, online(1, 1));
        log.writes(1);
        let unread = log.here();
        let went = Effect::WentOffline { app: app(), user: user(1) };
        let msg_ids = vec![unread];
        let keep = Effect::KeepUnread { app: app(), user: user(1), msg_ids };
        assert_eq!(log.session(&a, offline(1, 1)), [went.clone(), keep]);
        log.session(&a, online(2, 1));
        assert_eq!(log.session(&a, offline(2, 1)), [went], "once");
    }

    #[test]
    fn one_envelope_serves_all_of_a_users_connections_on_a_gateway() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        log.session(&a, online(1, 1));
        log.session(&a, online(2, 1));
        log.writes(1);
        let first = log.here();
        let effects = log.writes(1);
        let [Effect::Deliver { envelope: Envelope::Direct { to, .. }, .. }] = &effects[..] else {
            panic!("{effects:?}");
        };
        let prev = Some(first);
        assert_eq!(to[..], [1, 2].map(|c| DirectTarget { connection: conn(c), prev }));
    }
}
