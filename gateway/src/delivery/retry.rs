//! Retries: a message that is not acknowledged is sent again, then given up.
//!
//! The clock of an envelope is its queue: an unacknowledged envelope is
//! delivered again. A delivery without an envelope is on the gateway's own clock.

use std::time::Duration;

use qiyu_schema::ledger::UnackedReason;

use super::{
    action::{Action, Attempt, KeepForReturn},
    ids::{DeliveryId, QueuePosition},
    in_flight::Resolution,
    state::{Core, EnvelopeState, Redelivered},
};

/// Deliveries on the gateway's own clock at once. Beyond it envelopes wait for
/// lagging connections, too.
pub(super) const OWN_CLOCK_MAX: usize = 20_000;
/// How long a recorded envelope is remembered, so that a redelivery after a lost
/// acknowledgement is acknowledged again and not sent.
const TOMBSTONE_AGE: Duration = Duration::from_secs(30);

impl Core {
    /// Handles a further delivery of an envelope that was opened.
    pub(super) fn redeliver(&mut self, position: QueuePosition) {
        match self.envelopes.get_mut(&position) {
            Some(EnvelopeState::InFlight(delivery)) => {
                let delivery = *delivery;
                self.retry(delivery);
            }
            // The ledger has its outcome soon, and it is acknowledged then.
            Some(EnvelopeState::Resolved { redelivered }) => *redelivered = Redelivered::Yes,
            // The acknowledgement was lost.
            Some(EnvelopeState::Recorded) => {
                self.actions.push(Action::AcknowledgeEnvelope(position));
            }
            None => {} // never: only an envelope that is known is delivered again
        }
    }

    /// Sends a message again to its pending recipients, or gives them up.
    fn retry(&mut self, id: DeliveryId) {
        let Some(in_flight) = self.in_flight.get_mut(&id) else { return };
        // While the gateway could not act, several deliveries may have queued up:
        // they count as one.
        if self.now.saturating_duration_since(in_flight.sent_at) < self.retry_policy.ack_wait / 2 {
            return;
        }
        in_flight.sent_at = self.now;
        in_flight.sends += 1;
        if in_flight.sends <= self.retry_policy.sends_max {
            self.resend(id);
        } else {
            self.give_up(id);
        }
    }

    fn resend(&mut self, id: DeliveryId) {
        let Some(in_flight) = self.in_flight.get_mut(&id) else { return };
        let msg_id = in_flight.msg_id();
        let mut to = in_flight.recipients.clone();
        // A held or buffered message was not sent to its recipient yet.
        to.retain(|connection| {
            self.connections.get(connection).is_some_and(|c| c.unacked.contains(msg_id, id))
        });
        in_flight.outcome.resent += u32::try_from(to.len()).unwrap_or(u32::MAX);
        self.actions.push(in_flight.copies(Attempt::Retry, to));
        if let Some(unacked) = in_flight.take_unacked(in_flight.sends - 1) {
            let (unacked, keep) = (vec![unacked], KeepForReturn::No);
            self.actions.push(Action::Reassign { unacked, keep });
        }
    }

    fn give_up(&mut self, id: DeliveryId) {
        let Some(in_flight) = self.in_flight.get_mut(&id) else { return };
        let msg_id = in_flight.msg_id();
        for to in &in_flight.recipients.clone() {
            let Some(connection) = self.connections.get_mut(to) else { continue };
            if connection.unacked.remove(msg_id, id) {
                connection.missed_acks += 1;
                let recipient = connection.recipient(*to);
                in_flight.add_exception(recipient, UnackedReason::NotAcknowledged);
                in_flight.resolve(Resolution::GivenUp, &mut self.counts);
            }
        }
        // The users of closed connections had all copies that they get.
        for _ in std::mem::take(&mut in_flight.users_of_closed) {
            in_flight.resolve(Resolution::Left, &mut self.counts);
        }
        self.record_if_resolved(id);
    }

    /// Retries deliveries that are due on the gateway's own clock, and forgets
    /// envelopes that were recorded long ago.
    pub(super) fn tick(&mut self) {
        while let Some((_, delivery)) = self.own_clock.pop_front_if(|(due, _)| *due <= self.now) {
            self.retry(delivery);
            if self.in_flight.contains_key(&delivery) {
                self.own_clock.push_back((self.now + self.retry_policy.ack_wait, delivery));
            }
        }
        while let Some((_, position)) = self.tombstones.pop_front_if(|(at, _)| *at <= self.now) {
            match self.envelopes.get(&position) {
                Some(EnvelopeState::Recorded) => drop(self.envelopes.remove(&position)),
                _ => self.add_tombstone(position),
            }
        }
    }

