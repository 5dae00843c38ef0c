//! Opening and resolving deliveries. Every delivery gets one outcome, also one
//! without recipients: the record could not tell it from a lost envelope otherwise.

use std::sync::Arc;

use qiyu_schema::{AppId, MsgId, RoomId, ledger::Outcome};

use super::{
    action::Action,
    ids::{DeliveryId, QueuePosition},
    in_flight::{InFlight, Origin, Resolution},
    state::{Core, EnvelopeState, Redelivered},
};
use crate::frame::EncodedMessage;

impl Core {
    /// Opens a delivery. The caller adds its recipients, then starts it.
    pub(super) fn open(
        &mut self,
        app: AppId,
        room: Option<RoomId>,
        msg_id: MsgId,
        message: Arc<EncodedMessage>,
        origin: Origin,
    ) -> InFlight {
        self.last_delivery += 1;
        let outcome = Outcome {
            app,
            room,
            msg_id,
            via: origin.via,
            resolved: 0,
            written: 0,
            acknowledged: 0,
            resent: 0,
            given_up: 0,
            left: 0,
            exceptions: Vec::new(),
            to: None,
            lagging: 0,
            lagging_recipients: Vec::new(),
        };
        let id = DeliveryId(self.last_delivery);
        InFlight::new(id, outcome, message, origin.position, self.now)
    }

    /// Starts a delivery: no recipient is added any more.
    pub(super) fn start(&mut self, in_flight: InFlight) {
        let (id, position) = (in_flight.id, in_flight.position);
        self.counts.opened += 1;
        if let Some(position) = position {
            self.envelopes.insert(position, EnvelopeState::InFlight(id));
            self.add_tombstone(position);
        }
        if !in_flight.is_resolved() {
            match position {
                Some(position) => self.actions.push(Action::AwaitAcks(position)),
                None => self.own_clock.push_back((self.now + self.retry_policy.ack_wait, id)),
            }
        }
        self.in_flight.insert(id, in_flight);
        self.record_if_resolved(id);
    }

    /// Resolves one recipient of a delivery.
    pub(super) fn resolve(&mut self, id: DeliveryId, resolution: Resolution) {
        if let Some(in_flight) = self.in_flight.get_mut(&id) {
            in_flight.resolve(resolution, &mut self.counts);
            self.record_if_resolved(id);
        }
    }

    /// Records the outcome of a delivery if its last recipient is resolved.
    pub(super) fn record_if_resolved(&mut self, id: DeliveryId) {
        if !self.in_flight.get(&id).is_some_and(InFlight::is_resolved) {
            return;
        }
        let Some(InFlight { outcome, position, .. }) = self.in_flight.remove(&id) else { return };
        if let Some(position) = position {
            let resolved = EnvelopeState::Resolved { redelivered: Redelivered::No };
            self.envelopes.insert(position, resolved);
        }
        self.actions.push(Action::RecordOutcome { outcome, position });
    }

    /// Notes that the ledger holds the outcomes of these envelopes.
    pub(super) fn note_recorded(&mut self, positions: &[QueuePosition]) {
        for position in positions {
            let before = self.envelopes.insert(*position, EnvelopeState::Recorded);
            if before == Some(EnvelopeState::Resolved { redelivered: Redelivered::Yes }) {
                // The delivery before it was acknowledged, and this one was not.
                self.actions.push(Action::AcknowledgeEnvelope(*position));
            }
        }
    }
}
