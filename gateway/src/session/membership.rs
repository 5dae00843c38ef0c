//! Appending joins, leaves and sessions to the log: one append in flight per
//! partition, while the next batch collects.
//!
//! There is no timer. A single change waits for nothing; under load, a batch
//! holds the changes that arrived during one round trip. One writer per
//! partition also means that a leave never overtakes its join.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use qiyu_nats::{
    Bus, chain,
    log::{APPEND_DEADLINE, AppendCondition, AppendError},
};
use qiyu_schema::{
    AppId, Incarnation, MsgId, Partition, RoomId, UserId,
    event::{Event, MemberChange, Record, SessionChange},
    subject::{self, RoomKind},
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::delivery::DeliveryHandle;

/// Changes in one append at most: about 40 bytes each, far below the limit of
/// the log.
const BATCH_CHANGES_MAX: usize = 1000;

/// Appends the members and sessions of one gateway incarnation to the log.
#[derive(Clone)]
pub(crate) struct MembershipWriter(Arc<WriterInner>);

struct WriterInner {
    bus: Bus,
    gateway: Incarnation,
    delivery: DeliveryHandle,
    tasks: TaskTracker,
    partitions: Vec<Mutex<PartitionQueue>>,
}

/// The batches of one partition that are not appended yet.
#[derive(Default)]
struct PartitionQueue {
    batches: VecDeque<Batch>,
    writing: bool,
    /// The number of the last batch taken, which makes its deduplication key unique.
    last_number: u64,
}

/// Changes that are appended as one event.
struct Batch {
    key: BatchKey,
    changes: Vec<(Change, oneshot::Sender<MsgId>)>,
}

/// The subject of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchKey {
    Room(AppId, RoomId),
    Sessions(AppId),
}

enum Change {
    Member(MemberChange),
    Session(SessionChange),
}

impl PartitionQueue {
    /// Adds a change to the newest batch of its key, or to a new one if there
    /// is none or it is full. Returns whether the caller has to start writing.
    fn push(&mut self, key: BatchKey, change: Change, appended: oneshot::Sender<MsgId>) -> bool {
        let newest = self.batches.iter_mut().rev().find(|batch| batch.key == key);
        match newest.filter(|batch| batch.changes.len() < BATCH_CHANGES_MAX) {
            Some(batch) => batch.changes.push((change, appended)),
            None => self.batches.push_back(Batch { key, changes: vec![(change, appended)] }),
        }
        !std::mem::replace(&mut self.writing, true)
    }

    /// Takes the oldest batch with its number. `None`: there is none, and the
    /// caller has to stop writing.
    fn pop(&mut self) -> Option<(Batch, u64)> {
        let Some(batch) = self.batches.pop_front() else {
            self.writing = false;
            return None;
        };
        self.last_number += 1;
        Some((batch, self.last_number))
    }
}

impl MembershipWriter {
    pub(crate) fn new(
        bus: Bus,
        gateway: Incarnation,
        delivery: DeliveryHandle,
        tasks: TaskTracker,
    ) -> Self {
        let partitions = Partition::all().map(|_| Mutex::default()).collect();
        Self(Arc::new(WriterInner { bus, gateway, delivery, tasks, partitions }))
    }

    /// Appends the join or the leave of a connection. The receiver gets the
    /// event's position; it is dropped only when the incarnation ends.
    pub(crate) fn change_member(
        &self,
        app: AppId,
        room: RoomId,
        change: MemberChange,
    ) -> oneshot::Receiver<MsgId> {
        let partition = Partition::of_room(app, room);
        self.submit(partition, BatchKey::Room(app, room), Change::Member(change))
    }

    /// Appends the begin or the end of a session of `user`, or the messages it read.
    pub(crate) fn change_session(
        &self,
        app: AppId,
        user: UserId,
        change: SessionChange,
    ) -> oneshot::Receiver<MsgId> {
        let partition = Partition::of_user(app, user);
        self.submit(partition, BatchKey::Sessions(app), Change::Session(change))
    }

    fn submit(
        &self,
        partition: Partition,
        key: BatchKey,
        change: Change,
    ) -> oneshot::Receiver<MsgId> {
        let (appended, position) = oneshot::channel();
        let mut queue = self.0.partitions[partition.index()].lock();
        if queue.push(key, change, appended) {
            self.0.tasks.spawn(self.clone().write_batches(partition));
        }
        position
    }

