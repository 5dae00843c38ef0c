//! Acknowledgements of connections, and connections that miss several in a row.

use qiyu_schema::{ConnId, MsgId};

use super::{
    action::Action,
    in_flight::Resolution,
    state::{ConnectionState, Core},
};

/// Messages that a connection may miss in a row. After that it is lagging: it is
/// sent every message, but no envelope waits for it until it acknowledges again.
const MISSED_ACKS_MAX: u32 = 3;

impl Core {
    /// Resolves the messages that a connection acknowledged. Unknown ones have no
    /// effect: the message was acknowledged before, given up, or never sent to it.
    pub(super) fn acknowledge(&mut self, id: ConnId, msg_ids: &[MsgId]) {
        let mut read = Vec::new();
        for msg_id in msg_ids {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            connection.missed_acks = 0;
            let Some(delivery) = connection.unacked.acknowledge(*msg_id) else { continue };
            let Some(in_flight) = self.in_flight.get(&delivery) else { continue };
            if let Some(accepted_ms) = in_flight.accepted_ms_if_sampled(id) {
                self.actions.push(Action::ObserveAcknowledgement { accepted_ms });
            }
            if in_flight.room().is_none() {
                read.push(*msg_id);
            }
            self.resolve(delivery, Resolution::Acknowledged);
        }
        // A direct message is read when one connection of its user has read it.
        if let Some(connection) = self.connections.get(&id).filter(|_| !read.is_empty()) {
            let (app, user) = (connection.app, connection.user);
            self.actions.push(Action::MarkRead { app, user, msg_ids: read });
        }
    }
}

impl ConnectionState {
    /// Returns whether it missed several messages in a row.
    pub(super) fn is_lagging(&self) -> bool {
        self.missed_acks >= MISSED_ACKS_MAX
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::ledger::Via;

    use super::super::{
        ids::QueuePosition,
        test_bed::{ACK_WAIT, TestBed, conn},
    };

    /// A test bed where connection 1 has ignored three messages, and connection 2 none.
    fn with_lagging() -> TestBed {
        let mut bed = TestBed::with_members([1, 2]);
        for seq in 2..=4 {
            let position: QueuePosition = bed.receive_message(seq - 1, seq);
            bed.acknowledge(2, &[seq]);
            bed.redeliver(position);
            bed.redeliver(position);
        }
        bed.record();
        bed.outcomes.clear();
        bed
    }

    #[test]
    fn acknowledgements_without_a_message_have_no_effect() {
        let mut bed = TestBed::with_members([1, 2]);
        bed.receive_message(1, 2);
        bed.acknowledge(1, &[2, 2, 9]);
        bed.acknowledge(3, &[2]);
        assert!(bed.outcomes.is_empty(), "connection 2 is pending");
        bed.acknowledge(2, &[2]);
        assert_eq!(bed.last_counts(), [2, 2, 2, 0, 0, 0]);
    }

    #[test]
    fn a_lagging_connection_gets_a_message_apart_from_its_envelope() {
        let mut bed = with_lagging();
        bed.receive_message(4, 5);
        assert_eq!(bed.first_copies_of(1).last(), Some(&5));
        bed.acknowledge(2, &[5]);
        assert_eq!(bed.last_counts(), [1, 1, 1, 0, 0, 0], "its envelope does not wait");
        let outcome = bed.outcomes.last().unwrap();
        assert_eq!((outcome.via, outcome.lagging), (Via::Envelope, 1));
        assert_eq!(outcome.lagging_recipients[0].connection, conn(1));
        bed.pass(ACK_WAIT);
        bed.pass(ACK_WAIT);
        assert_eq!(bed.last_counts(), [1, 1, 0, 1, 1, 0]);
        assert_eq!(bed.outcomes.last().unwrap().via, Via::Lagging);
    }

    #[test]
    fn a_lagging_connection_that_acknowledges_counts_again() {
        let mut bed = with_lagging();
        bed.acknowledge(1, &[4]);
        bed.receive_message(4, 5);
        bed.acknowledge(2, &[5]);
        assert!(bed.outcomes.is_empty(), "its envelope waits for connection 1");
        bed.acknowledge(1, &[5]);
        assert_eq!(bed.last_counts(), [2, 2, 2, 0, 0, 0]);
    }

    #[test]
    fn two_missed_messages_do_not_make_a_connection_lag() {
        let mut bed = TestBed::with_members([1]);
        for seq in 2..=3 {
            let position = bed.receive_message(seq - 1, seq);
            bed.redeliver(position);
            bed.redeliver(position);
        }
        bed.receive_message(3, 4);
        bed.acknowledge(1, &[4]);
        assert_eq!(bed.last_counts(), [1, 1, 1, 0, 0, 0]);
    }
}
