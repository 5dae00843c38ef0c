//! Who is in a room: connections by gateway, users each counted once.
//!
//! A connection is a member from its join in the log to its leave, or to the end
//! of its gateway's life. Whether the anchor is there follows from the same.

use std::collections::{BTreeMap, HashMap};

use qiyu_nats::{
    AppId, ConnId, Incarnation, MsgId, RoomId, UserId, envelope::Envelope, event::MemberChange,
};
use serde::{Deserialize, Serialize};

use super::{Effect, Fold, rooms::Room};

/// One gateway's connections in one room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Members {
    /// The last message sent to it, or the join that brought it in.
    pub(super) prev: MsgId,
    pub(super) connections: HashMap<ConnId, Member>,
}

/// One connection in one room.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) user: UserId,
    pub(super) joined: MsgId,
    /// It asked for what it had missed, and so needs no copies of that.
    pub(super) resumed: bool,
}

impl Fold {
    pub(super) fn move_members(
        &mut self,
        app: AppId,
        room_id: RoomId,
        gateway: &Incarnation,
        position: MsgId,
        at_ms: u64,
        changes: &[MemberChange],
    ) -> Vec<Effect> {
        let room = self.rooms.entry((app, room_id)).or_default();
        if let Some(closed) = room.closed {
            // They came after the end: they get the notice at once.
            let late: Vec<ConnId> = changes
                .iter()
                .filter_map(|change| match change {
                    MemberChange::Joined { connection, .. } => Some(*connection),
                    MemberChange::Left { .. } | MemberChange::Unknown => None,
                })
                .collect();
            if late.is_empty() {
                return Vec::new();
            }
            let (msg_id, prev) = (closed.msg_id, closed.msg_id);
            let envelope = Envelope::RoomClosed { app, room: room_id, msg_id, prev, late };
            return vec![Effect::Deliver { to: gateway.clone(), envelope }];
        }
        let anchor_was_inside = room.anchor_is_inside();
        let mut repeats: BTreeMap<(MsgId, u32), Vec<ConnId>> = BTreeMap::new();
        for change in changes {
            match *change {
                MemberChange::Joined { connection, user, resumed } => {
                    let members = room
                        .gateways
                        .entry(gateway.clone())
                        .or_insert_with(|| Members { prev: position, connections: HashMap::new() });
                    let member = Member { user, joined: position, resumed };
                    if members.connections.insert(connection, member).is_none() {
                        *room.inside.entry(user).or_default() += 1;
                        room.peak = room.peak.max(room.inside.len() as u64);
                    }
                    for (msg_id, sends) in room.take_owed(user, at_ms) {
                        // What was asked for by a resume has come with it.
                        if !resumed && msg_id < position {
                            repeats.entry((msg_id, sends)).or_default().push(connection);
                        }
                    }
                }
                MemberChange::Left { connection, .. } => {
                    let Some(members) = room.gateways.get_mut(gateway) else { continue };
                    if let Some(member) = members.connections.remove(&connection) {
                        step_out(&mut room.inside, member.user);
                    }
                    if members.connections.is_empty() {
                        room.gateways.remove(gateway);
                    }
                }
                MemberChange::Unknown => {}
            }
        }
        room.watch_anchor(anchor_was_inside, at_ms);
        if room.means_nothing() {
            self.rooms.remove(&(app, room_id));
        }
        self.stirred.insert((app, room_id));
        // One envelope per message, whoever of the batch is to hear it again.
        let repeat = |((msg_id, sends), connections)| Effect::Repeat {
            to: gateway.clone(),
            app,
            room: room_id,
            msg_id,
            sends,
            connections,
        };
        repeats.into_iter().map(repeat).collect()
    }
}

impl Room {
    pub(super) fn anchor_is_inside(&self) -> bool {
        self.anchor.is_some_and(|anchor| self.inside.contains_key(&anchor))
    }

    /// Takes note of when the anchor leaves and comes back. One who never
    /// entered speaks elsewhere, and is not gone.
    pub(super) fn watch_anchor(&mut self, was_inside: bool, at_ms: u64) {
        match (was_inside, self.anchor_is_inside()) {
            (_, true) => self.anchor_gone_ms = None,
            (true, false) => self.anchor_gone_ms = Some(at_ms),
            (false, false) => {}
        }
    }
}

pub(super) fn step_out(inside: &mut HashMap<UserId, u32>, user: UserId) {
    if let Some(connections) = inside.get_mut(&user) {
        *connections -= 1;
        if *connections == 0 {
            inside.remove(&user);
        }
    }
}

#[cfg(test)]
mod tests {
    use qiyu_nats::event::Event;

    use crate::fold::partition::{Partition, app, gateway, joined, left, room, user, viewers};

    #[test]
    fn viewers_are_users_each_counted_once() {
        let mut log = Partition::default();
        log.moves(&gateway("a", 1), &[joined(1, 1), joined(2, 1), joined(3, 2)]);
        log.moves(&gateway("b", 1), &[joined(1, 1)]);
        assert_eq!(viewers(&log), Some(2));
        log.moves(&gateway("a", 1), &[left(1, 1), left(2, 1), left(2, 1)]);
        assert_eq!(viewers(&log), Some(2));
        log.moves(&gateway("b", 1), &[left(1, 1)]);
        assert_eq!(viewers(&log), Some(1));
    }

    #[test]
    fn an_anchor_is_gone_from_when_they_leave_until_they_are_back() {
        let mut log = Partition::default();
        let (app, room, a) = (app(), room(), gateway("a", 1));
        let (name, cover) = (String::new(), String::new());
        log.folds(Event::RoomOpened { app, room, anchor: user(9), room_type: 1, name, cover });
        let abandoned = |log: &Partition| log.fold.abandoned(u64::MAX).count();
        assert_eq!(abandoned(&log), 0, "who never came is not gone");
        log.moves(&a, &[joined(1, 9), joined(2, 9), joined(3, 1)]);
        log.moves(&a, &[left(1, 9)]);
        assert_eq!(abandoned(&log), 0, "there is a second device");
        log.moves(&a, &[left(2, 9)]);
        let gone = log.seq;
        assert_eq!(log.fold.abandoned(gone).count(), 0, "not before");
        assert_eq!(log.fold.abandoned(gone + 1).collect::<Vec<_>>(), [(app, room)]);
        log.moves(&a, &[left(3, 1)]);
        assert_eq!(log.fold.abandoned(gone + 1).count(), 1, "others change nothing");
        log.moves(&a, &[joined(4, 9)]);
        assert_eq!(abandoned(&log), 0);
        log.folds(Event::GatewayGone { gateway: a });
        assert_eq!(abandoned(&log), 1, "with the gateway");
        log.folds(Event::RoomClosed { app, room, by: None, peak: None, good_num: None });
        assert_eq!(abandoned(&log), 0);
    }
}
