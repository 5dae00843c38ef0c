//! Unacknowledged room messages: they stay pending for their users, which may
//! return to the room through another connection.
//!
//! Each is sent again to one connection of its user, the newest, and only if
//! that has joined since. A user that has not returned has a minute to do so.

use std::collections::{BTreeMap, BTreeSet};

use qiyu_schema::{AppId, ConnId, Incarnation, MsgId, RoomId, UserId, event::UnackedMessage};
use serde::{Deserialize, Serialize};

use super::{Effect, Fold, Member, Room};

/// A member whose gateway died.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Departed {
    pub(super) gateway: Incarnation,
    pub(super) user: UserId,
    pub(super) joined: MsgId,
    pub(super) at_ms: u64,
}

/// A message that a user did not acknowledge on a connection that is closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Owed {
    msg_id: MsgId,
    sends: u32,
    pub(super) at_ms: u64,
}

/// How long a user may take to return and still be sent its unacknowledged
/// messages. Afterwards the client reads them in the history.
pub(super) const OWED_KEPT_MS: u64 = 60_000;

impl Fold {
    /// Sends unacknowledged messages again to the users that have returned since.
    pub(super) fn repeat(
        &mut self,
        app: AppId,
        room_id: RoomId,
        gateway: &Incarnation,
        at_ms: u64,
        messages: Vec<UnackedMessage>,
        keep: bool,
    ) -> Vec<Effect> {
        let Some(room) = self.rooms.get_mut(&(app, room_id)) else { return Vec::new() };
        room.forget_departed(at_ms);
        let mut effects = Vec::new();
        for UnackedMessage { msg_id, users, sends } in messages {
            let users: BTreeSet<UserId> = match users {
                Some(users) => users.into_iter().collect(),
                None => room.who_departed_with(msg_id, gateway),
            };
            let back = room.who_is_back(msg_id, &users);
            let served: BTreeSet<UserId> = back.keys().copied().collect();
            let mut targets: BTreeMap<Incarnation, Vec<ConnId>> = BTreeMap::new();
            // A connection that resumed has read the missed messages itself.
            for Back { to, connection, .. } in back.into_values().filter(|back| !back.resumed) {
                targets.entry(to.clone()).or_default().push(connection);
            }
            for (to, connections) in targets {
                effects.push(Effect::Repeat { to, app, room: room_id, msg_id, sends, connections });
            }
            if keep && room.closed.is_none() {
                for user in users.difference(&served) {
                    room.owed.entry(*user).or_default().push(Owed { msg_id, sends, at_ms });
                }
            }
        }
        effects
    }
}

/// The connection through which a user has returned, ordered by its join.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Back<'a> {
    joined: MsgId,
    to: &'a Incarnation,
    connection: ConnId,
    resumed: bool,
}

impl Room {
    /// Returns the users that a gateway had sent a message to before it died.
    fn who_departed_with(&self, msg_id: MsgId, gateway: &Incarnation) -> BTreeSet<UserId> {
        let had_it = |d: &&Departed| d.gateway == *gateway && d.joined < msg_id;
        self.departed.iter().filter(had_it).map(|d| d.user).collect()
    }

