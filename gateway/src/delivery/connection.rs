//! One logged-in connection, as everybody but its socket sees it: a bounded
//! queue to write to, and what it owes.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use qiyu_schema::{ConnId, MsgId, RoomId, ledger::UnackedReason as Why};
use tokio::{sync::Notify, time::Instant};

use crate::{
    close::CloseReason,
    delivery::in_flight::{Copy, Entry, Settled},
    frame::{EncodedMessage, Reply, Transport, code},
    session::identity::ClientIdentity,
};

/// Bytes a connection may have waiting while it takes nothing. The messages are
/// shared by all that wait for them, so what is bounded is a reader's lateness.
const QUEUE_BYTES_STALLED: usize = 1024 * 1024;
/// How long it may take nothing with that much waiting.
const STALL_MAX: Duration = Duration::from_secs(1);
/// Bytes a connection may have waiting although it reads: what gathers in a
/// stall of fan-out comes at once, and a healthy reader needs a while for it.
const QUEUE_BYTES_MAX: usize = 16 * QUEUE_BYTES_STALLED;
/// Messages one connection may owe. Further ones are written, not counted on.
const UNACKED_MAX: usize = 4096;
/// Given up this often in a row, a connection is lagging: it gets what everybody
/// gets, but no envelope is held up for it, until it acknowledges something again.
const STRIKES_MAX: u32 = 3;
/// Bytes taken from the queue for one write.
const WRITE_BYTES: usize = 64 * 1024;

/// A logged-in connection.
pub(crate) struct Connection {
    pub(crate) id: ConnId,
    pub(crate) identity: ClientIdentity,
    transport: Transport,
    /// The user's id as it is spliced into every message.
    user_digits: String,
    /// The room it entered with; 0: none, or not any more.
    room: AtomicU64,
    /// The room is closed, the notice is on its way.
    room_ended: AtomicBool,
    queue: Mutex<Queue>,
    /// Wakes the socket's task.
    pub(crate) wake: Notify,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    /// Nothing is written before the welcome.
    welcomed: bool,
    closing: Option<CloseReason>,
    /// Since when the socket has taken nothing.
    stalled: Option<Instant>,
    /// What it owes, in the order it was sent.
    unacked: VecDeque<(MsgId, Arc<Entry>)>,
    strikes: u32,
}

enum Item {
    Reply(i32, Reply),
    Message(Arc<Entry>),
    /// What a resume brings has a bound of its own, so it does not count here.
    Missed(Arc<Entry>),
    Notice(Arc<EncodedMessage>),
}

