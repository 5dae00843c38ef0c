//! A test bed for the core: it carries actions out into lists, and names ids by
//! small numbers.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use qiyu_schema::{
    AppId, ConnId, MsgId, RoomId, UserId,
    envelope::{DirectTarget, Envelope},
    event::MemberChange,
    ledger::Outcome,
};

use super::{
    action::{Action, Attempt, KeepForReturn, Timer, UnackedDelivery},
    ids::{QueuePosition, RoomKey},
    input::{AckBatch, Input, LoggedMessage, MissedMessage},
    state::{Core, RetryPolicy},
};
use crate::frame::EncodedMessage;

pub(super) const ACK_WAIT: Duration = Duration::from_secs(4);
pub(super) const APP: &str = "10001";

pub(super) fn app() -> AppId {
    APP.parse().unwrap()
}

pub(super) fn conn(number: u64) -> ConnId {
    ConnId(number.try_into().unwrap())
}

/// The user of a connection, unless a test says otherwise.
pub(super) fn user(number: u64) -> UserId {
    (20_000 + number).try_into().unwrap()
}

pub(super) fn room(number: u64) -> RoomKey {
    (app(), RoomId::try_from(number).unwrap())
}

pub(super) fn msg(seq: u64) -> MsgId {
    MsgId::at(seq)
}

/// A copy as a connection got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReceivedCopy {
    pub(super) to: ConnId,
    pub(super) msg_id: MsgId,
    pub(super) attempt: Attempt,
    pub(super) in_room: bool,
}

/// The core with everything that its actions led to.
pub(super) struct TestBed {
    pub(super) core: Core,
    pub(super) now: Instant,
    pub(super) copies: Vec<ReceivedCopy>,
    /// Connections that take no copy.
    pub(super) closing: HashSet<ConnId>,
    pub(super) outcomes: Vec<Outcome>,
    /// Resolved envelopes without an outcome in the ledger yet.
    pub(super) resolved: Vec<QueuePosition>,
    pub(super) acknowledged: Vec<QueuePosition>,
    pub(super) timers: Vec<(Instant, Timer)>,
    pub(super) room_reads: Vec<(RoomKey, MsgId, MsgId)>,
    pub(super) direct_reads: Vec<(ConnId, u64, MsgId)>,
    pub(super) compared: Vec<(RoomKey, MsgId)>,
    pub(super) reassigned: Vec<(UnackedDelivery, KeepForReturn)>,
    pub(super) read: Vec<(UserId, Vec<MsgId>)>,
    pub(super) ended: Vec<ConnId>,
    pub(super) detached: Vec<ConnId>,
    pub(super) noticed: Vec<ConnId>,
    pub(super) measured: usize,
    last_position: u64,
}

