//! The entry into the delivery core: the rule that each input belongs to.

use std::{sync::Arc, time::Instant};

use qiyu_schema::envelope::Envelope;

use super::{
    action::{Action, Counts, Timer},
    ids::QueuePosition,
    input::Input,
    state::{Buffered, Core, Payload},
};
use crate::frame::EncodedMessage;

impl Core {
    /// Applies an input that came at `now`, and appends its actions to `actions`.
    pub(crate) fn apply(&mut self, now: Instant, input: Input, actions: &mut Vec<Action>) {
        self.now = now;
        std::mem::swap(&mut self.actions, actions);
        self.handle(input);
        std::mem::swap(&mut self.actions, actions);
    }

    /// Takes the counts since the last call.
    pub(crate) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Returns whether the envelope at this position was opened before, so that
    /// a further delivery of it need not be decoded.
    pub(crate) fn knows(&self, position: QueuePosition) -> bool {
        self.envelopes.contains_key(&position)
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Entered { connection, app, user, room } => {
                self.add_connection(connection, app, user, room);
            }
            Input::Left { connection } => self.remove_connection(connection),
            Input::Resumed { connection, room, missed } => self.resume(connection, room, missed),
            Input::Acknowledged { connection, acks } => {
                self.acknowledge(connection, acks.as_slice());
            }
            Input::Refused { delivery, attempt, connections } => {
                self.take_back(delivery, attempt, &connections);
            }
            Input::Envelope { position, .. } if self.knows(position) => self.redeliver(position),
            Input::Envelope { position, envelope } => self.receive(position, envelope),
            Input::Redelivered { position } => self.redeliver(position),
            Input::MembersChanged { room, position, changes } => {
                self.change_members(room, position, &changes);
            }
            Input::RoomEnding { room } => self.end_room(room),
            Input::RoomRead { room, until, found } => self.fill_gap(room, until, found),
            Input::RoomReadFailed { room } => self.retry_gap(Timer::RoomGap(room)),
            Input::RoomClosedInLog { room, position } => self.close_from_log(room, position),
            Input::DirectRead { connection, until, found } => {
                self.fill_direct_gap(connection, until, found);
            }
            Input::DirectReadFailed { connection } => self.retry_gap(Timer::DirectGap(connection)),
            Input::Reconnected => self.compare_later(),
            Input::TimerFired(Timer::RoomGap(room)) => self.check_gap(room),
            Input::TimerFired(Timer::DirectGap(connection)) => self.check_direct_gap(connection),
            Input::TimerFired(Timer::CompareRooms) => self.compare_rooms(),
            Input::Tick => self.tick(),
            Input::OutcomesRecorded { positions } => self.note_recorded(&positions),
            Input::Reassigned { deliveries } => self.note_reassigned(&deliveries),
            Input::ReassignAll => self.reassign_all(),
            Input::Notice { room, message } => self.notify(room, message),
        }
    }

    /// Opens an envelope that came for the first time, or is buffered still.
    fn receive(&mut self, position: QueuePosition, envelope: Envelope) {
        match envelope {
            Envelope::Room { app, room, msg_id, prev, from, biz_code, data, at_ms } => {
                let payload = Payload::Message { from, biz_code, data, at_ms };
                self.enqueue((app, room), msg_id, Buffered { prev, position, payload });
            }
            Envelope::RoomClosed { app, room, msg_id, prev, late } if late.is_empty() => {
                let payload = Payload::Closed;
                self.enqueue((app, room), msg_id, Buffered { prev, position, payload });
            }
            Envelope::RoomClosed { app, room, msg_id, late, .. } => {
                self.close_for_latecomers((app, room), msg_id, position, &late);
            }
            Envelope::Repeat { app, room, msg_id, sends, from, biz_code, data, to } => {
                let payload = Payload::Message { from, biz_code, data, at_ms: None };
                self.repeat((app, room), msg_id, position, &payload, sends, &to);
            }
            Envelope::Direct { app, msg_id, biz_code, data, to, at_ms, .. } => {
                let message = Arc::new(EncodedMessage::new(app, biz_code, &data, Some(msg_id)));
                self.enqueue_direct(app, msg_id, position, message, at_ms, &to);
            }
            // A kind newer than this build cannot be delivered by it.
            Envelope::Unknown => self.actions.push(Action::AcknowledgeEnvelope(position)),
        }
    }
}
