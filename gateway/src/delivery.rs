//! From envelopes to connections: one task that alone knows the rooms of this
//! gateway, so nothing here needs a lock and everything has an order.
//!
//! Here is what the task is told, by whom, and which part answers: begin with
//! `rooms` (a message comes) and `members` (whom it is for).

pub(crate) mod connection;
mod connections;
mod direct;
mod gaps;
pub(crate) mod in_flight;
mod members;
pub(crate) mod outcomes;
mod reassign;
mod retry;
mod rooms;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use qiyu_nats::{
    Bus, chain,
    log::LogEntry,
    notice::Notices,
    outbox::{Delivery, Outbox, OutboxError},
};
use qiyu_schema::{
    AppId, ConnId, Incarnation, MsgId, RoomId, envelope::Envelope, event::MemberChange,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

pub(crate) use self::gaps::room_filters;
use self::{
    direct::DirectLine,
    gaps::COMPARE_AFTER,
    retry::{From, Place},
    rooms::{Room, Waiting, What},
};
use crate::{
    delivery::connection::Connection,
    delivery::in_flight::{Desk, Entry, Sample, Terms},
    frame::EncodedMessage,
};

/// Orders waiting for this task. Whoever sends one waits when it is full.
pub(crate) const ORDERS_MAX: usize = 4096;
/// How long an envelope that is missing may still arrive by itself: owners
/// retry after 50 ms, and a retry may overtake.
const GAP_PATIENCE: Duration = Duration::from_millis(200);

/// What others tell the delivery task.
pub(crate) enum Order {
    /// A connection has logged in; if it enters a room, what comes for that is held for it.
    Enter(Arc<Connection>),
    /// A connection is gone; the last message of its room that was dealt with while
    /// it was there is answered, if that is known.
    Leave { connection: ConnId, heard: oneshot::Sender<Option<MsgId>> },
    /// Messages sent outside this task that need its clock.
    Clock(Vec<Arc<Entry>>),
    /// The log has who entered and left a room, at this position.
    Moved { app: AppId, room: RoomId, position: MsgId, changes: Vec<MemberChange> },
    /// A room takes no messages any more.
    EndRoom { app: AppId, room: RoomId, done: oneshot::Sender<()> },
    /// The gateway is about to go: what its people left unacknowledged is handed on.
    HandOn { done: oneshot::Sender<()> },
    /// It is time to look whether a room still misses something.
    RoomGap(RoomKey),
    /// What a room missed, as far as the log has it.
    RoomFilled { room: RoomKey, until: MsgId, found: Vec<LogEntry> },
    /// The bus was away for a while: does any room miss something without knowing it?
    Compare,
    /// A room was closed, and its envelope may be lost.
    RoomEnded { room: RoomKey, position: MsgId },
    /// It is time to look whether a connection still misses a 1:1 message.
    DirectGap(ConnId),
    /// What a connection missed.
    DirectFilled { connection: ConnId, until: MsgId, found: Vec<LogEntry> },
}

type RoomKey = (AppId, RoomId);

pub(crate) struct Dispatcher {
    pub(crate) bus: Bus,
    pub(crate) gateway: Incarnation,
    pub(crate) terms: Terms,
    pub(crate) desk: Desk,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) tasks: TaskTracker,
    /// Whether this life may act at all; see `qiyu_presence::Life::may_act`.
    pub(crate) may_act: Box<dyn Fn() -> bool + Send + Sync>,
}

/// The delivery task's own state.
pub(crate) struct DeliveryTask {
    with: Dispatcher,
    connections: HashMap<ConnId, Arc<Connection>>,
    direct: HashMap<ConnId, DirectLine>,
    rooms: HashMap<RoomKey, Room>,
    /// Envelopes by their place in the queue, settled ones for a while too.
    entries: HashMap<u64, Arc<Entry>>,
    tombstones: VecDeque<(Instant, u64)>,
    /// Entries read from the log have no envelope to tick for them.
    own_clock: VecDeque<(Instant, Arc<Entry>)>,
}

impl DeliveryTask {
    pub(crate) fn new(with: Dispatcher) -> Self {
        Self {
            with,
            connections: HashMap::new(),
            direct: HashMap::new(),
            rooms: HashMap::new(),
            entries: HashMap::new(),
            tombstones: VecDeque::new(),
            own_clock: VecDeque::new(),
        }
    }