    pub(super) fn add_tombstone(&mut self, position: QueuePosition) {
        self.tombstones.push_back((self.now + TOMBSTONE_AGE, position));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            input::Input,
            test_bed::{ACK_WAIT, TestBed, logged, msg, room},
        },
        *,
    };

    #[test]
    fn a_redelivered_envelope_is_sent_again_to_pending_connections() {
        let mut bed = TestBed::with_members([1, 2]);
        let position = bed.receive_message(1, 2);
        bed.acknowledge(1, &[2]);
        bed.redeliver(position);
        assert_eq!(bed.copies_of(1), [(2, Attempt::First)]);
        assert_eq!(bed.copies_of(2), [(2, Attempt::First), (2, Attempt::Retry)]);
        bed.acknowledge(2, &[2]);
        assert_eq!(bed.last_counts(), [2, 2, 2, 1, 0, 0]);
    }

    #[test]
    fn the_third_delivery_gives_up() {
        let mut bed = TestBed::with_members([1]);
        let position = bed.receive_message(1, 2);
        bed.redeliver(position);
        bed.redeliver(position);
        assert_eq!(bed.last_counts(), [1, 1, 0, 1, 1, 0]);
        let exceptions = &bed.outcomes[0].exceptions;
        assert_eq!(exceptions[0].reason, UnackedReason::NotAcknowledged);
        bed.acknowledge(1, &[2]);
        assert_eq!(bed.outcomes.len(), 1, "a late acknowledgement changes no outcome");
    }

    #[test]
    fn deliveries_that_queued_up_count_as_one() {
        let mut bed = TestBed::with_members([1]);
        let position = bed.receive_message(1, 2);
        bed.redeliver(position);
        bed.apply(Input::Redelivered { position });
        bed.apply(Input::Redelivered { position });
        assert!(bed.outcomes.is_empty());
        assert_eq!(bed.copies.len(), 2);
    }

    #[test]
    fn a_held_message_is_not_sent_again() {
        let mut bed = TestBed::with_members([1]);
        bed.enter(2);
        let position = bed.receive_message(1, 3);
        bed.redeliver(position);
        bed.redeliver(position);
        assert!(bed.copies_of(2).is_empty());
        assert!(bed.outcomes.is_empty(), "it is pending until its join is known");
        bed.join(2, &[2]);
        bed.redeliver(position);
        assert_eq!(bed.last_counts(), [2, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn an_envelope_is_acknowledged_after_its_outcome_is_recorded() {
        let mut bed = TestBed::with_members([1]);
        let position = bed.receive_message(1, 2);
        bed.acknowledge(1, &[2]);
        bed.redeliver(position);
        assert!(bed.acknowledged.is_empty());
        bed.record();
        assert_eq!(bed.acknowledged, [position, position], "both of its deliveries");
    }

    #[test]
    fn a_redelivery_after_a_lost_acknowledgement_is_acknowledged_and_not_sent() {
        let mut bed = TestBed::with_members([1]);
        let position = bed.receive_message(1, 2);
        bed.acknowledge(1, &[2]);
        bed.record();
        bed.redeliver(position);
        assert_eq!(bed.acknowledged, [position, position]);
        assert_eq!(bed.copies.len(), 1);
    }

    #[test]
    fn a_recorded_envelope_is_forgotten_after_30_seconds() {
        let mut bed = TestBed::with_members([1]);
        let position = bed.receive_message(1, 2);
        bed.pass(TOMBSTONE_AGE);
        assert!(bed.core.knows(position), "it is not recorded yet");
        bed.acknowledge(1, &[2]);
        bed.record();
        bed.pass(TOMBSTONE_AGE);
        assert!(!bed.core.knows(position));
    }

    #[test]
    fn a_message_from_the_log_is_on_the_gateways_own_clock() {
        let mut bed = TestBed::with_members([1]);
        let found = vec![logged(2)];
        bed.apply(Input::RoomRead { room: room(7), until: msg(2), found });
        bed.pass(ACK_WAIT);
        assert_eq!(bed.copies_of(1), [(2, Attempt::First), (2, Attempt::Retry)]);
        bed.pass(ACK_WAIT);
        assert_eq!(bed.last_counts(), [1, 1, 0, 1, 1, 0]);
        assert!(bed.core.own_clock.is_empty());
    }
}
