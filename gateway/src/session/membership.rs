//! Telling the log who came and went: one append in flight per partition, the
//! next batch collects meanwhile.
//!
//! No timer: alone, an entry waits for nobody. In a storm, a batch holds what
//! gathered during one round trip. One writer per partition also means that a
//! leave can never overtake its join.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use qiyu_nats::{
    Bus, chain,
    log::{APPEND_DEADLINE, AppendError, Condition},
};
use qiyu_schema::{
    AppId, Incarnation, MsgId, Partition, RoomId, UserId,
    event::{Event, MemberChange, Record, SessionChange},
    subject::{self, RoomKind},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::delivery::Order;

/// Entries in one append: some 40 bytes each, so far below what the log takes.
const BATCH_MAX: usize = 1000;

/// Writes members, sessions and readings of one gateway incarnation.
#[derive(Clone)]
pub(crate) struct Membership(Arc<Shared>);

struct Shared {
    bus: Bus,
    gateway: Incarnation,
    delivery: mpsc::Sender<Order>,
    tasks: TaskTracker,
    writers: Vec<Mutex<Writer>>,
}

#[derive(Default)]
struct Writer {
    waiting: VecDeque<Line>,
    writing: bool,
    written: u64,
}

/// What waits under one subject.
struct Line {
    key: LineKey,
    changes: Vec<(Change, Option<oneshot::Sender<MsgId>>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LineKey {
    Room(AppId, RoomId),
    Sessions(AppId),
}

enum Change {
    Member(MemberChange),
    Session(SessionChange),
}

impl Membership {
    pub(crate) fn new(
        bus: Bus,
        gateway: Incarnation,
        delivery: mpsc::Sender<Order>,
        tasks: TaskTracker,
    ) -> Self {
        let writers = Partition::all().map(|_| Mutex::default()).collect();
        Self(Arc::new(Shared { bus, gateway, delivery, tasks, writers }))
    }

    /// A connection enters or leaves a room. The receiver gets the position;
    /// it is dropped unanswered only when the gateway's life ends.
    pub(crate) fn member(
        &self,
        app: AppId,
        room: RoomId,
        change: MemberChange,
    ) -> oneshot::Receiver<MsgId> {
        let partition = Partition::of_room(app, room);
        self.submit(partition, LineKey::Room(app, room), Change::Member(change))
    }

    /// A session of `user` begins, ends or reads.
    pub(crate) fn session(
        &self,
        app: AppId,
        user: UserId,
        change: SessionChange,
    ) -> oneshot::Receiver<MsgId> {
        let partition = Partition::of_user(app, user);
        self.submit(partition, LineKey::Sessions(app), Change::Session(change))
    }

    fn submit(
        &self,
        partition: Partition,
        key: LineKey,
        change: Change,
    ) -> oneshot::Receiver<MsgId> {
        let (told, answer) = oneshot::channel();
        let mut writer = self.0.writers[partition.index()].lock();
        let has_room = |line: &&mut Line| line.key == key && line.changes.len() < BATCH_MAX;
        // From the back: an earlier line of the same key is full.
        match writer.waiting.iter_mut().rev().find(|line| line.key == key).filter(has_room) {
            Some(line) => line.changes.push((change, Some(told))),
            None => {
                let changes = vec![(change, Some(told))];
                writer.waiting.push_back(Line { key, changes });
            }
        }
        if !writer.writing {
            writer.writing = true;
            self.0.tasks.spawn(self.clone().write_out(partition));
        }
        answer
    }

    /// Appends line after line until none is left.
    async fn write_out(self, partition: Partition) {
        loop {
            let (line, number) = {
                let mut writer = self.0.writers[partition.index()].lock();
                let Some(line) = writer.waiting.pop_front() else {
                    writer.writing = false;
                    return;
                };
                writer.written += 1;
                (line, writer.written)
            };
            self.write_line(partition, line, number).await;
        }
    }

    async fn write_line(&self, partition: Partition, line: Line, number: u64) {
        let gateway = self.0.gateway.clone();
        let key = format!("mem:{gateway}:{partition}:{number}");
        let (mut members, mut sessions, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for (change, told) in line.changes {
            match change {
                Change::Member(change) => members.push(change),
                Change::Session(change) => sessions.push(change),
            }
            waiting.extend(told);
        }
        let (subject, event) = match line.key {
            LineKey::Room(app, room) => (
                subject::room(app, room, RoomKind::Members),
                Event::MembersChanged { app, room, gateway, changes: members.clone() },
            ),
            LineKey::Sessions(app) => (
                subject::sessions(partition, app),
                Event::SessionsChanged { app, gateway, changes: sessions },
            ),
        };
        let record = Record::at(qiyu_nats::now_ms(), event);
        let Some(position) = self.append(subject, &record, &key).await else { return };
        if let LineKey::Room(app, room) = line.key {
            let order = Order::Moved { app, room, position, changes: members };
            self.0.delivery.send(order).await.ok(); // gone with the gateway's life
        }
        for told in waiting {
            told.send(position).ok(); // whoever asked may have stopped waiting
        }
    }

    /// Until it is stored: a leave that is dropped is a ghost, and a join whose
    /// asker has given up is followed by its leave.
    async fn append(&self, subject: String, record: &Record, key: &str) -> Option<MsgId> {
        loop {
            let bus = &self.0.bus;
            let appended =
                bus.append(subject.clone(), record, key, Condition::Any, APPEND_DEADLINE).await;
            match appended {
                Ok(appended) => return Some(appended.msg_id),
                Err(error @ AppendError::Unconfirmed { .. }) => {
                    warn!(%subject, error = %chain(&error), "who came and went is not stored yet, trying again");
                    if self.0.tasks.is_closed() && self.0.delivery.is_closed() {
                        return None; // the gateway's life is over; its end says the rest
                    }
                }
                Err(error) => {
                    error!(%subject, error = %chain(&error), "who came and went cannot be stored");
                    return None;
                }
            }
        }
    }
}
