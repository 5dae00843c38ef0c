//! What is on its way, and when it is looked at again.
//!
//! The clock of an envelope is its queue: what is not acknowledged is delivered
//! again. What has no envelope of its own is on the gateway's clock.

use std::{sync::Arc, time::Duration};

use qiyu_nats::{outbox::AckHandle, trace_context::Span};
use qiyu_schema::{AppId, MsgId, RoomId};
use tokio::time::Instant;

use super::{
    DeliveryTask,
    reassign::{Keep, LeftOwing, hand_on},
};
use crate::{
    delivery::in_flight::{Entry, Sample, Source},
    frame::EncodedMessage,
};

/// Messages on our own clock at once. Beyond it envelopes wait for lagging
/// connections, too.
pub(super) const OWN_CLOCK_MAX: usize = 20_000;
/// How long a settled envelope is remembered, so that a redelivery after a
/// lost acknowledgement is acknowledged again and not sent.
const TOMBSTONE_AGE: Duration = Duration::from_secs(30);

/// How a message came to be sent.
pub(super) enum From {
    /// By its envelope, at this place in the queue.
    Queue(Place),
    /// Likewise, having been sent elsewhere before.
    Again(Place),
    /// Likewise, because somebody came too late to the room's end.
    Late(Place),
    /// Read from the log.
    Log,
    /// By its envelope, beside it.
    Lagging,
}

/// An envelope's place in the queue, and what its trace says meanwhile.
pub(super) struct Place {
    pub(super) seq: u64,
    pub(super) ack: AckHandle,
    pub(super) span: Span,
}

impl DeliveryTask {
    /// A message on its way, on the clock of its envelope or on our own.
    pub(super) fn open(
        &mut self,
        app: AppId,
        room: Option<RoomId>,
        msg_id: MsgId,
        message: impl Into<Arc<EncodedMessage>>,
        from: From,
        sample: Option<Sample>,
    ) -> Arc<Entry> {
        let (seq, source, span) = match from {
            From::Queue(Place { seq, ack, span }) => (Some(seq), Source::Envelope(ack), span),
            From::Again(Place { seq, ack, span }) => (Some(seq), Source::Repeat(ack), span),
            From::Late(Place { seq, ack, span }) => (Some(seq), Source::Late(ack), span),
            From::Log => (None, Source::Log, Span::default()),
            From::Lagging => (None, Source::Lagging, Span::default()),
        };
        let message = message.into();
        let desk = self.with.desk.clone();
        let entry = Entry::open(app, room, msg_id, message, source, sample, desk);
        entry.set_span(span);
        match seq {
            Some(seq) => {
                self.entries.insert(seq, Arc::clone(&entry));
                self.tombstones.push_back((Instant::now() + TOMBSTONE_AGE, seq));
            }
            None => {
                let due = Instant::now() + self.with.terms.ack_wait;
                self.own_clock.push_back((due, Arc::clone(&entry)));
            }
        }
        entry
    }

    /// An envelope that has come before: its entry's clock ticks, if it is not settled.
    pub(super) async fn take_again(&self, entry: Arc<Entry>, ack: AckHandle) {
        if entry.is_recorded() {
            self.with.bus.ack(&ack).await; // the first acknowledgement was lost
        } else if entry.is_settled() {
            entry.redelivered(ack); // the ledger is about to acknowledge it
        } else {
            self.tick_entry(entry, Some(ack));
        }
    }

    /// Puts messages sent outside this task on its clock.
    pub(super) fn clock(&mut self, entries: Vec<Arc<Entry>>) {
        let due = Instant::now() + self.with.terms.ack_wait;
        self.own_clock.extend(entries.into_iter().map(|entry| (due, entry)));
    }

    /// Who still owes gets another copy or is given up; who left owing is asked
    /// for in the log, which knows where they are now.
    fn tick_entry(&self, entry: Arc<Entry>, ack: Option<AckHandle>) {
        let (users, sends) = entry.tick(self.with.terms, ack);
        if users.is_empty() {
            return;
        }
        let (bus, gateway) = (self.with.bus.clone(), self.with.gateway.clone());
        self.with.tasks.spawn(async move {
            let left = vec![LeftOwing { entry, users, sends }];
            hand_on(&bus, &gateway, left, Keep::No).await;
        });
    }

    /// Looks at what is due on our own clock, and forgets what is settled for long.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        while self.own_clock.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, entry)) = self.own_clock.pop_front() else { break };
            if !entry.is_settled() {
                self.tick_entry(Arc::clone(&entry), None);
                self.own_clock.push_back((now + self.with.terms.ack_wait, entry));
            }
        }
        while self.tombstones.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, seq)) = self.tombstones.pop_front() else { break };
            match self.entries.get(&seq) {
                Some(entry) if !entry.is_recorded() => {
                    self.tombstones.push_back((now + TOMBSTONE_AGE, seq));
                }
                _ => drop(self.entries.remove(&seq)),
            }
        }
    }
}