    /// Appends batch after batch until none is left.
    async fn write_batches(self, partition: Partition) {
        loop {
            let next = self.0.partitions[partition.index()].lock().pop();
            let Some((batch, number)) = next else { return };
            self.write_batch(partition, batch, number).await;
        }
    }

    async fn write_batch(&self, partition: Partition, batch: Batch, number: u64) {
        let gateway = self.0.gateway.clone();
        let key = format!("mem:{gateway}:{partition}:{number}");
        let (mut members, mut sessions, mut submitters) = (Vec::new(), Vec::new(), Vec::new());
        for (change, appended) in batch.changes {
            match change {
                Change::Member(change) => members.push(change),
                Change::Session(change) => sessions.push(change),
            }
            submitters.push(appended);
        }
        let (subject, event) = match batch.key {
            BatchKey::Room(app, room) => (
                subject::room(app, room, RoomKind::Members),
                Event::MembersChanged { app, room, gateway, changes: members.clone() },
            ),
            BatchKey::Sessions(app) => (
                subject::sessions(partition, app),
                Event::SessionsChanged { app, gateway, changes: sessions },
            ),
        };
        let record = Record::at(qiyu_nats::now_ms(), event);
        let Some(position) = self.append(subject, &record, &key).await else { return };
        if let BatchKey::Room(app, room) = batch.key {
            self.0.delivery.change_members(app, room, position, members).await;
        }
        for submitter in submitters {
            submitter.send(position).ok(); // the submitter no longer waits
        }
    }

    /// Appends until it is stored: a lost leave would leave a member behind for
    /// ever, and the join of a login that timed out is followed by its leave.
    async fn append(&self, subject: String, record: &Record, key: &str) -> Option<MsgId> {
        loop {
            let bus = &self.0.bus;
            let appended = bus
                .append(subject.clone(), record, key, AppendCondition::Any, APPEND_DEADLINE)
                .await;
            match appended {
                Ok(msg_id) => return Some(msg_id),
                Err(error @ AppendError::Unconfirmed { .. }) => {
                    warn!(%subject, error = %chain(&error), "membership event not stored yet, trying again");
                    if self.0.tasks.is_closed() && self.0.delivery.is_closed() {
                        return None; // the incarnation has ended; `gone` covers the rest
                    }
                }
                Err(error) => {
                    error!(%subject, error = %chain(&error), "membership event refused by the log");
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use qiyu_schema::ConnId;

    use super::*;

    fn push(queue: &mut PartitionQueue, key: BatchKey, number: u64) -> bool {
        let connection = ConnId(NonZeroU64::new(number).unwrap());
        let user = "11113".parse().unwrap();
        let change = Change::Member(MemberChange::Left { connection, user, last_seen: None });
        queue.push(key, change, oneshot::channel().0)
    }

    fn room(number: u64) -> BatchKey {
        BatchKey::Room("10001".parse().unwrap(), number.try_into().unwrap())
    }

    fn pop_sizes(queue: &mut PartitionQueue) -> Vec<(BatchKey, usize, u64)> {
        std::iter::from_fn(|| queue.pop())
            .map(|(batch, number)| (batch.key, batch.changes.len(), number))
            .collect()
    }

    #[test]
    fn changes_of_one_room_are_appended_together_and_in_order() {
        let mut queue = PartitionQueue::default();
        assert!(push(&mut queue, room(7), 1), "the first change starts the writer");
        assert!(!push(&mut queue, room(8), 2));
        assert!(!push(&mut queue, room(7), 3));
        assert_eq!(pop_sizes(&mut queue), [(room(7), 2, 1), (room(8), 1, 2)]);
        assert!(push(&mut queue, room(7), 4), "an empty queue has no writer");
    }

    #[test]
    fn a_full_batch_is_followed_by_another() {
        let mut queue = PartitionQueue::default();
        for number in 1..=BATCH_CHANGES_MAX as u64 + 2 {
            push(&mut queue, room(7), number);
        }
        let sizes = [(room(7), BATCH_CHANGES_MAX, 1), (room(7), 2, 2)];
        assert_eq!(pop_sizes(&mut queue), sizes);
    }
}
