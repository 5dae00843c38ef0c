//! Connections: they are known from their login to their end.
//!
//! A connection that enters a room is a member before the log has its join, so
//! that no message that is for it passes it by.

use qiyu_schema::{AppId, ConnId, MsgId, RoomId, UserId, ledger::Via};

use super::{
    in_flight::{Origin, Resolution},
    input::MissedMessage,
    state::{BufferedDirect, ConnectionState, Core, DirectQueue, Member},
    unacked::Unacked,
};

/// The position before every message.
const BEFORE_ALL: MsgId = MsgId::at(0);

impl Core {
    pub(super) fn add_connection(
        &mut self,
        id: ConnId,
        app: AppId,
        user: UserId,
        room: Option<RoomId>,
    ) {
        if let Some(room) = room {
            let room = self.rooms.entry((app, room)).or_default();
            room.members.insert(id, Member::default());
        }
        let (unacked, direct) = (Unacked::default(), DirectQueue::default());
        let connection = ConnectionState { app, user, room, unacked, missed_acks: 0, direct };
        self.connections.insert(id, connection);
    }

    /// Returns the last message of its room that was delivered while this
    /// connection was a member. Messages that the log has between that and its
    /// leave never reached it. `None`: it is in no room, or the room's position is not known.
    pub(crate) fn last_seen(&self, id: ConnId) -> Option<MsgId> {
        let connection = self.connections.get(&id)?;
        let room = self.rooms.get(&(connection.app, connection.room?))?;
        match room.members.get(&id)?.joined {
            Some(_) => room.last,
            None => Some(BEFORE_ALL),
        }
    }

    /// Removes a connection. Unacknowledged room messages are to be reassigned.
    pub(super) fn remove_connection(&mut self, id: ConnId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let recipient = connection.recipient(id);
        for delivery in connection.unacked.into_deliveries() {
            self.leave_unacked(delivery, recipient);
        }
        for BufferedDirect { delivery, .. } in connection.direct.buffered.into_values() {
            self.resolve(delivery, Resolution::Left);
        }
        let Some(room) = connection.room else { return };
        let key = (connection.app, room);
        let member = self.rooms.get_mut(&key).and_then(|room| room.members.remove(&id));
        if let Some(member) = member {
            self.release_held(member);
        }
        self.remove_if_unused(key);
    }

    /// Opens a delivery for each missed message that was written behind the
    /// welcome of a resumed connection. These have a limit of their own.
    pub(super) fn resume(&mut self, id: ConnId, room: RoomId, missed: Vec<MissedMessage>) {
        for MissedMessage { msg_id, message } in missed {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            let (app, recipient) = (connection.app, connection.recipient(id));
            let origin = Origin::without_envelope(Via::Resume);
            let mut in_flight = self.open(app, Some(room), msg_id, message, origin);
            // Fan-out knows the members of a room, but not the connection that resumed.
            in_flight.outcome.to = Some(recipient);
            in_flight.outcome.written += 1;
            in_flight.expect(id);
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.unacked.insert(msg_id, in_flight.id);
            }
            self.start(in_flight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            input::Input,
            test_bed::{ACK_WAIT, TestBed, conn, msg},
        },
        *,
    };

    #[test]
    fn an_acknowledgement_before_the_end_of_its_connection_counts() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(1, 2);
        bed.acknowledge(1, &[2]);
        bed.leave(3, 1);
        assert_eq!(bed.last_counts(), [1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn the_last_message_that_a_connection_may_have_seen_is_known() {
        let mut bed = TestBed::with_members([1]);
        bed.enter(2);
        bed.log_in(3);
        bed.receive_message(1, 4);
        let seen = [1, 2, 3, 9].map(|number| bed.core.last_seen(conn(number)));
        assert_eq!(seen, [Some(msg(4)), Some(BEFORE_ALL), None, None]);
    }

    #[test]
    fn missed_messages_are_counted_for_the_connection_that_resumed() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(1, 5);
        bed.resume(1, &[2, 3]);
        bed.acknowledge(1, &[2]);
        let outcome = bed.outcomes.last().unwrap();
        assert_eq!((outcome.via, outcome.msg_id), (Via::Resume, msg(2)));
        assert_eq!(outcome.to.unwrap().connection, conn(1));
        assert_eq!(bed.last_counts(), [1, 1, 1, 0, 0, 0]);
        bed.pass(ACK_WAIT);
        bed.acknowledge(1, &[5, 3]);
        assert_eq!(bed.last_counts(), [1, 1, 1, 1, 0, 0]);
        assert!(bed.core.in_flight.is_empty());
    }

    #[test]
    fn a_connection_that_is_gone_gets_no_envelope() {
        let mut bed = TestBed::with_members([1, 2]);
        bed.leave(2, 2);
        bed.receive_message(1, 3);
        assert!(bed.first_copies_of(2).is_empty());
        bed.apply(Input::Left { connection: conn(2) });
        bed.acknowledge(1, &[3]);
        assert_eq!(bed.last_counts(), [1, 1, 1, 0, 0, 0]);
    }
}