impl TestBed {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let retry_policy = RetryPolicy { ack_wait: ACK_WAIT, sends_max: 2 };
        Self {
            core: Core::new(retry_policy, now),
            now,
            copies: Vec::new(),
            closing: HashSet::new(),
            outcomes: Vec::new(),
            resolved: Vec::new(),
            acknowledged: Vec::new(),
            timers: Vec::new(),
            room_reads: Vec::new(),
            direct_reads: Vec::new(),
            compared: Vec::new(),
            reassigned: Vec::new(),
            read: Vec::new(),
            ended: Vec::new(),
            detached: Vec::new(),
            noticed: Vec::new(),
            measured: 0,
            last_position: 0,
        }
    }

    /// A test bed with these connections in room 7, which joined at position 1.
    pub(super) fn with_members(numbers: impl IntoIterator<Item = u64>) -> Self {
        let mut bed = Self::new();
        let numbers: Vec<u64> = numbers.into_iter().collect();
        numbers.iter().for_each(|number| bed.enter(*number));
        bed.join(1, &numbers);
        bed
    }

    pub(super) fn apply(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut actions = Vec::new();
            self.core.apply(self.now, input, &mut actions);
            inputs.extend(actions.into_iter().filter_map(|action| self.carry_out(action)));
        }
    }

    fn carry_out(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Send { delivery, attempt, room, msg_id, to, .. } => {
                let (refused, sent): (Vec<_>, Vec<_>) =
                    to.into_iter().partition(|to| self.closing.contains(to));
                let in_room = room.is_some();
                let copy = |to| ReceivedCopy { to, msg_id, attempt, in_room };
                self.copies.extend(sent.into_iter().map(copy));
                let connections = refused;
                return (!connections.is_empty()).then_some(Input::Refused {
                    delivery,
                    attempt,
                    connections,
                });
            }
            Action::Notify { to, .. } => self.noticed.extend(to),
            Action::EndRoom { connections } => self.ended.extend(connections),
            Action::DetachFromRoom { connections } => self.detached.extend(connections),
            Action::AwaitAcks(_) => {}
            Action::RecordOutcome { outcome, position } => {
                self.outcomes.push(outcome);
                self.resolved.extend(position);
            }
            Action::AcknowledgeEnvelope(position) => self.acknowledged.push(position),
            Action::MarkRead { user, msg_ids, .. } => self.read.push((user, msg_ids)),
            Action::ObserveAcknowledgement { .. } => self.measured += 1,
            Action::ReadRoom { room, after, until } => self.room_reads.push((room, after, until)),
            Action::ReadDirect { connection, after, until, .. } => {
                self.direct_reads.push((connection, after, until));
            }
            Action::CompareRooms(rooms) => self.compared.extend(rooms),
            Action::ArmTimer { after, timer } => self.timers.push((self.now + after, timer)),
            Action::Reassign { unacked, keep } => {
                self.reassigned.extend(unacked.into_iter().map(|unacked| (unacked, keep)));
            }
        }
        None
    }

    // === inputs ===

    /// Lets a connection enter room 7.
    pub(super) fn enter(&mut self, number: u64) {
        let room = Some(room(7).1);
        self.apply(Input::Entered {
            connection: conn(number),
            app: app(),
            user: user(number),
            room,
        });
    }

    /// Lets a connection log in without a room.
    pub(super) fn log_in(&mut self, number: u64) {
        let (connection, user) = (conn(number), user(number));
        self.apply(Input::Entered { connection, app: app(), user, room: None });
    }

    /// Lets the log have joins to room 7 at a position.
    pub(super) fn join(&mut self, seq: u64, numbers: &[u64]) {
        let joined = |number: &u64| MemberChange::Joined {
            connection: conn(*number),
            user: user(*number),
            resumed: false,
        };
        let changes = numbers.iter().map(joined).collect();
        self.apply(Input::MembersChanged { room: room(7), position: msg(seq), changes });
    }

    /// Ends a connection, and lets the log have its leave of room 7.
    pub(super) fn leave(&mut self, seq: u64, number: u64) {
        let (connection, user) = (conn(number), user(number));
        self.apply(Input::Left { connection });
        let changes = vec![MemberChange::Left { connection, user, last_seen: None }];
        self.apply(Input::MembersChanged { room: room(7), position: msg(seq), changes });
    }

    /// Delivers a new envelope.
    pub(super) fn receive(&mut self, envelope: Envelope) -> QueuePosition {
        self.last_position += 1;
        let position = QueuePosition(self.last_position);
        self.apply(Input::Envelope { position, envelope });
        position
    }

    /// Delivers the envelope of a message of the system in room 7.
    pub(super) fn receive_message(&mut self, prev: u64, seq: u64) -> QueuePosition {
        self.receive(message(prev, seq, None))
    }

    /// Lets time pass, then delivers an envelope again.
    pub(super) fn redeliver(&mut self, position: QueuePosition) {
        self.pass(ACK_WAIT);
        self.apply(Input::Redelivered { position });
    }

    pub(super) fn acknowledge(&mut self, number: u64, seqs: &[u64]) {
        let mut acks = seqs.iter().map(|seq| msg(*seq)).collect();
        if let Some(acks) = AckBatch::take_from(&mut acks) {
            self.apply(Input::Acknowledged { connection: conn(number), acks });
        }
    }

    pub(super) fn resume(&mut self, number: u64, seqs: &[u64]) {
        let missed = seqs.iter().map(|seq| MissedMessage {
            msg_id: msg(*seq),
            message: Arc::new(EncodedMessage::new(app(), 5555, "{}", Some(msg(*seq)))),
        });
        let (room, missed) = (room(7).1, missed.collect());
        self.apply(Input::Resumed { connection: conn(number), room, missed });
    }

    /// Lets time pass, and fires due timers.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        let due: Vec<Timer> =
            self.timers.extract_if(.., |(at, _)| *at <= self.now).map(|(_, timer)| timer).collect();
        due.into_iter().for_each(|timer| self.apply(Input::TimerFired(timer)));
        self.apply(Input::Tick);
    }

    /// Lets the ledger have every outcome: its envelope is acknowledged.
    pub(super) fn record(&mut self) {
        let positions = std::mem::take(&mut self.resolved);
        self.acknowledged.extend(&positions);
        self.apply(Input::OutcomesRecorded { positions });
    }

    /// Tells the log of all unacknowledged messages that are to be reassigned.
    pub(super) fn finish_reassigning(&mut self) {
        let reassigned = std::mem::take(&mut self.reassigned);
        let deliveries = reassigned.iter().map(|(u, _)| (u.delivery, u.users.len())).collect();
        self.apply(Input::Reassigned { deliveries });
    }

    // === results ===

    /// Returns the copies that a connection got, as sequences with their attempt.
    pub(super) fn copies_of(&self, number: u64) -> Vec<(u64, Attempt)> {
        let here = self.copies.iter().filter(|copy| copy.to == conn(number));
        here.map(|copy| (copy.msg_id.seq(), copy.attempt)).collect()
    }

    /// Returns the sequences of the first copies that a connection got.
    pub(super) fn first_copies_of(&self, number: u64) -> Vec<u64> {
        let copies = self.copies_of(number).into_iter();
        copies.filter(|(_, attempt)| *attempt == Attempt::First).map(|(seq, _)| seq).collect()
    }

    /// Returns resolved, written, acknowledged, resent, given up and left of the
    /// last outcome.
    pub(super) fn last_counts(&self) -> [u32; 6] {
        let o = self.outcomes.last().unwrap();
        [o.resolved, o.written, o.acknowledged, o.resent, o.given_up, o.left]
    }
}

