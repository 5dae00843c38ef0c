//! Reassigning: a message that a user left unacknowledged on a closed connection
//! is for that user on any other. The log is told, and fan-out knows where.

use qiyu_schema::{ConnId, MsgId, ledger::Via};

use super::{
    action::{Action, KeepForReturn, UnackedDelivery},
    ids::{DeliveryId, QueuePosition, RoomKey},
    in_flight::{Origin, Resolution},
    state::{Core, Payload},
};

impl Core {
    /// Reassigns everything that users of closed connections left unacknowledged,
    /// also for users that are not back yet.
    pub(super) fn reassign_all(&mut self) {
        let mut unacked: Vec<UnackedDelivery> = self
            .in_flight
            .values_mut()
            .filter_map(|in_flight| in_flight.take_unacked(in_flight.sends))
            .collect();
        if !unacked.is_empty() {
            unacked.sort_unstable_by_key(|unacked| unacked.delivery);
            self.actions.push(Action::Reassign { unacked, keep: KeepForReturn::Yes });
        }
    }

    /// Resolves the users that the log was told of.
    pub(super) fn note_reassigned(&mut self, deliveries: &[(DeliveryId, usize)]) {
        for (delivery, users) in deliveries {
            for _ in 0..*users {
                self.resolve(*delivery, Resolution::Left);
            }
        }
    }

    /// Sends a reassigned message to connections here. `sends` copies were sent
    /// before, to other connections of their users.
    pub(super) fn repeat(
        &mut self,
        key: RoomKey,
        msg_id: MsgId,
        position: QueuePosition,
        payload: &Payload,
        sends: u32,
        to: &[ConnId],
    ) {
        let message = payload.encode(key, msg_id);
        let origin = Origin::envelope(Via::Repeat, position);
        let mut in_flight = self.open(key.0, Some(key.1), msg_id, message, origin);
        in_flight.sends += sends;
        let is_senders =
            |id: &ConnId| self.connections.get(id).is_some_and(|c| payload.from() == Some(c.user));
        let to = to.iter().copied().filter(|id| !is_senders(id)).collect();
        self.send_to(in_flight, to);
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::envelope::Envelope;

    use super::{
        super::{
            input::Input,
            test_bed::{TestBed, conn, direct, msg, room, user},
        },
        *,
    };

    #[test]
    fn a_message_of_a_closed_connection_is_reassigned_when_its_retry_is_due() {
        let mut bed = TestBed::with_members([1, 2]);
        let position = bed.receive_message(1, 2);
        bed.leave(3, 2);
        assert!(bed.reassigned.is_empty());
        bed.redeliver(position);
        let (unacked, keep) = &bed.reassigned[0];
        assert_eq!((unacked.room, unacked.msg_id), (room(7), msg(2)));
        assert_eq!((&unacked.users[..], unacked.sends), (&[user(2)][..], 1));
        assert_eq!(*keep, KeepForReturn::No);
        bed.acknowledge(1, &[2]);
        assert!(bed.outcomes.is_empty(), "the log is not told yet");
        bed.finish_reassigning();
        assert_eq!(bed.last_counts(), [2, 2, 1, 1, 0, 1]);
    }

    #[test]
    fn a_user_that_had_every_copy_is_not_reassigned() {
        let mut bed = TestBed::with_members([1]);
        let position = bed.receive_message(1, 2);
        bed.redeliver(position);
        bed.leave(3, 1);
        bed.redeliver(position);
        assert!(bed.reassigned.is_empty());
        assert_eq!(bed.last_counts(), [1, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_direct_message_waits_for_its_user_and_is_not_reassigned() {
        let mut bed = TestBed::new();
        bed.log_in(1);
        bed.receive(direct(2, &[(1, None)]));
        bed.apply(Input::Left { connection: conn(1) });
        assert_eq!(bed.last_counts(), [1, 1, 0, 0, 0, 1]);
        assert!(bed.reassigned.is_empty());
    }

    #[test]
    fn before_the_gateway_ends_everything_is_reassigned_and_kept() {
        let mut bed = TestBed::with_members([1, 2]);
        bed.receive_message(1, 2);
        bed.receive_message(2, 3);
        bed.leave(4, 1);
        bed.apply(Input::ReassignAll);
        let told: Vec<_> = bed.reassigned.iter().map(|(u, keep)| (u.msg_id, *keep)).collect();
        assert_eq!(told, [(msg(2), KeepForReturn::Yes), (msg(3), KeepForReturn::Yes)]);
        bed.apply(Input::ReassignAll);
        assert_eq!(bed.reassigned.len(), 2, "each user once");
    }

    #[test]
    fn a_repeat_goes_to_the_named_connections_and_has_fewer_copies_left() {
        let mut bed = TestBed::with_members([1, 2, 3]);
        let position = bed.receive(Envelope::Repeat {
            app: room(7).0,
            room: room(7).1,
            msg_id: msg(2),
            sends: 1,
            from: Some(user(3)),
            biz_code: 5555,
            data: "{}".into(),
            to: vec![conn(1), conn(3), conn(9)],
        });
        assert_eq!(bed.copies.len(), 1);
        bed.redeliver(position);
        assert_eq!(bed.last_counts(), [1, 1, 0, 0, 1, 0]);
        assert_eq!(bed.outcomes[0].via, Via::Repeat);
    }
}
