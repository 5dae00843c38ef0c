//! The members of a room: connections by gateway, each user counted once.
//!
//! A connection is a member from its join in the log to its leave, or to the end
//! of the room or of its gateway's incarnation. The anchor's presence follows from
//! the same events.

use std::collections::{BTreeMap, HashMap};

use qiyu_schema::{
    AppId, ConnId, Incarnation, MsgId, RoomId, UserId, envelope::Envelope, event::MemberChange,
};

use super::{Effect, Fold, Member, Members, Room, owed::Departed};

impl Fold {
    /// Adds and removes members. A user that returns is sent its unacknowledged messages.
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
            return tell_latecomers(app, room_id, closed.msg_id, gateway, changes);
        }
        let anchor_was_inside = room.anchor_is_inside();
        let mut repeats: BTreeMap<(MsgId, u32), Vec<ConnId>> = BTreeMap::new();
        for change in changes {
            match *change {
                MemberChange::Joined { connection, user, resumed } => {
                    room.let_in(gateway, connection, Member { user, joined: position, resumed });
                    for (msg_id, sends) in room.take_owed(user, at_ms) {
                        // A resumed connection has read the missed messages itself.
                        if !resumed && msg_id < position {
                            repeats.entry((msg_id, sends)).or_default().push(connection);
                        }
                    }
                }
                MemberChange::Left { connection, .. } => room.let_out(gateway, connection),
                MemberChange::Unknown => {}
            }
        }
        room.watch_anchor(anchor_was_inside, at_ms);
        if room.means_nothing() {
            self.rooms.remove(&(app, room_id));
        }
        self.stirred.insert((app, room_id));
        // One envelope per message for all connections of the batch.
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

    /// Ends the memberships at ended incarnations, and keeps their users as departed.
    pub(super) fn end_memberships(&mut self, over: impl Fn(&Incarnation) -> bool, at_ms: u64) {
        for (key, room) in &mut self.rooms {
            if room.gateways.keys().any(&over) {
                room.let_out_all(&over, at_ms);
                self.stirred.insert(*key);
            }
        }
        self.rooms.retain(|_, room| !room.means_nothing());
    }
}

impl Room {
    fn let_in(&mut self, gateway: &Incarnation, connection: ConnId, member: Member) {
        let first = || Members { prev: member.joined, connections: HashMap::new() };
        let members = self.gateways.entry(gateway.clone()).or_insert_with(first);
        if members.connections.insert(connection, member).is_none() {
            *self.inside.entry(member.user).or_default() += 1;
            self.peak = self.peak.max(self.inside.len() as u64);
        }
    }

    fn let_out(&mut self, gateway: &Incarnation, connection: ConnId) {
        let Some(members) = self.gateways.get_mut(gateway) else { return };
        if let Some(member) = members.connections.remove(&connection) {
            step_out(&mut self.inside, member.user);
        }
        if members.connections.is_empty() {
            self.gateways.remove(gateway);
        }
    }

    fn let_out_all(&mut self, over: impl Fn(&Incarnation) -> bool, at_ms: u64) {
        self.forget_departed(at_ms);
        let anchor_was_inside = self.anchor_is_inside();
        for (gateway, members) in self.gateways.extract_if(.., |gateway, _| over(gateway)) {
            for Member { user, joined, .. } in members.connections.into_values() {
                step_out(&mut self.inside, user);
                let gateway = gateway.clone();
                self.departed.push(Departed { gateway, user, joined, at_ms });
            }
        }
        self.departed.sort_unstable_by_key(|d| (d.user, d.joined)); // the map's order is random
        self.watch_anchor(anchor_was_inside, at_ms);
    }

    fn anchor_is_inside(&self) -> bool {
        self.anchor.is_some_and(|anchor| self.inside.contains_key(&anchor))
    }

    /// Takes note of when the anchor leaves and comes back. One who never
    /// entered speaks elsewhere, and is not gone.
    fn watch_anchor(&mut self, was_inside: bool, at_ms: u64) {
        match (was_inside, self.anchor_is_inside()) {
            (_, true) => self.anchor_gone_ms = None,
            (true, false) => self.anchor_gone_ms = Some(at_ms),
            (false, false) => {}
        }
    }
}

/// They came after the end: they get the notice at once.
fn tell_latecomers(
    app: AppId,
    room: RoomId,
    msg_id: MsgId,
    gateway: &Incarnation,
    changes: &[MemberChange],
) -> Vec<Effect> {
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
    let envelope = Envelope::RoomClosed { app, room, msg_id, prev: msg_id, late };
    vec![Effect::Deliver { to: gateway.clone(), envelope }]
}

fn step_out(inside: &mut HashMap<UserId, u32>, user: UserId) {
    if let Some(connections) = inside.get_mut(&user) {
        *connections -= 1;
        if *connections == 0 {
            inside.remove(&user);
        }
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::event::Event;

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
