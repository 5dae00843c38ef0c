//! Rooms: each message is delivered once, in the order of the log, to the
//! members that it is for.
//!
//! Every envelope names the one before it. A room is delivered up to the first
//! envelope with a missing predecessor; `gaps` reads that from the log.

use std::{collections::btree_map::Entry, sync::Arc};

use qiyu_schema::{ConnId, MsgId, ledger::Via};

use super::{
    action::{Action, Attempt, Timer},
    gaps::GAP_TIMEOUT,
    ids::RoomKey,
    in_flight::Origin,
    retry::OWN_CLOCK_MAX,
    state::{Buffered, Core, Payload},
};
use crate::frame::EncodedMessage;

impl Core {
    /// Buffers an envelope of a room, then delivers all that are in order.
    pub(super) fn enqueue(&mut self, key: RoomKey, msg_id: MsgId, envelope: Buffered) {
        let due = self.rooms.get_mut(&key).filter(|room| room.last.is_none_or(|l| l < msg_id));
        let Some(room) = due else {
            // Delivered before, or sent while no connection of ours was there.
            return self.record_undelivered(key, msg_id, envelope);
        };
        match room.buffered.entry(msg_id) {
            Entry::Vacant(free) => drop(free.insert(envelope)),
            Entry::Occupied(same) if same.get().position == envelope.position => {}
            Entry::Occupied(_) => return self.record_undelivered(key, msg_id, envelope),
        }
        self.drain_in_order(key);
    }

    /// Delivers the buffered envelopes, up to the first gap.
    pub(super) fn drain_in_order(&mut self, key: RoomKey) {
        while let Some(room) = self.rooms.get_mut(&key)
            && let Some(last) = room.last
            && let Some(first) = room.buffered.first_entry()
        {
            if last < first.get().prev {
                if room.gap_timer.arm() {
                    let (after, timer) = (GAP_TIMEOUT, Timer::RoomGap(key));
                    self.actions.push(Action::ArmTimer { after, timer });
                }
                return;
            }
            let (msg_id, envelope) = first.remove_entry();
            if msg_id <= last {
                // Read from the log meanwhile, or sent while no connection of ours was there.
                self.record_undelivered(key, msg_id, envelope);
                continue;
            }
            let origin = Origin::envelope(Via::Envelope, envelope.position);
            self.deliver(key, msg_id, &envelope.payload, origin);
        }
    }

    /// Delivers a message to the members of its room.
    pub(super) fn deliver(
        &mut self,
        key: RoomKey,
        msg_id: MsgId,
        payload: &Payload,
        origin: Origin,
    ) {
        let message = payload.encode(key, msg_id);
        let mut in_flight = self.open(key.0, Some(key.1), msg_id, Arc::clone(&message), origin);
        let Some(room) = self.rooms.get_mut(&key) else { return self.start(in_flight) };
        room.last = Some(msg_id);
        room.newest = room.newest.max(Some(msg_id));
        in_flight.sample_one_of(room.members.len(), payload.accepted_ms());
        let may_set_apart = payload.is_message() && self.own_clock.len() < OWN_CLOCK_MAX;
        let (mut to, mut lagging) = (Vec::with_capacity(room.members.len()), Vec::new());
        for (id, member) in &mut room.members {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if payload.from() == Some(connection.user) {
                continue; // the sender has its receipt
            }
            match member.joined {
                Some(joined) if msg_id <= joined => {}
                Some(_) if may_set_apart && connection.is_lagging() => {
                    lagging.push(connection.recipient(*id));
                }
                Some(_) => {
                    in_flight.expect(*id);
                    let recipient = connection.recipient(*id);
                    in_flight.note_first_copy(recipient, &mut connection.unacked, &mut self.counts);
                    to.push(*id);
                }
                None => {
                    in_flight.expect(*id);
                    member.held.push(in_flight.id);
                }
            }
        }
        in_flight.set_lagging(&lagging);
        if matches!(payload, Payload::Closed) {
            self.close_room(key);
        }
        self.actions.push(in_flight.copies(Attempt::First, to));
        self.start(in_flight);
        if matches!(payload, Payload::Closed) {
            self.detach_members(key);
            self.remove_if_unused(key);
        }
        if !lagging.is_empty() {
            let lagging = lagging.into_iter().map(|recipient| recipient.connection);
            self.deliver_apart(key, msg_id, message, lagging.collect());
        }
    }

