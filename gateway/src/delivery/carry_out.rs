//! Carrying out the actions of the core.

use std::sync::Arc;

use qiyu_nats::{Bus, trace_context::Span};
use qiyu_schema::{ConnId, ledger::Outcome};
use tokio::time::Instant;
use tracing::{debug, field};

use super::{
    action::{Action, Attempt, Counts, KeepForReturn, Sample, UnackedDelivery},
    append_unacked::append_unacked,
    connection::Connection,
    handle::DeliveryHandle,
    ids::{DeliveryId, QueuePosition},
    input::Input,
    log_reads,
    recorder::{RecorderRequest, ResolvedDelivery},
    task::{DeliveryTask, ReceivedEnvelope, Stage},
};
use crate::frame::EncodedMessage;

impl DeliveryTask {
    /// Applies an input, and carries out the actions that it leads to.
    pub(super) fn apply(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next {
            let mut actions = std::mem::take(&mut self.actions);
            self.core.apply(Instant::now().into_std(), input, &mut actions);
            actions.drain(..).for_each(|action| self.carry_out(action));
            self.actions = actions;
            next = self.follow_ups.pop();
        }
        self.count();
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Send { delivery, attempt, room, msg_id, message, to, sample } => {
                if attempt == Attempt::First {
                    let (room, members) = (room.map(field::display), to.len());
                    debug!(%msg_id, room, members, "message put on queues");
                }
                self.send(delivery, attempt, &message, to, sample);
            }
            Action::Notify { message, to } => {
                self.each(&to, |connection| connection.notice(&message));
            }
            Action::EndRoom { connections } => self.each(&connections, Connection::end_room),
            Action::DetachFromRoom { connections } => {
                self.each(&connections, Connection::detach_from_room);
            }
            Action::AwaitAcks(position) => self.await_acks(position),
            Action::RecordOutcome { outcome, position } => self.record_outcome(outcome, position),
            Action::AcknowledgeEnvelope(position) => {
                if let Some(received) = self.envelopes.remove(&position) {
                    self.record(RecorderRequest::Acknowledge(received.ack));
                }
            }
            Action::MarkRead { app, user, msg_ids } => {
                (self.context.mark_read)(app, user, msg_ids);
            }
            Action::ObserveAcknowledgement { accepted_ms } => {
                self.context
                    .metrics
                    .acknowledgement_duration_seconds
                    .observe_since(accepted_ms, qiyu_nats::now_ms());
            }
            Action::ReadRoom { room, after, until } => {
                self.spawn(|bus, delivery| log_reads::read_room(bus, delivery, room, after, until));
            }
            Action::ReadDirect { connection, app, user, after, until } => {
                let user = (app, user);
                self.spawn(|bus, delivery| {
                    log_reads::read_direct(bus, delivery, connection, user, after, until)
                });
            }
            Action::CompareRooms(rooms) => {
                self.spawn(|bus, delivery| log_reads::compare_rooms(bus, delivery, rooms));
            }
            Action::ArmTimer { after, timer } => {
                self.spawn(async move |_bus, delivery| {
                    tokio::time::sleep(after).await;
                    delivery.apply(Input::TimerFired(timer)).await;
                });
            }
            Action::Reassign { unacked, keep } => self.reassign(unacked, keep),
        }
    }

    /// Puts a copy on the output queue of each connection.
    fn send(
        &mut self,
        delivery: DeliveryId,
        attempt: Attempt,
        message: &Arc<EncodedMessage>,
        mut to: Vec<ConnId>,
        sample: Option<Sample>,
    ) {
        let copies = to.len();
        to.retain(|id| {
            let measured = sample.filter(|sample| sample.connection == *id);
            let accepted_ms = measured.map(|sample| sample.accepted_ms);
            let sent = self.connections.get(id).map(|c| c.send(message, accepted_ms));
            sent != Some(Ok(()))
        });
        let sent = (copies - to.len()) as u64;
        match attempt {
            Attempt::First => self.context.metrics.written.inc_by(sent),
            Attempt::Retry => self.context.metrics.resent.inc_by(sent),
        };
        if !to.is_empty() {
            self.follow_ups.push(Input::Refused { delivery, attempt, connections: to });
        }
    }

    fn each(&self, ids: &[ConnId], act: impl Fn(&Connection)) {
        ids.iter().filter_map(|id| self.connections.get(id)).for_each(|connection| act(connection));
    }

    /// Lets the trace of an envelope go from its delivery to its acknowledgements.
    fn await_acks(&mut self, position: QueuePosition) {
        if let Some(received) = self.envelopes.get_mut(&position) {
            received.span = std::mem::take(&mut received.span).next_span("settle");
            received.stage = Stage::AwaitingAcks;
        }
    }

    fn record_outcome(&mut self, outcome: Outcome, position: Option<QueuePosition>) {
        if let Some(position) = position
            && self.envelopes.get(&position).is_some_and(|r| r.stage == Stage::Delivering)
        {
            self.await_acks(position); // it had no recipient
        }
        let received = position.and_then(|position| self.envelopes.remove(&position));
        let (envelope, span) = match received.zip(position) {
            Some((ReceivedEnvelope { ack, span, .. }, position)) => (Some((position, ack)), span),
            None => (None, Span::default()),
        };
        self.record(RecorderRequest::Record(ResolvedDelivery { outcome, envelope, span }));
    }

    /// Passes work to the recorder, which alone waits for NATS.
    pub(super) fn record(&self, request: RecorderRequest) {
        self.context.recorder.send(request).ok(); // the incarnation has ended, and its record
    }

    fn reassign(&mut self, unacked: Vec<UnackedDelivery>, keep: KeepForReturn) {
        let reassigned = match keep {
            KeepForReturn::Yes => self.reassigned.take(),
            KeepForReturn::No => None,
        };
        let gateway = self.context.gateway.clone();
        self.spawn(async move |bus, delivery| {
            append_unacked(&bus, &gateway, &unacked, keep).await;
            let counted = |unacked: &UnackedDelivery| (unacked.delivery, unacked.users.len());
            let deliveries = unacked.iter().map(counted).collect();
            let input = Input::Reassigned { deliveries };
            match reassigned {
                // The drain ends only after the outcomes are on the way to the ledger.
                Some(done) => delivery.apply_and_report(input, done).await,
                None => delivery.apply(input).await,
            }
        });
    }

    /// Starts work that reports its result as an input.
    fn spawn<F>(&self, work: impl FnOnce(Bus, DeliveryHandle) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let work = work(self.context.bus.clone(), self.context.delivery.clone());
        self.context.tasks.spawn(work);
    }

    fn count(&mut self) {
        let Counts { opened, acknowledged, given_up, gap_fills } = self.core.take_counts();
        let metrics = &self.context.metrics;
        metrics.envelopes_pending.inc_by(i64::try_from(opened).unwrap_or(i64::MAX));
        metrics.acknowledged.inc_by(acknowledged);
        metrics.given_up.inc_by(given_up);
        metrics.gap_fills.inc_by(gap_fills);
    }
}
