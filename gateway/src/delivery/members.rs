//! The members of rooms, and from when on they get messages.
//!
//! A connection gets exactly the messages after its join in the log. Until the
//! position of the join is known, messages are held for it.

use qiyu_schema::{ConnId, MsgId, event::MemberChange};

use super::{
    action::Action,
    ids::RoomKey,
    in_flight::Resolution,
    state::{Core, Member},
};

impl Core {
    /// Follows joins and leaves as fan-out does, so that both mean the same by `prev`.
    pub(super) fn change_members(
        &mut self,
        key: RoomKey,
        position: MsgId,
        changes: &[MemberChange],
    ) {
        for change in changes {
            match change {
                MemberChange::Joined { connection, .. } => self.join(key, position, *connection),
                MemberChange::Left { connection, .. } => {
                    let room = self.rooms.entry(key).or_default();
                    room.confirmed.remove(connection);
                    if room.confirmed.is_empty() {
                        room.last = None;
                    }
                }
                MemberChange::Unknown => {} // none of this build's
            }
        }
        self.drain_in_order(key);
        self.remove_if_unused(key);
    }

    /// Notes the position of a join. Of the held messages, the connection gets
    /// those after it.
    fn join(&mut self, key: RoomKey, position: MsgId, connection: ConnId) {
        let room = self.rooms.entry(key).or_default();
        if room.confirmed.is_empty() {
            // Later messages may have been read from the log before this join was
            // known. They were held for its connection, so they are delivered.
            room.last = room.newest.max(Some(position));
        }
        room.confirmed.insert(connection);
        let Some(member) = room.members.get_mut(&connection) else { return };
        member.joined = Some(position);
        let held = std::mem::take(&mut member.held);
        let closed = room.closed;
        for delivery in held {
            let is_after_join =
                self.in_flight.get(&delivery).is_some_and(|held| position < held.msg_id());
            if is_after_join {
                self.send_expected(delivery, connection);
            } else {
                self.resolve(delivery, Resolution::NotForRecipient);
            }
        }
        if closed {
            self.detach_members(key);
        }
    }

    /// Drops the messages that were held for a member that is in the room no more.
    pub(super) fn release_held(&mut self, member: Member) {
        for delivery in member.held {
            self.resolve(delivery, Resolution::NotForRecipient);
        }
    }

    /// Takes the members of a closed room out of it, except those with an
    /// unknown join: messages before the end may be for them.
    pub(super) fn detach_members(&mut self, key: RoomKey) {
        let Some(room) = self.rooms.get_mut(&key) else { return };
        let joined = room.members.extract_if(|_, member| member.joined.is_some());
        let connections: Vec<ConnId> = joined.map(|(connection, _)| connection).collect();
        for connection in &connections {
            if let Some(connection) = self.connections.get_mut(connection) {
                connection.room = None;
            }
        }
        self.actions.push(Action::DetachFromRoom { connections });
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::event::MemberChange;

    use super::super::{
        input::Input,
        test_bed::{TestBed, closing, conn, logged, msg, room, user},
    };

    #[test]
    fn a_connection_gets_exactly_the_messages_after_its_join() {
        let mut bed = TestBed::with_members([1]);
        bed.enter(2);
        bed.receive_message(1, 2);
        bed.receive_message(2, 4);
        assert!(bed.first_copies_of(2).is_empty(), "its join is not known yet");
        bed.join(3, &[2]);
        assert_eq!(bed.first_copies_of(2), [4]);
        bed.receive_message(4, 5);
        assert_eq!(bed.first_copies_of(2), [4, 5]);
        bed.acknowledge(1, &[2]);
        assert_eq!(bed.last_counts(), [1, 1, 1, 0, 0, 0], "the held message was not for it");
    }

    #[test]
    fn a_held_message_keeps_its_envelope_unacknowledged() {
        let mut bed = TestBed::with_members([1]);
        bed.enter(2);
        bed.receive_message(1, 3);
        bed.acknowledge(1, &[3]);
        assert!(bed.outcomes.is_empty());
        bed.join(2, &[2]);
        bed.acknowledge(2, &[3]);
        assert_eq!(bed.last_counts(), [2, 2, 2, 0, 0, 0]);
    }

    #[test]
    fn a_room_that_is_left_and_entered_again_starts_at_the_new_join() {
        let mut bed = TestBed::with_members([1]);
        bed.enter(2);
        bed.leave(2, 1);
        bed.receive_message(1, 3);
        assert!(bed.outcomes.is_empty(), "it may be for the connection that enters");
        bed.join(4, &[2]);
        bed.receive_message(4, 5);
        assert_eq!(bed.first_copies_of(2), [5]);
    }

    #[test]
    fn a_connection_that_leaves_before_its_join_is_known_gets_nothing() {
        let mut bed = TestBed::with_members([1]);
        bed.enter(2);
        bed.receive_message(1, 2);
        bed.leave(3, 2);
        bed.acknowledge(1, &[2]);
        assert_eq!(bed.last_counts(), [1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn a_member_whose_join_is_after_the_end_of_the_room_leaves_it_without_a_message() {
        let mut bed = TestBed::with_members([1]);
        bed.enter(2);
        bed.receive(closing(1, 2, &[]));
        assert_eq!(bed.detached, [conn(1)]);
        bed.join(3, &[2]);
        assert_eq!(bed.detached, [conn(1), conn(2)]);
        assert!(bed.first_copies_of(2).is_empty());
        assert!(bed.core.rooms.is_empty());
    }

    #[test]
    fn a_message_read_from_the_log_before_a_join_is_known_is_delivered_once() {
        let mut bed = TestBed::with_members([1]);
        bed.enter(2);
        bed.apply(Input::Left { connection: conn(1) });
        let found = vec![logged(5)];
        bed.apply(Input::RoomRead { room: room(7), until: msg(5), found });
        let (connection, user) = (conn(1), user(1));
        let changes = vec![MemberChange::Left { connection, user, last_seen: None }];
        bed.apply(Input::MembersChanged { room: room(7), position: msg(3), changes });
        bed.join(4, &[2]);
        bed.receive_message(4, 5);
        assert_eq!(bed.first_copies_of(2), [5]);
    }
}
