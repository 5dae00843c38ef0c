//! A small model of the log, fan-out and the gateway's queue, which drives the
//! core by random steps.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use qiyu_schema::{
    MsgId,
    envelope::{DirectTarget, Envelope},
    event::MemberChange,
};

use super::{
    ids::{QueuePosition, RoomKey},
    input::{AckBatch, Input, LoggedMessage},
    test_bed::{ACK_WAIT, TestBed, app, conn, msg, room, user},
};

/// One random step.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// A connection of a user enters a room.
    Enter { user: u64, room: u64 },
    /// The log has the joins and leaves so far; the gateway learns of the oldest.
    LearnMembers,
    /// A message is stored in a room.
    Say { room: u64, from: u64 },
    /// A direct message is stored for a user.
    SayDirect { to: u64 },
    /// One of the first queued envelopes is delivered.
    Deliver { nth: usize },
    /// The next envelope never reaches the queue.
    Lose,
    /// A connection acknowledges some of its copies.
    Acknowledge { connection: usize, count: usize },
    /// A connection takes no copies any more.
    Refuse { connection: usize },
    /// A connection ends.
    Leave { connection: usize },
    /// Time passes: timers fire, and unacknowledged envelopes are delivered again.
    Pass { millis: u64 },
    /// The log answers reads, or fails.
    Read { fails: bool },
    /// The ledger has every outcome so far.
    Record,
    /// The log is told of unacknowledged messages.
    FinishReassigning,
    /// NATS was away.
    Reconnect,
}

pub(super) fn random_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1..4_u64, 1..3_u64).prop_map(|(user, room)| Op::Enter { user, room }),
        3 => Just(Op::LearnMembers),
        6 => (1..3_u64, 0..4_u64).prop_map(|(room, from)| Op::Say { room, from }),
        2 => (1..4_u64).prop_map(|to| Op::SayDirect { to }),
        8 => (0..3_usize).prop_map(|nth| Op::Deliver { nth }),
        1 => Just(Op::Lose),
        5 => (0..8_usize, 1..4_usize)
            .prop_map(|(connection, count)| Op::Acknowledge { connection, count }),
        1 => (0..8_usize).prop_map(|connection| Op::Refuse { connection }),
        1 => (0..8_usize).prop_map(|connection| Op::Leave { connection }),
        2 => (1..5000_u64).prop_map(|millis| Op::Pass { millis }),
        2 => any::<bool>().prop_map(|fails| Op::Read { fails }),
        2 => Just(Op::Record),
        1 => Just(Op::FinishReassigning),
        1 => Just(Op::Reconnect),
    ]
}

/// A connection as the model knows it.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) user: u64,
    pub(super) room: u64,
    pub(super) joined: MsgId,
    /// Copies that it got and did not acknowledge.
    unacknowledged: VecDeque<MsgId>,
    /// Its last direct message, as fan-out has it.
    direct_prev: Option<MsgId>,
}

/// A message as the log has it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// The room. `None`: it is a direct message.
    pub(super) room: Option<u64>,
    /// The sender of a room message, or the addressee of a direct one; 0: the system.
    pub(super) user: u64,
}

