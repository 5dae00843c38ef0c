//! Direct messages: each connection has a queue of its own, in the order of the log.
//!
//! As in rooms, every envelope names the message before it on a connection, and
//! missing messages are read from the log.

use std::{collections::btree_map::Entry, sync::Arc};

use qiyu_schema::{AppId, ConnId, MsgId, envelope::DirectTarget, ledger::Via};

use super::{
    action::{Action, Timer},
    gaps::GAP_TIMEOUT,
    ids::QueuePosition,
    in_flight::{Origin, Resolution},
    input::LoggedMessage,
    state::{BufferedDirect, Core, DirectQueue, GapTimer},
};
use crate::frame::EncodedMessage;

impl Core {
    /// Buffers a message for connections of its user, then delivers all that
    /// are in order.
    pub(super) fn enqueue_direct(
        &mut self,
        app: AppId,
        msg_id: MsgId,
        position: QueuePosition,
        message: Arc<EncodedMessage>,
        at_ms: Option<u64>,
        targets: &[DirectTarget],
    ) {
        let origin = Origin::envelope(Via::Envelope, position);
        let mut in_flight = self.open(app, None, msg_id, message, origin);
        in_flight.sample_one_of(1, at_ms);
        for DirectTarget { connection: id, prev } in targets {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if connection.direct.last.is_some_and(|last| msg_id <= last) {
                continue; // read from the log meanwhile
            }
            // It may be buffered already, by another envelope with the same message.
            if let Entry::Vacant(free) = connection.direct.buffered.entry(msg_id) {
                in_flight.expect(*id);
                free.insert(BufferedDirect { prev: *prev, delivery: in_flight.id });
            }
        }
        let expecting = in_flight.recipients.clone();
        self.start(in_flight);
        for connection in expecting {
            self.drain_direct_in_order(connection);
        }
    }

    /// Delivers the buffered messages of a connection, up to the first gap.
    fn drain_direct_in_order(&mut self, id: ConnId) {
        while let Some(connection) = self.connections.get_mut(&id)
            && let Some(first) = connection.direct.buffered.first_entry()
        {
            if connection.direct.last < first.get().prev {
                if connection.direct.gap_timer.arm() {
                    let (after, timer) = (GAP_TIMEOUT, Timer::DirectGap(id));
                    self.actions.push(Action::ArmTimer { after, timer });
                }
                return;
            }
            let (msg_id, BufferedDirect { delivery, .. }) = first.remove_entry();
            if connection.direct.last.is_some_and(|last| msg_id <= last) {
                self.resolve(delivery, Resolution::NotForRecipient);
                continue;
            }
            connection.direct.last = Some(msg_id);
            self.send_expected(delivery, id);
        }
    }

    /// Reads the log if the missing message of a connection still has not arrived.
    pub(super) fn check_direct_gap(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (app, user, direct) = (connection.app, connection.user, &mut connection.direct);
        direct.gap_timer = GapTimer::Idle;
        let Some(until) = direct.missing() else { return };
        direct.gap_timer = GapTimer::Armed;
        // With nothing before it, only the message that is named is known to be
        // for this connection. Older ones still wait and come with the next login.
        let after = direct.last.map_or(until.seq() - 1, MsgId::seq);
        self.actions.push(Action::ReadDirect { connection: id, app, user, after, until });
    }

    /// Delivers the messages that the log has of a gap up to `until`.
    pub(super) fn fill_direct_gap(&mut self, id: ConnId, until: MsgId, found: Vec<LoggedMessage>) {
        for LoggedMessage { msg_id, biz_code, data, at_ms, .. } in found {
            let Some(connection) = self.connections.get(&id) else { return };
            let app = connection.app;
            if connection.direct.last >= Some(msg_id) {
                continue;
            }
            self.counts.gap_fills += 1;
            let message = Arc::new(EncodedMessage::new(app, biz_code, &data, Some(msg_id)));
            let origin = Origin::without_envelope(Via::Log);
            let mut in_flight = self.open(app, None, msg_id, message, origin);
            in_flight.sample_one_of(1, Some(at_ms));
            self.send_to(in_flight, vec![id]);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            let direct = &mut connection.direct;
            direct.gap_timer = GapTimer::Idle;
            direct.last = direct.last.max(Some(until));
        }
        self.drain_direct_in_order(id);
    }
}

impl DirectQueue {
    /// Returns the message that the first buffered one names, if it is missing.
    fn missing(&self) -> Option<MsgId> {
        let (_, first) = self.buffered.first_key_value()?;
        first.prev.filter(|prev| self.last < Some(*prev))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            input::Input,
            test_bed::{TestBed, conn, direct, logged, msg, user},
        },
        *,
    };

    #[test]
    fn each_connection_gets_direct_messages_in_its_own_order() {
        let mut bed = TestBed::new();
        bed.log_in(1);
        bed.log_in(2);
        bed.receive(direct(4, &[(1, Some(3)), (2, None)]));
        assert_eq!((bed.first_copies_of(1), bed.first_copies_of(2)), (vec![], vec![4]));
        bed.receive(direct(3, &[(1, None)]));
        assert_eq!(bed.first_copies_of(1), [3, 4]);
    }

    #[test]
    fn a_gap_in_direct_messages_is_read_from_the_log() {
        let mut bed = TestBed::new();
        bed.log_in(1);
        bed.receive(direct(2, &[(1, None)]));
        bed.receive(direct(5, &[(1, Some(4))]));
        bed.pass(GAP_TIMEOUT);
        assert_eq!(bed.direct_reads, [(conn(1), 2, msg(4))]);
        let found = vec![logged(4)];
        bed.apply(Input::DirectRead { connection: conn(1), until: msg(4), found });
        assert_eq!(bed.first_copies_of(1), [2, 4, 5]);
        bed.receive(direct(4, &[(1, Some(2))]));
        assert_eq!(bed.last_counts(), [0; 6], "the late envelope is a repeat");
    }

    #[test]
    fn of_a_first_message_with_a_predecessor_only_that_one_is_read() {
        let mut bed = TestBed::new();
        bed.log_in(1);
        bed.receive(direct(5, &[(1, Some(4))]));
        bed.pass(GAP_TIMEOUT);
        assert_eq!(bed.direct_reads, [(conn(1), 3, msg(4))]);
    }

    #[test]
    fn an_acknowledged_direct_message_is_marked_as_read() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(1, 2);
        bed.receive(direct(3, &[(1, None)]));
        bed.receive(direct(4, &[(1, Some(3))]));
        bed.acknowledge(1, &[2, 3, 4, 4]);
        assert_eq!(bed.read, [(user(1), vec![msg(3), msg(4)])]);
    }

    #[test]
    fn a_message_that_two_envelopes_bring_is_delivered_once() {
        let mut bed = TestBed::new();
        bed.log_in(1);
        bed.receive(direct(4, &[(1, Some(3))]));
        bed.receive(direct(4, &[(1, Some(3))]));
        assert_eq!(bed.last_counts(), [0; 6]);
        bed.receive(direct(3, &[(1, None)]));
        assert_eq!(bed.first_copies_of(1), [3, 4]);
    }

    #[test]
    fn a_connection_that_ends_leaves_its_buffered_messages() {
        let mut bed = TestBed::new();
        bed.log_in(1);
        bed.receive(direct(4, &[(1, Some(3))]));
        bed.apply(Input::Left { connection: conn(1) });
        assert_eq!(bed.last_counts(), [1, 0, 0, 0, 0, 1]);
    }
}