impl Connection {
    pub(crate) fn new(
        id: ConnId,
        identity: ClientIdentity,
        transport: Transport,
        room: Option<RoomId>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            user_digits: identity.user.to_string(),
            identity,
            transport,
            room: AtomicU64::new(room.map_or(0, RoomId::get)),
            room_ended: AtomicBool::new(false),
            queue: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// What its client speaks.
    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// The room it is in.
    pub(crate) fn room(&self) -> Option<RoomId> {
        self.room.load(Ordering::Acquire).try_into().ok()
    }

    /// Whether the room it is in takes no messages any more.
    pub(crate) fn room_has_ended(&self) -> bool {
        self.room_ended.load(Ordering::Acquire)
    }

    /// The room is closed: nothing is taken for it any more.
    pub(crate) fn end_room(&self) {
        self.room_ended.store(true, Ordering::Release);
    }

    /// From now on it is in no room.
    pub(crate) fn detach(&self) {
        self.room.store(0, Ordering::Release);
    }

    /// The first thing it hears, then what it has missed, then what came meanwhile.
    pub(crate) fn welcome(self: &Arc<Self>, reply: Reply, missed: &[Arc<Entry>]) {
        let mut queue = self.queue.lock();
        for entry in missed.iter().rev() {
            entry.note_written(Copy::First);
            queue.unacked.push_front((entry.msg_id, Arc::clone(entry)));
            queue.items.push_front(Item::Missed(Arc::clone(entry)));
        }
        queue.items.push_front(Item::Reply(code::LOGIN, reply));
        queue.welcomed = true;
        drop(queue);
        self.wake.notify_one();
    }

    /// Queues a frame for this client alone.
    pub(crate) fn reply(&self, code: i32, reply: Reply) {
        let mut queue = self.queue.lock();
        queue.bytes += REPLY_BYTES;
        queue.items.push_back(Item::Reply(code, reply));
        self.check_bounds(&mut queue);
        drop(queue);
        self.wake.notify_one();
    }

    /// Queues what may be lost; a connection with much to read is spared it.
    pub(crate) fn notice(&self, message: &Arc<EncodedMessage>) {
        let mut queue = self.queue.lock();
        if queue.closing.is_none() && queue.bytes < QUEUE_BYTES_STALLED {
            queue.bytes += message.bytes();
            queue.items.push_back(Item::Notice(Arc::clone(message)));
            drop(queue);
            self.wake.notify_one();
        }
    }

    /// Queues the first copy of a message that [`Entry::expect`]s this connection.
    pub(crate) fn send(self: &Arc<Self>, entry: &Arc<Entry>) {
        let mut queue = self.queue.lock();
        if queue.closing.is_some() {
            drop(queue);
            return entry.leave_owing(self);
        }
        let counted_on = queue.unacked.len() < UNACKED_MAX;
        if counted_on {
            queue.unacked.push_back((entry.msg_id, Arc::clone(entry)));
        }
        self.push(&mut queue, entry, Copy::First);
        drop(queue);
        if !counted_on {
            entry.except(self, Why::Lagging);
            entry.settle(Settled::GivenUp);
        }
        self.wake.notify_one();
    }

    /// Whether it has ignored several messages in a row.
    pub(crate) fn is_lagging(&self) -> bool {
        STRIKES_MAX <= self.queue.lock().strikes
    }

    /// Queues a further copy, if it still owes.
    pub(crate) fn send_again(&self, entry: &Arc<Entry>) {
        let mut queue = self.queue.lock();
        let owes = queue.unacked.iter().any(|(_, owed)| Arc::ptr_eq(owed, entry));
        if owes && queue.closing.is_none() {
            self.push(&mut queue, entry, Copy::Again);
            drop(queue);
            self.wake.notify_one();
        }
    }

    /// Expects nothing of it any more; `false` if it owed nothing.
    pub(crate) fn give_up(&self, entry: &Arc<Entry>) -> bool {
        let mut queue = self.queue.lock();
        let owed = queue.unacked.iter().position(|(_, owed)| Arc::ptr_eq(owed, entry));
        let Some(index) = owed else { return false };
        queue.unacked.remove(index);
        queue.strikes += 1;
        true
    }

    /// It has acknowledged a message. Returns what that settled: nothing if it owed nothing.
    pub(crate) fn acknowledge(&self, msg_id: MsgId) -> Option<Arc<Entry>> {
        let mut queue = self.queue.lock();
        queue.strikes = 0;
        // Acknowledgements come in order, mostly: the search ends at once.
        let index = queue.unacked.iter().position(|(owed, _)| *owed == msg_id)?;
        let (_, entry) = queue.unacked.remove(index)?;
        drop(queue);
        entry.acknowledged_by(self.id);
        Some(entry)
    }

    /// Brings it to an end, after what is queued. Only the first reason counts.
    pub(crate) fn close(&self, close: CloseReason) {
        let mut queue = self.queue.lock();
        if queue.closing.is_none() {
            if let Some(farewell) = close.farewell() {
                let reply = Reply::to(self.identity.app, self.identity.user, farewell);
                queue.items.push_back(Item::Reply(code::LOGOUT, reply));
            }
            queue.closing = Some(close);
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// Why it is about to end, if it is.
    pub(crate) fn closing(&self) -> Option<CloseReason> {
        self.queue.lock().closing.clone()
    }

    /// The socket is gone: what it owed is its user's now.
    pub(crate) fn abandon(&self) {
        let owed = {
            let mut queue = self.queue.lock();
            queue.closing.get_or_insert(CloseReason::Disconnected);
            queue.items.clear();
            queue.bytes = 0;
            std::mem::take(&mut queue.unacked)
        };
        for (_, entry) in owed {
            entry.leave_owing(self);
        }
    }

    /// The socket takes nothing since then; `None`: it does.
    pub(crate) fn note_stall(&self, since: Option<Instant>) {
        self.queue.lock().stalled = since;
    }

    /// Bytes waiting for it.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    /// Moves what is queued to `out`, up to a good write's worth. Of messages
    /// that are measured here, `accepted_ms` gets when they were accepted.
    pub(crate) fn drain_into(&self, out: &mut BytesMut, accepted_ms: &mut Vec<u64>) {
        let mut queue = self.queue.lock();
        if !queue.welcomed {
            // A refusal before the welcome has nothing queued before it but its farewell.
            if queue.closing.is_none() {
                return;
            }
            queue.items.retain(|item| matches!(item, Item::Reply(..)));
        }
        while out.len() < WRITE_BYTES
            && let Some(item) = queue.items.pop_front()
        {
            queue.bytes = queue.bytes.saturating_sub(item.bytes());
            match item {
                Item::Reply(code, reply) => self.transport.write_reply(out, code, &reply),
                Item::Message(entry) | Item::Missed(entry) => {
                    accepted_ms.extend(entry.first_written_to(self.id));
                    self.transport.write_message(out, &entry.message, &self.user_digits);
                }
                Item::Notice(message) => {
                    self.transport.write_message(out, &message, &self.user_digits)
                }
            }
        }
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_drained(&self) -> bool {
        let queue = self.queue.lock();
        queue.items.is_empty()
    }

    fn push(&self, queue: &mut Queue, entry: &Arc<Entry>, copy: Copy) {
        queue.bytes += entry.message.bytes();
        queue.items.push_back(Item::Message(Arc::clone(entry)));
        entry.note_written(copy);
        self.check_bounds(queue);
    }

    fn check_bounds(&self, queue: &mut Queue) {
        let stalled = queue.stalled.is_some_and(|since| STALL_MAX <= since.elapsed());
        let allowed = if stalled { QUEUE_BYTES_STALLED } else { QUEUE_BYTES_MAX };
        if allowed < queue.bytes && queue.closing.is_none() {
            // It will not read what is queued: nothing of it is kept.
            queue.items.clear();
            queue.bytes = 0;
            queue.closing = Some(CloseReason::SlowReader);
        }
    }
}

/// About what a reply holds.
const REPLY_BYTES: usize = 256;

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Reply(..) => REPLY_BYTES,
            Self::Message(entry) => entry.message.bytes(),
            Self::Missed(_) => 0,
            Self::Notice(message) => message.bytes(),
        }
    }
}