    /// Until `stop`, or until the queue is taken away.
    pub(crate) async fn run(
        mut self,
        mut outbox: Outbox,
        mut notices: Notices,
        mut orders: mpsc::Receiver<Order>,
        stop: CancellationToken,
    ) -> Result<(), OutboxError> {
        let mut tick = interval(Duration::from_millis(250));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reconnects = self.with.bus.reconnects();
        loop {
            let may_act = (self.with.may_act)();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                // Before envelopes: a join is ordered here before anything it may hear was sent.
                Some(order) = orders.recv() => self.obey(order),
                _ = tick.tick() => self.tick(),
                Ok(()) = reconnects.changed() => self.later(COMPARE_AFTER, Order::Compare),
                delivery = outbox.next(), if may_act => self.take(delivery?).await,
                Some(notice) = notices.next() => self.tell(&notice),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Enter(connection) => self.enter(connection),
            Order::Leave { connection, heard } => {
                heard.send(self.leave(connection)).ok(); // whoever asked may have stopped waiting
            }
            Order::Clock(entries) => self.clock(entries),
            Order::Moved { app, room, position, changes } => {
                self.moved((app, room), position, &changes);
            }
            Order::EndRoom { app, room, done } => {
                self.end_room((app, room));
                done.send(()).ok(); // whoever asked may have stopped waiting
            }
            Order::HandOn { done } => self.hand_all_on(done),
            Order::RoomGap(room) => self.look_for_gap(room),
            Order::RoomFilled { room, until, found } => self.fill(room, until, found),
            Order::Compare => self.compare(),
            Order::RoomEnded { room, position } => self.end_late(room, position),
            Order::DirectGap(connection) => self.look_for_direct_gap(connection),
            Order::DirectFilled { connection, until, found } => {
                self.fill_direct(connection, until, found);
            }
        }
    }

    /// An envelope has come, or has come again.
    async fn take(&mut self, delivery: Delivery) {
        if let Some(entry) = self.entries.get(&delivery.seq) {
            return self.take_again(Arc::clone(entry), delivery.ack).await;
        }
        let (seq, ack) = (delivery.seq, delivery.ack.clone());
        let span = self.with.bus.start_span("deliver", delivery.trace_context.as_ref());
        let place = Place { seq, ack: ack.clone(), span };
        match delivery.envelope() {
            Ok(Envelope::Room { app, room, msg_id, prev, from, biz_code, data, at_ms }) => {
                let what = What::Said { from, biz_code, data, at_ms };
                self.arrive((app, room), msg_id, Waiting { prev, place, what });
            }
            Ok(Envelope::RoomClosed { app, room, msg_id, prev, late }) if late.is_empty() => {
                let what = What::Closed;
                self.arrive((app, room), msg_id, Waiting { prev, place, what });
            }
            Ok(Envelope::RoomClosed { app, room, msg_id, late, .. }) => {
                self.tell_latecomers((app, room), msg_id, place, &late);
            }
            Ok(Envelope::Repeat { app, room, msg_id, sends, from, biz_code, data, to }) => {
                let message = EncodedMessage::new(app, biz_code, &data, Some(msg_id));
                let again = From::Again(place);
                let entry = self.open(app, Some(room), msg_id, message, again, None);
                entry.sent_before(sends);
                let here = to.iter().filter_map(|id| self.connections.get(id));
                entry.send_to(here.filter(|c| Some(c.identity.user) != from));
            }
            Ok(Envelope::Direct { app, msg_id, biz_code, data, to, at_ms, .. }) => {
                let message = EncodedMessage::new(app, biz_code, &data, Some(msg_id));
                let sample = at_ms.map(|at_ms| Sample::of(at_ms, msg_id, 1));
                let entry = self.open(app, None, msg_id, message, From::Queue(place), sample);
                self.arrive_direct(&entry, &to);
                entry.seal();
            }
            Ok(Envelope::Unknown) => {
                warn!(seq, "envelope of a newer kind acknowledged unread; upgrade this gateway");
                self.with.bus.ack(&ack).await;
            }
            Err(error) => {
                warn!(seq, error = %chain(&error), "undecodable envelope acknowledged unread");
                self.with.bus.ack(&ack).await;
            }
        }
    }

    fn later(&self, pause: Duration, order: Order) {
        let orders = self.with.orders.clone();
        self.with.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            orders.send(order).await.ok(); // the life is over
        });
    }
}
