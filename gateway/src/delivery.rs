//! From envelopes to connections: one task that alone knows the rooms of this
//! gateway, so nothing here needs a lock and everything has an order.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use qiyu_nats::{
    AppId, Bus, ConnId, Incarnation, MsgId, RoomId, UserId, chain,
    envelope::{DirectTarget, Envelope},
    event::{Event, MemberChange, Record, UnackedMessage},
    log::{APPEND_DEADLINE, Condition, LogEntry, ReadError},
    notice::{Notice, Notices},
    outbox::{Ack, Delivery, Outbox, OutboxError},
    subject::{self, RoomKind},
    trail::Step,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    connection::Connection,
    entry::{Desk, Entry, Sample, Settled, Source},
    frame::{Message, biz},
};

/// Orders waiting for this task. Whoever sends one waits when it is full.
pub(crate) const ORDERS_MAX: usize = 4096;
/// How long an envelope that is missing may still arrive by itself: owners
/// retry after 50 ms, and a retry may overtake.
const GAP_PATIENCE: Duration = Duration::from_millis(200);
/// After a failed reading of the log.
const GAP_RETRY: Duration = Duration::from_millis(500);
/// After the bus was away, before the rooms are compared with the log: longer
/// than workers take to be back, so that what is only late comes by itself.
const COMPARE_AFTER: Duration = Duration::from_secs(5);
/// Rooms compared at once.
const COMPARED_AT_ONCE: usize = 16;
/// Messages read from the log at once for one gap.
const GAP_MAX: usize = 1_000;
/// Messages on our own clock at once. Beyond it envelopes wait for lagging
/// connections, too.
const OWN_CLOCK_MAX: usize = 20_000;
/// How long a settled envelope is remembered, so that a redelivery after a
/// lost acknowledgement is acknowledged again and not sent.
const TOMBSTONE_AGE: Duration = Duration::from_secs(30);

/// What others tell the delivery task.
pub(crate) enum Order {
    /// A connection has logged in; if it enters a room, what comes for that is held for it.
    Enter(Arc<Connection>),
    /// A connection is gone.
    Leave(ConnId),
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

/// Settings of delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) ack_wait: Duration,
    pub(crate) sends_max: u32,
}

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

/// One room, as far as this gateway has to do with it.
#[derive(Default)]
struct Room {
    /// Everything up to here is dealt with. `None`: no join of ours is in the log yet.
    last: Option<MsgId>,
    members: HashMap<ConnId, Member>,
    /// The members as the log has them: when the last one leaves, fan-out forgets us.
    confirmed: HashSet<ConnId>,
    waiting: BTreeMap<MsgId, Waiting>,
    looking: bool,
    closed: bool,
}

struct Member {
    connection: Arc<Connection>,
    /// It hears what comes after. `None`: not known yet; what comes is held.
    joined: Option<MsgId>,
    held: Vec<Arc<Entry>>,
}

/// An envelope that has to wait for what comes before it.
struct Waiting {
    prev: MsgId,
    place: Place,
    what: What,
}

/// An envelope's place in the queue, and what its trace says meanwhile.
struct Place {
    seq: u64,
    ack: Ack,
    step: Step,
}

/// What an envelope brings to a room.
enum What {
    Said { from: Option<UserId>, biz_code: i32, data: String, at_ms: Option<u64> },
    Closed,
}