/// The log, fan-out and the gateway's queue.
pub(super) struct World {
    pub(super) bed: TestBed,
    last_seq: u64,
    last_connection: u64,
    pub(super) log: BTreeMap<MsgId, Stored>,
    pub(super) clients: BTreeMap<u64, Client>,
    /// Fan-out's members of each room, and the last message it sent to this gateway.
    members: HashMap<u64, BTreeSet<u64>>,
    prev: HashMap<u64, MsgId>,
    /// Joins and leaves that the gateway does not know of yet.
    pub(super) changes: VecDeque<(u64, MsgId, MemberChange)>,
    queue: VecDeque<(QueuePosition, Envelope)>,
    /// Envelopes that were delivered, and when last.
    pub(super) delivered: BTreeMap<QueuePosition, (Instant, Envelope)>,
    lost: bool,
    seen_copies: usize,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            bed: TestBed::new(),
            last_seq: 0,
            last_connection: 0,
            log: BTreeMap::new(),
            clients: BTreeMap::new(),
            members: HashMap::new(),
            prev: HashMap::new(),
            changes: VecDeque::new(),
            queue: VecDeque::new(),
            delivered: BTreeMap::new(),
            lost: false,
            seen_copies: 0,
        }
    }

    fn next(&mut self) -> MsgId {
        self.last_seq += 1;
        msg(self.last_seq)
    }

    pub(super) fn step(&mut self, op: Op) {
        match op {
            Op::Enter { user, room } => self.enter(user, room),
            Op::LearnMembers => self.learn_members(),
            Op::Say { room, from } => self.say(room, from),
            Op::SayDirect { to } => self.say_direct(to),
            Op::Deliver { nth } => self.deliver(nth),
            Op::Lose => self.lost = true,
            Op::Acknowledge { connection, count } => self.acknowledge(connection, count),
            Op::Refuse { connection } => {
                self.bed.closing.extend(self.pick(connection).map(conn));
            }
            Op::Leave { connection } => {
                self.pick(connection).into_iter().for_each(|connection| self.leave(connection));
            }
            Op::Pass { millis } => self.pass(Duration::from_millis(millis)),
            Op::Read { fails } => self.read(fails),
            Op::Record => self.record(),
            Op::FinishReassigning => self.bed.finish_reassigning(),
            Op::Reconnect => self.bed.apply(Input::Reconnected),
        }
        let new = &self.bed.copies[self.seen_copies..];
        for copy in new {
            if let Some(client) = self.clients.get_mut(&copy.to.0.get()) {
                client.unacknowledged.push_back(copy.msg_id);
            }
        }
        self.seen_copies = self.bed.copies.len();
    }

    pub(super) fn pick(&self, nth: usize) -> Option<u64> {
        self.clients.keys().nth(nth).copied()
    }

    fn enter(&mut self, number: u64, room_number: u64) {
        self.last_connection += 1;
        let id = self.last_connection;
        let (connection, user) = (conn(id), user(number));
        let room_id = Some(room(room_number).1);
        self.bed.apply(Input::Entered { connection, app: app(), user, room: room_id });
        let joined = self.next();
        let members = self.members.entry(room_number).or_default();
        if members.is_empty() {
            self.prev.insert(room_number, joined);
        }
        members.insert(id);
        let change = MemberChange::Joined { connection, user, resumed: false };
        self.changes.push_back((room_number, joined, change));
        let client = Client {
            user: number,
            room: room_number,
            joined,
            unacknowledged: VecDeque::new(),
            direct_prev: None,
        };
        self.clients.insert(id, client);
    }

    pub(super) fn leave(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else { return };
        self.bed.apply(Input::Left { connection: conn(id) });
        let left = self.next();
        if let Some(members) = self.members.get_mut(&client.room) {
            members.remove(&id);
        }
        let (connection, user) = (conn(id), user(client.user));
        let change = MemberChange::Left { connection, user, last_seen: None };
        self.changes.push_back((client.room, left, change));
    }

    fn learn_members(&mut self) {
        if let Some((number, position, change)) = self.changes.pop_front() {
            let room = room(number);
            self.bed.apply(Input::MembersChanged { room, position, changes: vec![change] });
        }
    }

    fn say(&mut self, number: u64, from: u64) {
        let msg_id = self.next();
        self.log.insert(msg_id, Stored { room: Some(number), user: from });
        if self.members.get(&number).is_none_or(BTreeSet::is_empty) {
            return;
        }
        let prev = self.prev.insert(number, msg_id).unwrap();
        let (app, room) = room(number);
        self.publish(Envelope::Room {
            app,
            room,
            msg_id,
            prev,
            from: (from > 0).then(|| user(from)),
            biz_code: 5555,
            data: "{}".into(),
            at_ms: Some(1),
        });
    }

    fn say_direct(&mut self, to: u64) {
        let msg_id = self.next();
        self.log.insert(msg_id, Stored { room: None, user: to });
        let here = self.clients.iter_mut().filter(|(_, client)| client.user == to);
        let targets = here.map(|(id, client)| DirectTarget {
            connection: conn(*id),
            prev: client.direct_prev.replace(msg_id),
        });
        let targets: Vec<DirectTarget> = targets.collect();
        if !targets.is_empty() {
            self.publish(Envelope::Direct {
                app: app(),
                user: user(to),
                msg_id,
                biz_code: 5555,
                data: "{}".into(),
                to: targets,
                at_ms: Some(1),
            });
        }
    }

    fn publish(&mut self, envelope: Envelope) {
        if !std::mem::take(&mut self.lost) {
            let position = QueuePosition(self.last_seq);
            self.queue.push_back((position, envelope));
        }
    }

    fn deliver(&mut self, nth: usize) {
        if let Some((position, envelope)) = self.queue.remove(nth.min(self.queue.len())) {
            self.delivered.insert(position, (self.bed.now, envelope.clone()));
            self.bed.apply(Input::Envelope { position, envelope });
        }
    }

    fn acknowledge(&mut self, nth: usize, count: usize) {
        let Some(id) = self.pick(nth) else { return };
        let Some(client) = self.clients.get_mut(&id) else { return };
        let count = count.min(client.unacknowledged.len());
        let mut acks = client.unacknowledged.drain(..count).collect();
        if let Some(acks) = AckBatch::take_from(&mut acks) {
            self.bed.apply(Input::Acknowledged { connection: conn(id), acks });
        }
    }

    fn pass(&mut self, time: Duration) {
        self.bed.pass(time);
        let now = self.bed.now;
        for (position, (at, envelope)) in &mut self.delivered {
            if now - *at >= ACK_WAIT {
                *at = now;
                let (position, envelope) = (*position, envelope.clone());
                self.bed.apply(Input::Envelope { position, envelope });
            }
        }
        self.forget_acknowledged();
    }

    fn record(&mut self) {
        for position in &self.bed.resolved {
            assert!(self.delivered.contains_key(position), "recorded before: {position:?}");
        }
        self.bed.record();
        self.forget_acknowledged();
    }

    fn forget_acknowledged(&mut self) {
        for position in self.bed.acknowledged.drain(..) {
            self.delivered.remove(&position);
        }
    }

    fn read(&mut self, fails: bool) {
        for (room, after, until) in std::mem::take(&mut self.bed.room_reads) {
            self.bed.apply(if fails {
                Input::RoomReadFailed { room }
            } else {
                let found = self.logged(Some(room), after, until);
                Input::RoomRead { room, until, found }
            });
        }
        for (connection, after, until) in std::mem::take(&mut self.bed.direct_reads) {
            let client = self.clients.get(&connection.0.get());
            let Some(user) = client.map(|client| client.user) else { continue };
            self.bed.apply(if fails {
                Input::DirectReadFailed { connection }
            } else {
                let mut found = self.logged(None, MsgId::at(after), until);
                found.retain(|found| self.log[&found.msg_id].user == user);
                Input::DirectRead { connection, until, found }
            });
        }
        for (room, after) in std::mem::take(&mut self.bed.compared) {
            let until = msg(self.last_seq);
            let found = self.logged(Some(room), after, until);
            if let Some(until) = found.last().map(|last| last.msg_id) {
                self.bed.apply(Input::RoomRead { room, until, found });
            }
        }
    }

    fn logged(&self, of: Option<RoomKey>, after: MsgId, until: MsgId) -> Vec<LoggedMessage> {
        let here = self.log.iter().filter(|(msg_id, stored)| {
            after < **msg_id && **msg_id <= until && stored.room.map(room) == of
        });
        let logged = |(msg_id, stored): (&MsgId, &Stored)| LoggedMessage {
            msg_id: *msg_id,
            from: (of.is_some() && stored.user > 0).then(|| user(stored.user)),
            biz_code: 5555,
            data: "{}".into(),
            at_ms: 1,
        };
        here.map(logged).collect()
    }

    /// Lets everything come that is on its way, without an acknowledgement.
    pub(super) fn settle(&mut self) {
        while !self.changes.is_empty() {
            self.step(Op::LearnMembers);
        }
        while !self.queue.is_empty() {
            self.step(Op::Deliver { nth: 0 });
        }
        // Before the first retry: gaps are closed, and lost tails are found.
        self.step(Op::Reconnect);
        for _ in 0..24 {
            self.step(Op::Read { fails: false });
            self.step(Op::Pass { millis: 250 });
        }
        self.step(Op::Read { fails: false });
    }
}