    /// Delivers a message to lagging connections, on the gateway's own clock: its
    /// envelope is not held up for them.
    fn deliver_apart(
        &mut self,
        key: RoomKey,
        msg_id: MsgId,
        message: Arc<EncodedMessage>,
        to: Vec<ConnId>,
    ) {
        let origin = Origin::without_envelope(Via::Lagging);
        let in_flight = self.open(key.0, Some(key.1), msg_id, message, origin);
        self.send_to(in_flight, to);
    }

    /// Records an envelope that is for no connection.
    fn record_undelivered(&mut self, key: RoomKey, msg_id: MsgId, envelope: Buffered) {
        let message = envelope.payload.encode(key, msg_id);
        let origin = Origin::envelope(Via::Envelope, envelope.position);
        let in_flight = self.open(key.0, Some(key.1), msg_id, message, origin);
        self.start(in_flight);
    }

    /// Sends a notice, which may be lost, to the members with a known join.
    pub(super) fn notify(&mut self, key: RoomKey, message: Arc<EncodedMessage>) {
        let Some(room) = self.rooms.get(&key) else { return };
        let joined = room.members.iter().filter(|(_, member)| member.joined.is_some());
        let to = joined.map(|(id, _)| *id).collect();
        self.actions.push(Action::Notify { message, to });
    }

    /// Forgets a room that has nothing to do with this gateway any more.
    pub(super) fn remove_if_unused(&mut self, key: RoomKey) {
        let Some(room) = self.rooms.get(&key) else { return };
        if !room.members.is_empty() || !(room.confirmed.is_empty() || room.closed) {
            return;
        }
        let Some(room) = self.rooms.remove(&key) else { return };
        for (msg_id, envelope) in room.buffered {
            self.record_undelivered(key, msg_id, envelope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        input::Input,
        test_bed::{TestBed, conn, message, room},
    };

    #[test]
    fn a_message_goes_to_the_members_but_its_sender() {
        let mut bed = TestBed::with_members([1, 2, 3]);
        bed.receive(message(1, 2, Some(2)));
        let copies = [1, 2, 3].map(|number| bed.first_copies_of(number).len());
        assert_eq!(copies, [1, 0, 1]);
    }

    #[test]
    fn messages_are_delivered_in_order_and_once() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(3, 4);
        bed.receive_message(2, 3);
        assert!(bed.first_copies_of(1).is_empty());
        bed.receive_message(1, 2);
        bed.receive_message(2, 3);
        assert_eq!(bed.first_copies_of(1), [2, 3, 4]);
        assert_eq!(bed.last_counts(), [0; 6], "the repeat has an outcome of its own");
    }

    #[test]
    fn an_envelope_without_recipients_has_an_outcome() {
        let mut bed = TestBed::new();
        let position = bed.receive_message(1, 2);
        assert_eq!(bed.last_counts(), [0; 6]);
        bed.record();
        assert_eq!(bed.acknowledged, [position]);
    }

    #[test]
    fn a_buffered_envelope_that_comes_again_is_one_delivery() {
        let mut bed = TestBed::with_members([1]);
        let position = bed.receive_message(2, 3);
        bed.apply(Input::Envelope { position, envelope: message(2, 3, None) });
        assert!(bed.outcomes.is_empty());
        bed.receive_message(1, 2);
        assert_eq!(bed.first_copies_of(1), [2, 3]);
    }

    #[test]
    fn a_room_without_members_is_forgotten_with_an_outcome_for_each_envelope() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(2, 3);
        bed.leave(4, 1);
        assert!(bed.core.rooms.is_empty());
        assert_eq!(bed.outcomes.len(), 1);
    }

    #[test]
    fn a_notice_goes_to_the_members_whose_join_is_known() {
        let mut bed = TestBed::with_members([1]);
        bed.enter(2);
        let message = std::sync::Arc::new(super::EncodedMessage::new(room(7).0, 5601, "{}", None));
        bed.apply(Input::Notice { room: room(7), message });
        assert_eq!(bed.noticed, [conn(1)]);
    }

    #[test]
    fn one_recipient_of_a_message_is_measured() {
        let mut bed = TestBed::with_members([1, 2, 3]);
        bed.receive_message(1, 2);
        (1..=3).for_each(|number| bed.acknowledge(number, &[2]));
        assert_eq!(bed.measured, 1);
    }
}