/// 1:1 messages of one connection.
#[derive(Default)]
struct DirectLine {
    last: Option<MsgId>,
    waiting: BTreeMap<MsgId, (Option<MsgId>, Arc<Entry>)>,
    looking: bool,
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
            Order::Leave(connection) => self.leave(connection),
            Order::Clock(entries) => {
                let due = Instant::now() + self.with.terms.ack_wait;
                self.own_clock.extend(entries.into_iter().map(|entry| (due, entry)));
            }
            Order::Moved { app, room, position, changes } => {
                self.moved((app, room), position, &changes);
            }
            Order::EndRoom { app, room, done } => {
                for member in
                    self.rooms.get(&(app, room)).into_iter().flat_map(|r| r.members.values())
                {
                    member.connection.end_room();
                }
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

    fn enter(&mut self, connection: Arc<Connection>) {
        let id = connection.id;
        if let Some(room) = connection.room() {
            let room = self.rooms.entry((connection.who.app, room)).or_default();
            let (connection, joined, held) = (Arc::clone(&connection), None, Vec::new());
            room.members.insert(id, Member { connection, joined, held });
        }
        self.direct.insert(id, DirectLine::default());
        self.connections.insert(id, connection);
    }

    fn leave(&mut self, id: ConnId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        connection.abandon();
        for (_, entry) in
            self.direct.remove(&id).into_iter().flat_map(|line| line.waiting.into_values())
        {
            entry.settle(Settled::Left);
        }
        let Some(room_id) = connection.room() else { return };
        let key = (connection.who.app, room_id);
        let Some(room) = self.rooms.get_mut(&key) else { return };
        if let Some(member) = room.members.remove(&id) {
            member.held.iter().for_each(|entry| entry.settle(Settled::Left));
        }
        self.tidy(key);
    }

    /// Follows the log as fan-out does, so that both mean the same by `prev`.
    fn moved(&mut self, key: RoomKey, position: MsgId, changes: &[MemberChange]) {
        let room = self.rooms.entry(key).or_default();
        for change in changes {
            match change {
                MemberChange::Joined { connection, .. } => {
                    if room.confirmed.is_empty() {
                        room.last = Some(position);
                    }
                    room.confirmed.insert(*connection);
                    let Some(member) = room.members.get_mut(connection) else { continue };
                    member.joined = Some(position);
                    for entry in std::mem::take(&mut member.held) {
                        if position < entry.msg_id {
                            member.connection.send(&entry);
                        } else {
                            entry.settle(Settled::NotForIt);
                        }
                    }
                    if room.closed {
                        member.connection.detach();
                        room.members.remove(connection);
                    }
                }
                MemberChange::Left { connection, .. } => {
                    room.confirmed.remove(connection);
                    if room.confirmed.is_empty() {
                        room.last = None;
                    }
                }
                MemberChange::Unknown => {} // none of ours
            }
        }
        self.advance(key);
        self.tidy(key);
    }

    async fn take(&mut self, delivery: Delivery) {
        if let Some(entry) = self.entries.get(&delivery.seq) {
            if entry.is_recorded() {
                self.with.bus.ack(&delivery.ack).await; // the first acknowledgement was lost
            } else if entry.is_settled() {
                entry.redelivered(delivery.ack); // the ledger is about to acknowledge it
            } else {
                let entry = Arc::clone(entry);
                self.tick_entry(entry, Some(delivery.ack));
            }
            return;
        }
        let (seq, ack) = (delivery.seq, delivery.ack.clone());
        let step = self.with.bus.step("deliver", delivery.trail.as_ref());
        let place = Place { seq, ack: ack.clone(), step };
        match delivery.envelope() {
            Ok(Envelope::Room { app, room, msg_id, prev, from, biz_code, data, at_ms }) => {
                let what = What::Said { from, biz_code, data, at_ms };
                self.arrive((app, room), msg_id, Waiting { prev, place, what }).await;
            }
            Ok(Envelope::RoomClosed { app, room, msg_id, prev, late }) if late.is_empty() => {
                let what = What::Closed;
                self.arrive((app, room), msg_id, Waiting { prev, place, what }).await;
            }
            Ok(Envelope::RoomClosed { app, room, msg_id, late, .. }) => {
                self.tell_latecomers((app, room), msg_id, place, &late);
            }
            Ok(Envelope::Repeat { app, room, msg_id, sends, from, biz_code, data, to }) => {
                let message = Message::new(app, biz_code, &data, Some(msg_id));
                let from_queue = From::Again(place);
                let entry = self.open(app, Some(room), msg_id, message, from_queue, None);
                entry.sent_before(sends);
                let recipients = to.iter().filter_map(|id| self.connections.get(id));
                for connection in recipients.filter(|c| Some(c.who.user) != from) {
                    entry.expect(connection);
                    connection.send(&entry);
                }
                entry.seal();
            }
            Ok(Envelope::Direct { app, msg_id, biz_code, data, to, at_ms, .. }) => {
                let message = Message::new(app, biz_code, &data, Some(msg_id));
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

    async fn arrive(&mut self, key: RoomKey, msg_id: MsgId, envelope: Waiting) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return self.note_unheard(key, msg_id, envelope);
        };
        if room.last.is_some_and(|last| msg_id <= last) {
            return self.with.bus.ack(&envelope.place.ack).await;
        }
        room.waiting.insert(msg_id, envelope); // a redelivery brings a fresher acknowledgement
        self.advance(key);
    }

    /// Nobody of ours is there any more. That is an outcome, too: without it the
    /// record could not tell such an envelope from one that was lost.
    fn note_unheard(&mut self, key: RoomKey, msg_id: MsgId, envelope: Waiting) {
        let Waiting { place, what, .. } = envelope;
        let (app, room_id) = key;
        let message = what.message(key, msg_id);
        self.open(app, Some(room_id), msg_id, message, From::Queue(place), None).seal();
    }

    /// Deals with what waits, as far as nothing is missing before it.
    fn advance(&mut self, key: RoomKey) {
        while let Some(room) = self.rooms.get_mut(&key)
            && let Some(last) = room.last
            && let Some(first) = room.waiting.first_entry()
        {
            if last < first.get().prev {
                let arm = !std::mem::replace(&mut room.looking, true);
                if arm {
                    self.later(GAP_PATIENCE, Order::RoomGap(key));
                }
                return;
            }
            let (msg_id, Waiting { place, what, .. }) = first.remove_entry();
            if msg_id <= last {
                // Dealt with by way of the log; its envelope has nothing more to bring.
                let (bus, tasks) = (self.with.bus.clone(), &self.with.tasks);
                tasks.spawn(async move { bus.ack(&place.ack).await });
                continue;
            }
            self.expand(key, msg_id, what, From::Queue(place));
        }
    }

    /// Sends one message to the members it is for.
    fn expand(&mut self, key: RoomKey, msg_id: MsgId, what: What, from: From) {
        let (app, room_id) = key;
        let message = Arc::new(what.message(key, msg_id));
        let audience = self.rooms.get(&key).map_or(0, |room| room.members.len());
        let sample = match &what {
            What::Said { at_ms: Some(at_ms), .. } => Some(Sample::of(*at_ms, msg_id, audience)),
            _ => None,
        };
        let entry = self.open(app, Some(room_id), msg_id, Arc::clone(&message), from, sample);
        let mut lagging = Vec::new();
        let may_lag = self.own_clock.len() < OWN_CLOCK_MAX;
        let Some(room) = self.rooms.get_mut(&key) else { return entry.seal() };
        room.last = Some(msg_id);
        debug!(%msg_id, room = %room_id, members = room.members.len(), "message put on queues");
        match what {
            What::Said { from, .. } => {
                for member in
                    room.members.values_mut().filter(|m| Some(m.connection.who.user) != from)
                {
                    if may_lag && member.hears(msg_id) && member.connection.is_lagging() {
                        lagging.push(Arc::clone(&member.connection));
                    } else {
                        member.hear(&entry);
                    }
                }
            }
            What::Closed => {
                room.closed = true;
                for member in room.members.values_mut() {
                    member.connection.end_room();
                    member.hear(&entry);
                }
                room.members.retain(|_, member| {
                    let pending = member.joined.is_none();
                    if !pending {
                        member.connection.detach();
                    }
                    pending
                });
                self.tidy(key);
            }
        }
        entry.seal();
        if !lagging.is_empty() {
            // The same message, on our own clock: the envelope is not held up for them.
            let entry = self.open(app, Some(room_id), msg_id, message, From::Lagging, None);
            for connection in &lagging {
                entry.expect(connection);
                connection.send(&entry);
            }
            entry.seal();
        }
    }

    fn tell_latecomers(&mut self, key: RoomKey, msg_id: MsgId, place: Place, late: &[ConnId]) {
        let message = closed_message(key, msg_id);
        let from = From::Queue(place);
        let entry = self.open(key.0, Some(key.1), msg_id, message, from, None);
        for connection in late.iter().filter_map(|id| self.connections.get(id)) {
            entry.expect(connection);
            connection.end_room();
            connection.send(&entry);
            connection.detach();
            if let Some(room) = self.rooms.get_mut(&key)
                && let Some(member) = room.members.remove(&connection.id)
            {
                member.held.iter().for_each(|entry| entry.settle(Settled::NotForIt));
            }
        }
        entry.seal();
        self.tidy(key);
    }

    fn arrive_direct(&mut self, entry: &Arc<Entry>, to: &[DirectTarget]) {
        for DirectTarget { connection: id, prev } in to {
            let Some(connection) = self.connections.get(id) else { continue };
            let Some(line) = self.direct.get_mut(id) else { continue };
            if line.last.is_some_and(|last| entry.msg_id <= last) {
                continue; // it has been read from the log meanwhile
            }
            entry.expect(connection);
            line.waiting.insert(entry.msg_id, (*prev, Arc::clone(entry)));
            self.advance_direct(*id);
        }
    }

    fn advance_direct(&mut self, id: ConnId) {
        let (Some(connection), Some(line)) = (self.connections.get(&id), self.direct.get_mut(&id))
        else {
            return;
        };
        while let Some(first) = line.waiting.first_entry() {
            if line.last < first.get().0 {
                let arm = !std::mem::replace(&mut line.looking, true);
                if arm {
                    self.later(GAP_PATIENCE, Order::DirectGap(id));
                }
                return;
            }
            let (msg_id, (_, entry)) = first.remove_entry();
            if line.last.is_some_and(|last| msg_id <= last) {
                entry.settle(Settled::NotForIt);
                continue;
            }
            line.last = Some(msg_id);
            connection.send(&entry);
        }
    }

    /// Who still owes gets another copy or is given up; who left owing is asked
    /// for in the log, which knows where they are now.
    fn tick_entry(&self, entry: Arc<Entry>, ack: Option<Ack>) {
        let (users, sends) = entry.tick(self.with.terms, ack);
        if users.is_empty() {
            return;
        }
        let (bus, gateway) = (self.with.bus.clone(), self.with.gateway.clone());
        self.with.tasks.spawn(async move {
            let left = vec![(entry, users, sends)];
            hand_on(&bus, &gateway, left, Keep::No).await;
        });
    }

    /// As at every tick, for all at once, and also for those who are not back yet.
    fn hand_all_on(&self, done: oneshot::Sender<()>) {
        let open = self.entries.values().chain(self.own_clock.iter().map(|(_, entry)| entry));
        let left: Vec<LeftOwing> = open
            .filter(|entry| !entry.is_settled())
            .map(|entry| {
                let (users, sends) = entry.take_orphans();
                (Arc::clone(entry), users, sends)
            })
            .filter(|(_, users, _)| !users.is_empty())
            .collect();
        let (bus, gateway) = (self.with.bus.clone(), self.with.gateway.clone());
        self.with.tasks.spawn(async move {
            hand_on(&bus, &gateway, left, Keep::AWhile).await;
            done.send(()).ok(); // whoever asked may have stopped waiting
        });
    }

    fn open(
        &mut self,
        app: AppId,
        room: Option<RoomId>,
        msg_id: MsgId,
        message: impl Into<Arc<Message>>,
        from: From,
        sample: Option<Sample>,
    ) -> Arc<Entry> {
        let (seq, source, step) = match from {
            From::Queue(Place { seq, ack, step }) => (Some(seq), Source::Envelope(ack), step),
            From::Again(Place { seq, ack, step }) => (Some(seq), Source::Repeat(ack), step),
            From::Log => (None, Source::Log, Step::default()),
            From::Lagging => (None, Source::Lagging, Step::default()),
        };
        let message = message.into();
        let desk = self.with.desk.clone();
        let entry = Entry::open(app, room, msg_id, message, source, sample, desk);
        entry.step_is(step);
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

    /// Forgets a room that has nothing to do with this gateway any more.
    fn tidy(&mut self, key: RoomKey) {
        let Some(room) = self.rooms.get_mut(&key) else { return };
        if !room.members.is_empty() || !(room.confirmed.is_empty() || room.closed) {
            return;
        }
        let Some(room) = self.rooms.remove(&key) else { return };
        for (msg_id, waiting) in room.waiting {
            self.note_unheard(key, msg_id, waiting);
        }
    }

    fn tell(&mut self, notice: &Notice) {
        let Some(room) = self.rooms.get(&(notice.app, notice.room)) else { return };
        let message = Arc::new(Message::new(notice.app, notice.biz_code, &notice.data, None));
        for member in room.members.values().filter(|member| member.joined.is_some()) {
            member.connection.notice(&message);
        }
    }

    fn tick(&mut self) {
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

    // === what was lost on the way, read from the log ===

    fn look_for_gap(&mut self, key: RoomKey) {
        let Some(room) = self.rooms.get_mut(&key) else { return };
        room.looking = false;
        let (Some(last), Some((_, first))) = (room.last, room.waiting.first_key_value()) else {
            return;
        };
        let until = first.prev;
        if until <= last {
            return; // it has come meanwhile
        }
        room.looking = true;
        let (bus, orders) = (self.with.bus.clone(), self.with.orders.clone());
        self.with.tasks.spawn(async move {
            let found = read_gap(&bus, room_filters(key), last.seq(), until).await;
            let order = match found {
                Ok((found, until)) => Order::RoomFilled { room: key, until, found },
                Err(error) => {
                    warn!(room = %key.1, error = %chain(&error), "lost messages not read yet, trying again");
                    tokio::time::sleep(GAP_RETRY).await;
                    Order::RoomGap(key)
                }
            };
            orders.send(order).await.ok(); // the life is over
        });
    }

    fn fill(&mut self, key: RoomKey, until: MsgId, found: Vec<LogEntry>) {
        for entry in found {
            let msg_id = entry.msg_id();
            let missed = |room: &Room| room.last.is_some_and(|last| last < msg_id);
            if !self.rooms.get(&key).is_some_and(missed) {
                continue;
            }
            if let Ok(record) = entry.record()
                && let Event::RoomMessageSent { sender, biz_code, data, .. } = record.event
            {
                debug!(room = %key.1, %msg_id, "its envelope was lost, read from the log");
                self.with.desk.metrics.gap_fills.inc();
                // The envelope may still be on its way, or wait here: it is a repeat then.
                let at_ms = Some(record.at_ms);
                let what = What::Said { from: sender.user, biz_code, data, at_ms };
                self.expand(key, msg_id, what, From::Log);
            }
        }
        if let Some(room) = self.rooms.get_mut(&key) {
            room.looking = false;
            // Unknown stays unknown: the room may have been left and entered anew.
            room.last = room.last.map(|last| last.max(until));
        }
        self.advance(key);
    }

    /// A queue that lost its tail has lost the sign that something is missing,
    /// too: for rooms in which nothing more is said, only the log has it.
    fn compare(&self) {
        let known = |(key, room): (&RoomKey, &Room)| {
            (!room.closed && !room.members.is_empty()).then_some((*key, room.last?))
        };
        let rooms: Vec<(RoomKey, MsgId)> = self.rooms.iter().filter_map(known).collect();
        let (bus, orders) = (self.with.bus.clone(), self.with.orders.clone());
        self.with.tasks.spawn(async move {
            stream::iter(rooms)
                .for_each_concurrent(COMPARED_AT_ONCE, async |(key, last)| {
                    if let Err(error) = compare_one(&bus, &orders, key, last).await {
                        // The bus is away again; when it is back this is done again.
                        debug!(room = %key.1, error = %chain(&error), "room not compared");
                    }
                })
                .await;
        });
    }

    fn end_late(&mut self, key: RoomKey, position: MsgId) {
        let late = |room: &Room| !room.closed && room.last.is_some_and(|last| last < position);
        if self.rooms.get(&key).is_some_and(late) {
            debug!(room = %key.1, "the envelope of its closing was lost");
            self.with.desk.metrics.gap_fills.inc();
            self.expand(key, position, What::Closed, From::Log);
        }
    }

    fn look_for_direct_gap(&mut self, id: ConnId) {
        let (Some(connection), Some(line)) = (self.connections.get(&id), self.direct.get_mut(&id))
        else {
            return;
        };
        line.looking = false;
        let Some((_, (Some(until), _))) = line.waiting.first_key_value() else { return };
        let until = *until;
        if Some(until) <= line.last {
            return;
        }
        line.looking = true;
        // With nothing before it, only the one that is named is known to be for
        // this connection; older ones still wait and come with the next login.
        let after = line.last.map_or(until.seq() - 1, MsgId::seq);
        let subject = subject::user_msg(connection.who.app, connection.who.user);
        let (bus, orders) = (self.with.bus.clone(), self.with.orders.clone());
        self.with.tasks.spawn(async move {
            let found = read_gap(&bus, vec![subject], after, until).await;
            let order = match found {
                Ok((found, until)) => Order::DirectFilled { connection: id, until, found },
                Err(error) => {
                    warn!(connection = %id, error = %chain(&error), "lost 1:1 messages not read yet, trying again");
                    tokio::time::sleep(GAP_RETRY).await;
                    Order::DirectGap(id)
                }
            };
            orders.send(order).await.ok(); // the life is over
        });
    }

    fn fill_direct(&mut self, id: ConnId, until: MsgId, found: Vec<LogEntry>) {
        for entry in found {
            let msg_id = entry.msg_id();
            let Some(connection) = self.connections.get(&id).cloned() else { return };
            let missed = self.direct.get(&id).is_some_and(|line| line.last < Some(msg_id));
            if !missed {
                continue;
            }
            if let Ok(record) = entry.record()
                && let Event::DirectMessageSent { app, biz_code, data, .. } = record.event
            {
                self.with.desk.metrics.gap_fills.inc();
                let message = Message::new(app, biz_code, &data, Some(msg_id));
                let sample = Some(Sample::of(record.at_ms, msg_id, 1));
                let entry = self.open(app, None, msg_id, message, From::Log, sample);
                entry.expect(&connection);
                connection.send(&entry);
                entry.seal();
            }
        }
        if let Some(line) = self.direct.get_mut(&id) {
            line.looking = false;
            line.last = line.last.max(Some(until));
        }
        self.advance_direct(id);
    }

    fn later(&self, pause: Duration, order: Order) {
        let orders = self.with.orders.clone();
        self.with.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            orders.send(order).await.ok(); // the life is over
        });
    }
}

/// How a message came to be sent.
enum From {
    /// By its envelope, at this place in the queue.
    Queue(Place),
    /// Likewise, having been sent elsewhere before.
    Again(Place),
    /// Read from the log.
    Log,
    /// By its envelope, beside it.
    Lagging,
}

impl Member {
    /// Whether it is known to be in the room for this message.
    fn hears(&self, msg_id: MsgId) -> bool {
        self.joined.is_some_and(|joined| joined < msg_id)
    }

    fn hear(&mut self, entry: &Arc<Entry>) {
        match self.joined {
            Some(joined) if joined < entry.msg_id => {
                entry.expect(&self.connection);
                self.connection.send(entry);
            }
            Some(_) => {}
            None => {
                entry.expect(&self.connection);
                self.held.push(Arc::clone(entry));
            }
        }
    }
}

impl What {
    fn message(&self, key: RoomKey, msg_id: MsgId) -> Message {
        match self {
            Self::Said { biz_code, data, .. } => Message::new(key.0, *biz_code, data, Some(msg_id)),
            Self::Closed => closed_message(key, msg_id),
        }
    }
}

/// Whether messages are kept for those who have not come back yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    No,
    AWhile,
}

/// An entry, who left owing it, and how many copies there have been.
type LeftOwing = (Arc<Entry>, Vec<UserId>, u32);

/// Users named in one append, over all its messages: nine bytes each, and some
/// thirty a message, so below a tenth of what the log takes.
const HAND_ON_USERS_MAX: usize = 1000;

/// Messages together as long as they name few enough users.
fn batched(messages: impl Iterator<Item = UnackedMessage>) -> Vec<Vec<UnackedMessage>> {
    let mut batches: Vec<Vec<UnackedMessage>> = Vec::new();
    let mut room_for = 0;
    for message in messages {
        let users = message.users.as_ref().map_or(0, Vec::len).max(1);
        if room_for < users {
            batches.push(Vec::new());
            room_for = HAND_ON_USERS_MAX;
        }
        room_for -= users.min(room_for);
        if let Some(batch) = batches.last_mut() {
            batch.push(message);
        }
    }
    batches
}

/// Tells the log who left which messages unacknowledged, then settles for them.
async fn hand_on(bus: &Bus, gateway: &Incarnation, left: Vec<LeftOwing>, keep: Keep) {
    let mut rooms: BTreeMap<RoomKey, BTreeMap<(MsgId, u32), Vec<UserId>>> = BTreeMap::new();
    for (entry, users, sends) in &left {
        let Some(room) = entry.room else { continue };
        let messages = rooms.entry((entry.app, room)).or_default();
        messages.entry((entry.msg_id, *sends)).or_default().extend(users);
    }
    for ((app, room), messages) in rooms {
        let each = messages.into_iter().flat_map(|((msg_id, sends), users)| {
            let some =
                |users: &[UserId]| UnackedMessage { msg_id, users: Some(users.to_vec()), sends };
            users.chunks(HAND_ON_USERS_MAX).map(some).collect::<Vec<_>>()
        });
        for messages in batched(each) {
            let subject = subject::room(app, room, RoomKind::Unacked);
            // Told apart by a number nobody else draws: the same messages may be
            // left more than once, by different people.
            let key = format!("una:{gateway}:{:x}", qiyu_nats::ticket::fresh_nonce());
            let (gateway, keep) = (gateway.clone(), keep == Keep::AWhile);
            let record = Record::now(Event::Unacknowledged { app, room, gateway, messages, keep });
            let stored = bus.append(subject, &record, &key, Condition::Any, APPEND_DEADLINE);
            if let Err(error) = stored.await {
                warn!(%room, error = %chain(&error), "unacknowledged messages not handed on; history has them");
            }
        }
    }
    for (entry, users, _) in left {
        users.iter().for_each(|_| entry.settle(Settled::Left));
    }
}

/// Brings what the log has of a room above `last`: messages, then its end.
async fn compare_one(
    bus: &Bus,
    orders: &mpsc::Sender<Order>,
    (app, room): RoomKey,
    last: MsgId,
) -> Result<(), ReadError> {
    let newest = |kind| async move {
        let entry = bus.read_last(&subject::room(app, room, kind)).await?;
        Ok::<_, ReadError>(entry.map(|entry| entry.msg_id()))
    };
    let closed = newest(RoomKind::Closed).await?;
    let said = newest(RoomKind::Msg).await?;
    let mut after = last;
    while let Some(until) = said.filter(|said| after < *said) {
        let (mut found, reached) =
            read_gap(bus, room_filters((app, room)), after.seq(), until).await?;
        // What was stored after the end is for nobody.
        found.retain(|entry| closed.is_none_or(|closed| entry.msg_id() < closed));
        let until = match closed {
            Some(closed) if closed <= reached => found.last().map_or(after, LogEntry::msg_id),
            _ => reached,
        };
        let key = (app, room);
        orders.send(Order::RoomFilled { room: key, until, found }).await.ok(); // the life is over
        after = reached;
    }
    if let Some(position) = closed {
        let room = (app, room);
        orders.send(Order::RoomEnded { room, position }).await.ok(); // the life is over
    }
    Ok(())
}

/// What is missing in (after, until], and how far that reaches.
async fn read_gap(
    bus: &Bus,
    filters: Vec<String>,
    after: u64,
    until: MsgId,
) -> Result<(Vec<LogEntry>, MsgId), ReadError> {
    let is_message = |entry: &LogEntry| entry.subject.ends_with(".msg");
    let range = bus.read_range(filters, after, until, GAP_MAX, is_message).await?;
    // The rest of a very large gap is found missing again, and read next.
    let reached = match range.entries.last() {
        Some(last) if !range.complete => last.msg_id(),
        _ => until,
    };
    Ok((range.entries, reached))
}

/// What can stand between two messages of a room, or at either end.
pub(crate) fn room_filters((app, room): RoomKey) -> Vec<String> {
    vec![
        subject::room(app, room, RoomKind::Msg),
        subject::room(app, room, RoomKind::Members), // a join may be what `prev` names
    ]
}

fn closed_message((app, room): RoomKey, msg_id: MsgId) -> Message {
    Message::new(app, biz::ROOM_CLOSED, &format!(r#"{{"roomId":{room}}}"#), Some(msg_id))
}
