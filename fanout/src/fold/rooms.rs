//! Rooms: opening, messages, likes, closing.
//!
//! A message goes to each gateway that has members in the room, once, and names
//! the one sent to that gateway before it. A closed room accepts nothing more: it
//! is remembered for late joins.

use std::collections::HashSet;

use qiyu_schema::{AppId, Incarnation, MsgId, RoomId, UserId, envelope::Envelope};
use serde::{Deserialize, Serialize};

use super::{Effect, Fold, Members, Room};

/// The event that closed a room.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Closed {
    pub(super) msg_id: MsgId,
    pub(super) at_ms: u64,
}

/// How long a closed room is remembered, for late joins.
/// Afterwards a join finds no room at all, which the gateway refuses before.
const CLOSED_KEPT_MS: u64 = 24 * 3600 * 1000;

/// The content of a room message, and its time.
pub(super) struct Said {
    pub(super) from: Option<UserId>,
    pub(super) biz_code: i32,
    pub(super) data: String,
    pub(super) at_ms: u64,
}

impl Fold {
    pub(super) fn open(&mut self, app: AppId, room: RoomId, anchor: UserId) {
        self.rooms.entry((app, room)).or_default().anchor = Some(anchor);
    }

    /// Returns one envelope for each gateway with members in the room.
    pub(super) fn say(
        &mut self,
        app: AppId,
        room: RoomId,
        msg_id: MsgId,
        said: &Said,
    ) -> Vec<Effect> {
        let Some(members) = self.rooms.get_mut(&(app, room)) else { return Vec::new() };
        if members.closed.is_some() {
            return Vec::new(); // stored and readable, not delivered
        }
        let envelope = |to: &Incarnation, members: &mut Members| Effect::Deliver {
            to: to.clone(),
            envelope: Envelope::Room {
                app,
                room,
                msg_id,
                prev: std::mem::replace(&mut members.prev, msg_id),
                from: said.from,
                biz_code: said.biz_code,
                data: said.data.clone(),
                at_ms: Some(said.at_ms),
            },
        };
        members.gateways.iter_mut().map(|(to, members)| envelope(to, members)).collect()
    }

    pub(super) fn like(&mut self, app: AppId, room: RoomId, count: u64) {
        if let Some(liked) = self.rooms.get_mut(&(app, room)) {
            liked.good_num = liked.good_num.saturating_add(count);
            self.stirred.insert((app, room));
        }
    }

    /// Closes a room, and returns an envelope for each gateway with members.
    pub(super) fn close(
        &mut self,
        app: AppId,
        room: RoomId,
        msg_id: MsgId,
        at_ms: u64,
    ) -> Vec<Effect> {
        self.rooms.retain(|_, room| {
            room.closed.is_none_or(|closed| at_ms < closed.at_ms.saturating_add(CLOSED_KEPT_MS))
        });
        let closing = self.rooms.entry((app, room)).or_default();
        if closing.closed.is_some() {
            return Vec::new();
        }
        closing.closed = Some(Closed { msg_id, at_ms });
        closing.inside.clear();
        closing.measures.clear();
        closing.anchor_gone_ms = None;
        self.stirred.insert((app, room));
        std::mem::take(&mut closing.gateways)
            .into_iter()
            .map(|(to, members)| Effect::Deliver {
                to,
                envelope: Envelope::RoomClosed {
                    app,
                    room,
                    msg_id,
                    prev: members.prev,
                    late: Vec::new(),
                },
            })
            .collect()
    }

    /// Returns and clears the set of rooms whose counts may have changed.
    pub fn take_stirred(&mut self) -> HashSet<(AppId, RoomId)> {
        std::mem::take(&mut self.stirred)
    }

    /// Adds every open room to that set: a new owner must count them all.
    pub fn stir_all(&mut self) {
        self.stirred.extend(
            self.rooms.iter().filter(|(_, room)| room.closed.is_none()).map(|(key, _)| *key),
        );
    }
}

impl Room {
    /// Returns whether the room was never opened, as far as the log reaches, and is empty.
    pub(super) fn means_nothing(&self) -> bool {
        let leftovers = !self.departed.is_empty() || !self.owed.is_empty();
        self.anchor.is_none() && self.closed.is_none() && self.gateways.is_empty() && !leftovers
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::event::Event;

    use crate::fold::{
        Effect,
        partition::{Partition, app, conn, gateway, joined, left, room, sent, viewers},
    };

    use super::*;

    #[test]
    fn a_message_goes_once_to_each_gateway_with_members_and_names_the_one_before() {
        let mut log = Partition::default();
        let (a, b) = (gateway("a", 1), gateway("b", 1));
        log.moves(&a, &[joined(1, 1), joined(2, 2)]);
        let in_a = log.here();
        let first = log.says(1);
        let m1 = log.here();
        assert_eq!(sent(&first), [("a.1".into(), m1, in_a)]);
        log.moves(&b, &[joined(1, 3)]);
        let in_b = log.here();
        let second = log.says(1);
        let m2 = log.here();
        assert_eq!(sent(&second), [("a.1".into(), m2, m1), ("b.1".into(), m2, in_b)]);
    }

    #[test]
    fn a_gateway_without_members_gets_no_envelope_and_starts_at_its_next_join() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        log.moves(&a, &[joined(1, 1)]);
        log.moves(&a, &[left(1, 1)]);
        assert_eq!(log.says(2), []);
        log.moves(&a, &[joined(2, 1)]);
        let back = log.here();
        let heard = log.says(2);
        assert_eq!(sent(&heard), [("a.1".into(), log.here(), back)]);
    }

    #[test]
    fn a_closed_room_delivers_no_message_and_answers_late_joins_at_once() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        let (app, room) = (app(), room());
        log.moves(&a, &[joined(1, 1)]);
        let closing = Event::RoomClosed { app, room, by: None, peak: None, good_num: None };
        let told = log.folds(closing.clone());
        assert!(matches!(
            &told[..],
            [Effect::Deliver { envelope: Envelope::RoomClosed { late, .. }, .. }] if late.is_empty()
        ));
        assert_eq!(log.folds(closing), []);
        assert_eq!(log.says(1), []);
        let late = log.moves(&a, &[joined(2, 2)]);
        assert!(matches!(
            &late[..],
            [Effect::Deliver { envelope: Envelope::RoomClosed { late, .. }, .. }] if late == &[conn(2)]
        ));
        assert_eq!(viewers(&log), None);
    }
}
