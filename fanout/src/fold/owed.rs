//! Room messages that were sent and never acknowledged: they belong to their
//! users, who may be back in the room through another connection.
//!
//! Each is sent again to one connection of its user, the newest, and only if
//! that has joined since. Whoever is not back yet is awaited for a minute.

use std::collections::{BTreeMap, BTreeSet};

use qiyu_schema::{AppId, ConnId, Incarnation, MsgId, RoomId, UserId, event::UnackedMessage};
use serde::{Deserialize, Serialize};

use super::{Effect, Fold, Member, Room};

/// Somebody whose gateway died.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Departed {
    pub(super) gateway: Incarnation,
    pub(super) user: UserId,
    pub(super) joined: MsgId,
    pub(super) at_ms: u64,
}

/// A message a user never acknowledged on a connection that is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Owed {
    msg_id: MsgId,
    sends: u32,
    pub(super) at_ms: u64,
}

/// How long those whose gateway died have to come back and still be sent what
/// they had not acknowledged. Afterwards they read it in the history.
pub(super) const OWED_KEPT_MS: u64 = 60_000;

impl Fold {
    /// Sends what was never acknowledged to those who have come back since.
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
            // Whoever asked for what was missed has it from there.
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

/// Where somebody has come back to, ordered by when.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Back<'a> {
    joined: MsgId,
    to: &'a Incarnation,
    connection: ConnId,
    resumed: bool,
}

impl Room {
    /// Who was sent a message by a gateway that died.
    fn who_departed_with(&self, msg_id: MsgId, gateway: &Incarnation) -> BTreeSet<UserId> {
        let had_it = |d: &&Departed| d.gateway == *gateway && d.joined < msg_id;
        self.departed.iter().filter(had_it).map(|d| d.user).collect()
    }

    /// Of each user the one connection that came last, on whatever gateway, if it
    /// came after the message.
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

    /// What is owed to a user who comes back, oldest first.
    pub(super) fn take_owed(&mut self, user: UserId, at_ms: u64) -> BTreeMap<MsgId, u32> {
        let owed = self.owed.remove(&user).unwrap_or_default();
        let in_time = |owed: &Owed| at_ms < owed.at_ms.saturating_add(OWED_KEPT_MS);
        owed.into_iter().filter(in_time).map(|owed| (owed.msg_id, owed.sends)).collect()
    }

    /// Forgets what nobody has come back for in time.
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
    fn what_a_dead_gateway_owed_follows_its_people_wherever_they_come_back() {
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
    fn what_somebody_left_unacknowledged_follows_them_only_if_they_are_back() {
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
