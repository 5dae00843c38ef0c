//! The end of a room: its members get it and leave the room. So do connections
//! that joined after the end.

use qiyu_schema::{ConnId, MsgId, ledger::Via};

use super::{
    action::Action,
    ids::{QueuePosition, RoomKey},
    in_flight::Origin,
    state::{Core, Payload},
};

impl Core {
    /// Stops taking messages for a room that is about to be closed.
    pub(super) fn end_room(&mut self, key: RoomKey) {
        let Some(room) = self.rooms.get(&key) else { return };
        let connections = room.members.keys().copied().collect();
        self.actions.push(Action::EndRoom { connections });
    }

    /// Marks a room as closed, for its members too.
    pub(super) fn close_room(&mut self, key: RoomKey) {
        if let Some(room) = self.rooms.get_mut(&key) {
            room.closed = true;
            self.end_room(key);
        }
    }

    /// Delivers the end of a room to connections that joined after it. They get
    /// nothing else from the room.
    pub(super) fn close_for_latecomers(
        &mut self,
        key: RoomKey,
        msg_id: MsgId,
        position: QueuePosition,
        late: &[ConnId],
    ) {
        let mut to: Vec<ConnId> = late.to_vec();
        to.retain(|id| self.connections.contains_key(id));
        self.actions.push(Action::EndRoom { connections: to.clone() });
        let message = Payload::Closed.encode(key, msg_id);
        let origin = Origin::envelope(Via::Late, position);
        let in_flight = self.open(key.0, Some(key.1), msg_id, message, origin);
        self.send_to(in_flight, to.clone());
        for id in &to {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.room = None;
            }
            let member = self.rooms.get_mut(&key).and_then(|room| room.members.remove(id));
            if let Some(member) = member {
                self.release_held(member);
            }
        }
        self.actions.push(Action::DetachFromRoom { connections: to });
        self.remove_if_unused(key);
    }

    /// Delivers the end of a room after its envelope was lost.
    pub(super) fn close_from_log(&mut self, key: RoomKey, position: MsgId) {
        let Some(room) = self.rooms.get(&key) else { return };
        if !room.closed && room.last.is_some_and(|last| last < position) {
            self.counts.gap_fills += 1;
            let origin = Origin::without_envelope(Via::Log);
            self.deliver(key, position, &Payload::Closed, origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        input::Input,
        test_bed::{TestBed, closing, conn, msg, room},
    };

    #[test]
    fn the_members_get_the_end_of_their_room_and_leave_it() {
        let mut bed = TestBed::with_members([1]);
        bed.apply(Input::RoomEnding { room: room(7) });
        assert_eq!((&bed.ended[..], bed.detached.len()), (&[conn(1)][..], 0));
        bed.receive(closing(1, 2, &[]));
        assert_eq!(bed.first_copies_of(1), [2]);
        assert_eq!(bed.detached, [conn(1)]);
        bed.receive_message(2, 3);
        assert_eq!(bed.last_counts(), [0; 6], "a message after the end is for no connection");
        bed.acknowledge(1, &[2]);
        assert_eq!(bed.last_counts(), [1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn a_latecomer_gets_the_end_and_nothing_else() {
        let mut bed = TestBed::new();
        bed.enter(1);
        bed.receive(closing(1, 2, &[1, 9]));
        assert_eq!(bed.first_copies_of(1), [2]);
        assert_eq!((&bed.ended[..], &bed.detached[..]), (&[conn(1)][..], &[conn(1)][..]));
        bed.acknowledge(1, &[2]);
        assert_eq!(bed.last_counts(), [1, 1, 1, 0, 0, 0]);
        assert!(bed.core.rooms.is_empty());
    }

    #[test]
    fn an_end_whose_envelope_was_lost_is_delivered_once() {
        let mut bed = TestBed::with_members([1]);
        bed.apply(Input::RoomClosedInLog { room: room(7), position: msg(3) });
        bed.apply(Input::RoomClosedInLog { room: room(7), position: msg(3) });
        bed.receive(closing(1, 3, &[]));
        assert_eq!(bed.first_copies_of(1), [3]);
    }
}
