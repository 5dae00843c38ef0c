//! The delivery task: it feeds the core with envelopes, requests and ticks.

use std::{sync::Arc, time::Duration};

use qiyu_nats::{
    Bus, chain,
    notice::Notices,
    outbox::{AckHandle, Delivery, Outbox, OutboxError},
    trace_context::Span,
};
use qiyu_schema::{AppId, ConnId, Incarnation, MsgId, UserId, envelope::Envelope};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    action::Action,
    connection::Connection,
    handle::{DeliveryHandle, DeliveryRequests, Request},
    ids::{IdMap, QueuePosition},
    input::Input,
    recorder::RecorderRequest,
    state::{Core, RetryPolicy},
};
use crate::{frame::EncodedMessage, metrics::Metrics};

/// The interval at which the core looks at its deadlines.
const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// Requests handled in a row, before envelopes get a turn.
const REQUESTS_PER_TURN_MAX: usize = 256;

/// Everything that the delivery task acts with.
pub(crate) struct DeliveryContext {
    pub(crate) bus: Bus,
    pub(crate) gateway: Incarnation,
    pub(crate) retry_policy: RetryPolicy,
    pub(crate) metrics: Metrics,
    pub(crate) delivery: DeliveryHandle,
    pub(crate) recorder: mpsc::UnboundedSender<RecorderRequest>,
    pub(crate) tasks: TaskTracker,
    /// Returns whether this incarnation may act: its lease is fresh.
    pub(crate) may_act: Box<dyn Fn() -> bool + Send + Sync>,
    /// Appends that a user has read direct messages.
    pub(crate) mark_read: Box<dyn Fn(AppId, UserId, Vec<MsgId>) + Send + Sync>,
}

/// The delivery task.
pub(crate) struct DeliveryTask {
    pub(super) context: DeliveryContext,
    pub(super) core: Core,
    pub(super) connections: IdMap<ConnId, Arc<Connection>>,
    /// Envelopes that were received and are not acknowledged.
    pub(super) envelopes: IdMap<QueuePosition, ReceivedEnvelope>,
    /// The buffer of actions, kept for its capacity.
    pub(super) actions: Vec<Action>,
    /// Inputs that carrying out actions led to.
    pub(super) follow_ups: Vec<Input>,
    /// Dropped when everything is reassigned.
    pub(super) reassigned: Option<oneshot::Sender<()>>,
}

pub(super) struct ReceivedEnvelope {
    /// Acknowledges its last delivery.
    pub(super) ack: AckHandle,
    pub(super) span: Span,
    pub(super) stage: Stage,
}

/// The stage of an envelope, as its trace has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Delivering,
    AwaitingAcks,
}

impl DeliveryTask {
    pub(crate) fn new(context: DeliveryContext) -> Self {
        Self {
            core: Core::new(context.retry_policy, Instant::now().into_std()),
            context,
            connections: IdMap::default(),
            envelopes: IdMap::default(),
            actions: Vec::new(),
            follow_ups: Vec::new(),
            reassigned: None,
        }
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    ///
    /// [`OutboxError`] if the queue is gone.
    pub(crate) async fn run(
        mut self,
        mut outbox: Outbox,
        mut notices: Notices,
        DeliveryRequests(mut requests): DeliveryRequests,
        stop: CancellationToken,
    ) -> Result<(), OutboxError> {
        let mut ticks = interval(TICK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reconnects = self.context.bus.reconnects();
        let mut turn = Vec::with_capacity(REQUESTS_PER_TURN_MAX);
        let mut requests_had_turn = false;
        loop {
            let may_act = (self.context.may_act)();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                // First, but not twice in a row: acknowledgements must not keep
                // envelopes from being received.
                _ = requests.recv_many(&mut turn, REQUESTS_PER_TURN_MAX), if !requests_had_turn => {
                    turn.drain(..).for_each(|request| self.handle(request));
                    requests_had_turn = true;
                    continue;
                }
                _ = ticks.tick() => self.apply(Input::Tick),
                Ok(()) = reconnects.changed() => self.apply(Input::Reconnected),
                delivery = outbox.next(), if may_act => {
                    let delivery = delivery?;
                    // A connection was announced before its join was appended, and so
                    // before any envelope that it is to get was published.
                    for _ in 0..requests.len() {
                        let Ok(request) = requests.try_recv() else { break };
                        self.handle(request);
                    }
                    self.receive(delivery);
                }
                Some(notice) = notices.next() => {
                    let room = (notice.app, notice.room);
                    let message =
                        EncodedMessage::new(notice.app, notice.biz_code, &notice.data, None);
                    self.apply(Input::Notice { room, message: Arc::new(message) });
                }
                // Nothing else is ready.
                () = std::future::ready(()), if requests_had_turn => {}
            }
            requests_had_turn = false;
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Enter(connection) => {
                let identity = &connection.identity;
                let (id, app, user) = (connection.id, identity.app, identity.user);
                let room = connection.room();
                self.connections.insert(id, connection);
                self.apply(Input::Entered { connection: id, app, user, room });
            }
            Request::Leave { connection, last_seen } => {
                // It fails if the departure no longer waits.
                last_seen.send(self.core.last_seen(connection)).ok();
                self.apply(Input::Left { connection });
                self.connections.remove(&connection);
            }
            Request::ReassignAll { done } => {
                self.reassigned = Some(done);
                self.apply(Input::ReassignAll);
                self.reassigned = None; // nothing was to be reassigned
            }
            Request::Apply(input) => self.apply(input),
            Request::ApplyAndReport { input, done } => {
                self.apply(input);
                done.send(()).ok(); // the caller no longer waits
            }
        }
    }

    /// Receives an envelope, for the first time or again.
    fn receive(&mut self, delivery: Delivery) {
        let position = QueuePosition(delivery.seq);
        if self.core.knows(position) {
            self.note_received(position, delivery, None);
            return self.apply(Input::Redelivered { position });
        }
        let seq = delivery.seq;
        match delivery.envelope() {
            Ok(envelope) => {
                if matches!(envelope, Envelope::Unknown) {
                    warn!(
                        seq,
                        "envelope of a newer kind acknowledged unread; upgrade this gateway"
                    );
                }
                self.note_received(position, delivery, envelope.msg_id());
                self.apply(Input::Envelope { position, envelope });
            }
            Err(error) => {
                warn!(seq, error = %chain(&error), "undecodable envelope acknowledged unread");
                self.record(RecorderRequest::Acknowledge(delivery.ack));
            }
        }
    }

    /// Keeps the handle that acknowledges an envelope. A redelivery brings a fresher one.
    fn note_received(
        &mut self,
        position: QueuePosition,
        delivery: Delivery,
        msg_id: Option<MsgId>,
    ) {
        if let Some(received) = self.envelopes.get_mut(&position) {
            received.ack = delivery.ack;
            return;
        }
        let mut span = self.context.bus.start_span("deliver", delivery.trace_context.as_ref());
        if let Some(msg_id) = msg_id {
            span.set_attribute("qiyu.msg_id", || msg_id.to_string());
        }
        let (ack, stage) = (delivery.ack, Stage::Delivering);
        self.envelopes.insert(position, ReceivedEnvelope { ack, span, stage });
    }
}
