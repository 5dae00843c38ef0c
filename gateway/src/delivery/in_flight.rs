//! A message in flight: delivered to connections of this gateway and awaiting
//! their acknowledgements.

use std::{sync::Arc, time::Instant};

use qiyu_schema::{
    ConnId, MsgId, UserId,
    ledger::{EXCEPTIONS_MAX, Exception, Outcome, Recipient, UnackedReason, Via},
};

use super::{
    action::{Action, Attempt, Counts, Sample, UnackedDelivery},
    ids::{DeliveryId, QueuePosition, RoomKey},
    unacked::Unacked,
};
use crate::frame::EncodedMessage;

/// A message awaiting acknowledgements. Each connection keeps the list of its
/// own unacknowledged messages; this is the count of them for one message.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) id: DeliveryId,
    /// Grows until every recipient is resolved, and is then recorded.
    pub(super) outcome: Outcome,
    pub(super) message: Arc<EncodedMessage>,
    /// `None`: no envelope keeps its clock, so the gateway does.
    pub(super) position: Option<QueuePosition>,
    /// Every connection it was ever for.
    pub(super) recipients: Vec<ConnId>,
    /// Recipients that are not resolved.
    pending: usize,
    /// Users of connections that ended before they acknowledged. They are pending
    /// until the log is told of them.
    pub(super) users_of_closed: Vec<UserId>,
    /// Copies sent to a recipient, those of earlier gateways included.
    pub(super) sends: u32,
    pub(super) sent_at: Instant,
    sampling: Option<Sampling>,
    sample: Option<Sample>,
}

/// The origin of a message: how it came, and its envelope if that keeps its clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) via: Via,
    pub(super) position: Option<QueuePosition>,
}

impl Origin {
    /// The origin of a message without an envelope: the gateway keeps its clock.
    pub(super) fn without_envelope(via: Via) -> Self {
        Self { via, position: None }
    }

    pub(super) fn envelope(via: Via, position: QueuePosition) -> Self {
        Self { via, position: Some(position) }
    }
}

/// Which recipient of a message is measured. A look at the clock for each of
/// them would cost a crowded room as much as the message.
#[derive(Clone, Copy, Debug)]
struct Sampling {
    accepted_ms: u64,
    /// The recipient's number, from 0.
    nth: u32,
}

/// How a recipient is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    Acknowledged,
    GivenUp,
    /// Its connection ended first.
    Left,
    /// The message was not for it: it joined the room later.
    NotForRecipient,
}

impl InFlight {
    pub(super) fn new(
        id: DeliveryId,
        outcome: Outcome,
        message: Arc<EncodedMessage>,
        position: Option<QueuePosition>,
        now: Instant,
    ) -> Self {
        Self {
            id,
            outcome,
            message,
            position,
            recipients: Vec::new(),
            pending: 0,
            users_of_closed: Vec::new(),
            sends: 1,
            sent_at: now,
            sampling: None,
            sample: None,
        }
    }

    pub(super) fn msg_id(&self) -> MsgId {
        self.outcome.msg_id
    }

    /// Returns its room. `None`: it is a direct message.
    pub(super) fn room(&self) -> Option<RoomKey> {
        self.outcome.room.map(|room| (self.outcome.app, room))
    }

    /// Measures it at one of `audience` recipients, a different one for each
    /// message, so that the measurements are not those of the first recipient.
    pub(super) fn sample_one_of(&mut self, audience: usize, accepted_ms: Option<u64>) {
        // The sender may be one of them: then the last number is no recipient's.
        let numbers = u64::try_from(audience).unwrap_or(1).saturating_sub(1).max(1);
        let nth = u32::try_from(self.msg_id().seq() % numbers).unwrap_or(0);
        self.sampling = accepted_ms.map(|accepted_ms| Sampling { accepted_ms, nth });
    }

    /// Returns when it was accepted, if it is measured at this connection.
    pub(super) fn accepted_ms_if_sampled(&self, connection: ConnId) -> Option<u64> {
        self.sample.filter(|sample| sample.connection == connection).map(|s| s.accepted_ms)
    }

    /// Adds a recipient, which is pending from here on.
    pub(super) fn expect(&mut self, connection: ConnId) {
        if let Some(Sampling { accepted_ms, nth }) = self.sampling
            && nth == self.outcome.resolved
        {
            self.sample = Some(Sample { connection, accepted_ms });
        }
        self.outcome.resolved += 1;
        self.pending += 1;
        self.recipients.push(connection);
    }

    /// Counts the first copy for an expected recipient. A recipient with too many
    /// unacknowledged messages is given up at once.
    pub(super) fn note_first_copy(
        &mut self,
        recipient: Recipient,
        unacked: &mut Unacked,
        counts: &mut Counts,
    ) {
        self.outcome.written += 1;
        if unacked.is_full() {
            self.add_exception(recipient, UnackedReason::Lagging);
            self.resolve(Resolution::GivenUp, counts);
        } else {
            unacked.insert(self.msg_id(), self.id);
        }
    }

    /// Remembers why a connection did not acknowledge.
    pub(super) fn add_exception(&mut self, recipient: Recipient, reason: UnackedReason) {
        let exceptions = &mut self.outcome.exceptions;
        if exceptions.len() < EXCEPTIONS_MAX {
            let Recipient { user, connection } = recipient;
            exceptions.push(Exception { user, connection, reason });
        }
    }

    /// Names the connections that get it as another delivery.
    pub(super) fn set_lagging(&mut self, lagging: &[Recipient]) {
        self.outcome.lagging = u32::try_from(lagging.len()).unwrap_or(u32::MAX);
        self.outcome.lagging_recipients = lagging[..lagging.len().min(EXCEPTIONS_MAX)].to_vec();
    }

    /// Resolves one recipient.
    pub(super) fn resolve(&mut self, resolution: Resolution, counts: &mut Counts) {
        match resolution {
            Resolution::Acknowledged => {
                self.outcome.acknowledged += 1;
                counts.acknowledged += 1;
            }
            Resolution::GivenUp => {
                self.outcome.given_up += 1;
                counts.given_up += 1;
            }
            Resolution::Left => self.outcome.left += 1,
            Resolution::NotForRecipient => self.outcome.resolved -= 1,
        }
        self.pending -= 1;
    }

    pub(super) fn is_resolved(&self) -> bool {
        self.pending == 0
    }

    /// Takes the users of closed connections, if a copy elsewhere is worth while.
    /// They stay pending until the log is told of them.
    pub(super) fn take_unacked(&mut self, sends: u32) -> Option<UnackedDelivery> {
        let room = self.room().filter(|_| !self.users_of_closed.is_empty())?;
        let users = std::mem::take(&mut self.users_of_closed);
        Some(UnackedDelivery { delivery: self.id, room, msg_id: self.msg_id(), users, sends })
    }

    /// Builds the action that sends a copy to these recipients.
    pub(super) fn copies(&self, attempt: Attempt, to: Vec<ConnId>) -> Action {
        Action::Send {
            delivery: self.id,
            attempt,
            room: self.outcome.room,
            msg_id: self.outcome.msg_id,
            message: Arc::clone(&self.message),
            to,
            sample: self.sample.filter(|_| attempt == Attempt::First),
        }
    }
}