    /// Returns each user's newest connection, on any gateway, if it joined after
    /// the message.
    fn who_is_back(&self, msg_id: MsgId, users: &BTreeSet<UserId>) -> BTreeMap<UserId, Back<'_>> {
        let mut newest: BTreeMap<UserId, Back<'_>> = BTreeMap::new();
        for (to, members) in &self.gateways {
            for (&connection, &Member { user, joined, resumed }) in &members.connections {
                if msg_id < joined && users.contains(&user) {
                    let back = Back { joined, to, connection, resumed };
                    newest.entry(user).and_modify(|last| *last = back.max(*last)).or_insert(back);
                }
            }
        }
        newest
    }

    /// Removes and returns the pending messages of a user that returns, oldest first.
    pub(super) fn take_owed(&mut self, user: UserId, at_ms: u64) -> BTreeMap<MsgId, u32> {
        let owed = self.owed.remove(&user).unwrap_or_default();
        let in_time = |owed: &Owed| at_ms < owed.at_ms.saturating_add(OWED_KEPT_MS);
        owed.into_iter().filter(in_time).map(|owed| (owed.msg_id, owed.sends)).collect()
    }

    /// Removes messages and members that have waited for over a minute.
    pub(super) fn forget_owed(&mut self, at_ms: u64) {
        self.forget_departed(at_ms);
        self.owed.retain(|_, owed| {
            owed.retain(|owed| at_ms < owed.at_ms.saturating_add(OWED_KEPT_MS));
            !owed.is_empty()
        });
    }

    pub(super) fn forget_departed(&mut self, at_ms: u64) {
        self.departed.retain(|d| at_ms < d.at_ms.saturating_add(OWED_KEPT_MS));
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::event::{Event, MemberChange};

    use crate::fold::partition::{Partition, app, conn, gateway, joined, left, room, user};

    use super::*;

    #[test]
    fn unacked_messages_of_a_dead_gateway_are_sent_where_its_users_return() {
        let mut log = Partition::default();
        let (dead, b, c) = (gateway("a", 1), gateway("b", 1), gateway("c", 1));
        log.folds(Event::RoomOpened {
            app: app(),
            room: room(),
            anchor: user(9),
            room_type: 1,
            name: String::new(),
            cover: String::new(),
        });
        log.moves(&dead, &[joined(1, 1), joined(2, 2), joined(3, 3)]);
        log.says(9);
        let lost = log.here();
        log.folds(Event::GatewayGone { gateway: dead.clone() });
        log.moves(&b, &[joined(1, 1)]);
        let messages = vec![UnackedMessage { msg_id: lost, users: None, sends: 1 }];
        let (app, room, gateway) = (app(), room(), dead);
        let left = Event::Unacknowledged { app, room, gateway, messages, keep: true };
        let repeat = |to: &Incarnation, c: u64| Effect::Repeat {
            to: to.clone(),
            app,
            room,
            msg_id: lost,
            sends: 1,
            connections: vec![conn(c)],
        };
        assert_eq!(log.folds(left), [repeat(&b, 1)]);
        assert_eq!(log.moves(&c, &[joined(5, 2)]), [repeat(&c, 5)]);
        assert_eq!(log.moves(&c, &[joined(6, 2)]), [], "once");
        let resumed = MemberChange::Joined { connection: conn(7), user: user(3), resumed: true };
        assert_eq!(log.moves(&c, &[resumed]), [], "the resume has it");
        assert_eq!(log.moves(&c, &[joined(8, 3)]), []);
    }

    #[test]
    fn unacked_messages_of_a_closed_connection_are_sent_only_if_the_user_has_returned() {
        let mut log = Partition::default();
        let (a, b) = (gateway("a", 1), gateway("b", 1));
        log.moves(&a, &[joined(1, 1), joined(2, 2), joined(9, 9)]);
        log.says(9);
        let msg_id = log.here();
        log.moves(&a, &[left(1, 1), left(2, 2)]);
        log.moves(&b, &[joined(1, 1)]);
        log.moves(&b, &[joined(2, 1)]);
        let users = Some(vec![user(1), user(2)]);
        let messages = vec![UnackedMessage { msg_id, users, sends: 1 }];
        let (app, room, sends, connections) = (app(), room(), 1, vec![conn(2)]);
        let owed = Event::Unacknowledged { app, room, gateway: a.clone(), messages, keep: false };
        let repeat = Effect::Repeat { to: b, app, room, msg_id, sends, connections };
        assert_eq!(log.folds(owed), [repeat], "to one connection, the newest");
        assert_eq!(log.moves(&a, &[joined(3, 2)]), [], "too late");
    }
}
