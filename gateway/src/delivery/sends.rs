//! First copies: sending a message to connections, and taking back the copies
//! that closing connections refuse.

use qiyu_schema::{
    ConnId,
    ledger::{Recipient, UnackedReason},
};

use super::{
    action::Attempt,
    ids::DeliveryId,
    in_flight::{InFlight, Resolution},
    state::Core,
};

impl Core {
    /// Starts a delivery to these connections, and sends each its first copy.
    pub(super) fn send_to(&mut self, mut in_flight: InFlight, mut to: Vec<ConnId>) {
        to.retain(|id| {
            let Some(connection) = self.connections.get_mut(id) else { return false };
            let recipient = connection.recipient(*id);
            in_flight.expect(*id);
            in_flight.note_first_copy(recipient, &mut connection.unacked, &mut self.counts);
            true
        });
        self.actions.push(in_flight.copies(Attempt::First, to));
        self.start(in_flight);
    }

    /// Sends the first copy to a connection that the delivery expects.
    pub(super) fn send_expected(&mut self, id: DeliveryId, to: ConnId) {
        let (Some(in_flight), Some(connection)) =
            (self.in_flight.get_mut(&id), self.connections.get_mut(&to))
        else {
            return;
        };
        let recipient = connection.recipient(to);
        in_flight.note_first_copy(recipient, &mut connection.unacked, &mut self.counts);
        self.actions.push(in_flight.copies(Attempt::First, vec![to]));
        self.record_if_resolved(id);
    }

    /// Takes back the copies that closing connections refused. Their users get a
    /// further copy elsewhere, as those of connections that have ended.
    pub(super) fn take_back(&mut self, id: DeliveryId, attempt: Attempt, refused: &[ConnId]) {
        for connection in refused {
            let Some(in_flight) = self.in_flight.get_mut(&id) else { return };
            match attempt {
                Attempt::First => in_flight.outcome.written -= 1,
                Attempt::Retry => {
                    in_flight.outcome.resent -= 1;
                    continue; // it is pending until the connection ends
                }
            }
            let msg_id = in_flight.msg_id();
            if let Some(state) = self.connections.get_mut(connection)
                && state.unacked.remove(msg_id, id)
            {
                let recipient = state.recipient(*connection);
                self.leave_unacked(id, recipient);
            }
        }
    }

    /// Notes that a connection ended before it acknowledged. A direct message
    /// waits for its user anyway. The user of a room message gets a further copy
    /// on another connection when it is due.
    pub(super) fn leave_unacked(&mut self, id: DeliveryId, recipient: Recipient) {
        let Some(in_flight) = self.in_flight.get_mut(&id) else { return };
        in_flight.add_exception(recipient, UnackedReason::Left);
        if in_flight.room().is_some() {
            in_flight.users_of_closed.push(recipient.user);
        } else {
            self.resolve(id, Resolution::Left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            test_bed::{TestBed, conn, direct},
            unacked::UNACKED_MAX,
        },
        *,
    };

    #[test]
    fn a_closing_connection_leaves_the_message_that_it_refuses() {
        let mut bed = TestBed::with_members([1, 2]);
        bed.closing.insert(conn(2));
        let position = bed.receive_message(1, 2);
        bed.acknowledge(1, &[2]);
        assert!(bed.outcomes.is_empty(), "its user may be back in time for a copy");
        bed.redeliver(position);
        bed.finish_reassigning();
        assert_eq!(bed.last_counts(), [2, 1, 1, 0, 0, 1]);
        assert_eq!(bed.outcomes[0].exceptions[0].reason, UnackedReason::Left);
    }

    #[test]
    fn a_refused_direct_message_waits_for_its_user() {
        let mut bed = TestBed::new();
        bed.log_in(1);
        bed.closing.insert(conn(1));
        bed.receive(direct(2, &[(1, None)]));
        assert_eq!(bed.last_counts(), [1, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_retry_that_is_refused_stays_pending_until_the_connection_ends() {
        let mut bed = TestBed::with_members([1]);
        let position = bed.receive_message(1, 2);
        bed.closing.insert(conn(1));
        bed.redeliver(position);
        assert!(bed.outcomes.is_empty());
        bed.leave(3, 1);
        bed.redeliver(position);
        assert_eq!(bed.last_counts(), [1, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn a_connection_with_too_many_unacknowledged_messages_is_given_up_at_once() {
        let mut bed = TestBed::with_members([1]);
        for seq in 2..UNACKED_MAX as u64 + 2 {
            bed.receive_message(seq - 1, seq);
        }
        assert!(bed.outcomes.is_empty());
        bed.receive_message(UNACKED_MAX as u64 + 1, UNACKED_MAX as u64 + 2);
        assert_eq!(bed.last_counts(), [1, 1, 0, 0, 1, 0]);
        assert_eq!(bed.outcomes[0].exceptions[0].reason, UnackedReason::Lagging);
    }
}