/// The envelope of a message in room 7.
pub(super) fn message(prev: u64, seq: u64, from: Option<u64>) -> Envelope {
    let (app, room) = room(7);
    Envelope::Room {
        app,
        room,
        msg_id: msg(seq),
        prev: msg(prev),
        from: from.map(user),
        biz_code: 5555,
        data: "{}".into(),
        at_ms: Some(1),
    }
}

/// The envelope of the end of room 7.
pub(super) fn closing(prev: u64, seq: u64, late: &[u64]) -> Envelope {
    let (app, room) = room(7);
    let late = late.iter().copied().map(conn).collect();
    Envelope::RoomClosed { app, room, msg_id: msg(seq), prev: msg(prev), late }
}

/// The envelope of a direct message for connections, each with the message before it.
pub(super) fn direct(seq: u64, to: &[(u64, Option<u64>)]) -> Envelope {
    let target = |(number, prev): &(u64, Option<u64>)| DirectTarget {
        connection: conn(*number),
        prev: prev.map(msg),
    };
    Envelope::Direct {
        app: app(),
        user: user(1),
        msg_id: msg(seq),
        biz_code: 5555,
        data: "{}".into(),
        to: to.iter().map(target).collect(),
        at_ms: Some(1),
    }
}

/// A message as the log has it.
pub(super) fn logged(seq: u64) -> LoggedMessage {
    LoggedMessage { msg_id: msg(seq), from: None, biz_code: 5555, data: "{}".into(), at_ms: 1 }
}
