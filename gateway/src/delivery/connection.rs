//! A logged-in connection as the rest of the gateway sees it: its identity and a
//! bounded output queue.

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
use qiyu_schema::{ConnId, RoomId};
use tokio::{sync::Notify, time::Instant};

use super::input::MissedMessage;
use crate::{
    close::CloseReason,
    frame::{EncodedMessage, Reply, Transport, code},
    session::identity::ClientIdentity,
};

/// Bytes that may be queued for a connection while its socket takes nothing.
/// Messages are shared by their recipients, so this bounds how late a reader may be.
const QUEUE_BYTES_STALLED_MAX: usize = 1024 * 1024;
/// How long a socket may take nothing with that much queued.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that may be queued for a connection that reads: the messages that gather
/// while fan-out stalls come at once, and a healthy reader needs a while for them.
const QUEUE_BYTES_MAX: usize = 16 * QUEUE_BYTES_STALLED_MAX;
/// Bytes taken from the queue for one write.
const WRITE_BYTES: usize = 64 * 1024;
/// The approximate size of a reply.
const REPLY_BYTES: usize = 256;

/// A logged-in connection.
///
/// The delivery task puts messages on the queue, the connection's own task puts
/// replies on it and drains it. The room is written by the delivery task alone.
pub(crate) struct Connection {
    pub(crate) id: ConnId,
    pub(crate) identity: ClientIdentity,
    transport: Transport,
    /// The user's id as it is spliced into every message.
    user_digits: String,
    /// The room that it entered with its login. 0: none, or not any more.
    room: AtomicU64,
    /// The room is closed, and the notice of it is on its way.
    room_ended: AtomicBool,
    output: Mutex<OutputQueue>,
    /// Wakes the socket's task.
    pub(crate) wake: Notify,
}

/// The connection is closing and takes no message any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closing;

#[derive(Default)]
struct OutputQueue {
    items: VecDeque<Output>,
    bytes: usize,
    /// Nothing is written before the welcome.
    welcomed: bool,
    closing: Option<CloseReason>,
    /// Since when the socket has taken nothing.
    stalled_since: Option<Instant>,
}

enum Output {
    Reply(i32, Box<Reply>),
    Message {
        message: Arc<EncodedMessage>,
        /// When it was accepted, ms since 1970, if it is measured at this connection.
        accepted_ms: Option<u64>,
    },
    /// A message of a resume. These have a limit of their own, so they do not count here.
    Missed(Arc<EncodedMessage>),
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
            output: Mutex::default(),
            wake: Notify::new(),
        })
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns the room that it is in.
    pub(crate) fn room(&self) -> Option<RoomId> {
        self.room.load(Ordering::Acquire).try_into().ok()
    }

    /// Returns whether the room that it is in takes no messages any more.
    pub(crate) fn room_has_ended(&self) -> bool {
        self.room_ended.load(Ordering::Acquire)
    }

    /// Notes that its room takes no messages any more.
    pub(super) fn end_room(&self) {
        self.room_ended.store(true, Ordering::Release);
    }

    /// Takes it out of its room.
    pub(super) fn detach_from_room(&self) {
        self.room.store(0, Ordering::Release);
    }

    /// Queues the welcome and the missed messages in front of the messages that
    /// came meanwhile, and lets all of them be written.
    pub(crate) fn welcome(&self, reply: Reply, missed: &[MissedMessage]) {
        let mut output = self.output.lock();
        for MissedMessage { message, .. } in missed.iter().rev() {
            output.items.push_front(Output::Missed(Arc::clone(message)));
        }
        output.items.push_front(Output::Reply(code::LOGIN, Box::new(reply)));
        output.welcomed = true;
        drop(output);
        self.wake.notify_one();
    }

    /// Queues a frame for this client alone.
    pub(crate) fn reply(&self, code: i32, reply: Reply) {
        let mut output = self.output.lock();
        output.push(Output::Reply(code, Box::new(reply)));
        drop(output);
        self.wake.notify_one();
    }

    /// Queues a notice, which may be lost: a connection with much to read does
    /// not get it.
    pub(crate) fn notice(&self, message: &Arc<EncodedMessage>) {
        let mut output = self.output.lock();
        if output.closing.is_none() && output.bytes < QUEUE_BYTES_STALLED_MAX {
            output.bytes += message.bytes();
            let message = Arc::clone(message);
            output.items.push_back(Output::Message { message, accepted_ms: None });
            drop(output);
            self.wake.notify_one();
        }
    }

    /// Queues a copy of a message. `accepted_ms` is given if its time is measured here.
    pub(super) fn send(
        &self,
        message: &Arc<EncodedMessage>,
        accepted_ms: Option<u64>,
    ) -> Result<(), Closing> {
        let mut output = self.output.lock();
        if output.closing.is_some() {
            return Err(Closing);
        }
        output.push(Output::Message { message: Arc::clone(message), accepted_ms });
        drop(output);
        self.wake.notify_one();
        Ok(())
    }

    /// Closes the connection after the queued output. Only the first reason counts.
    pub(crate) fn close(&self, reason: CloseReason) {
        let mut output = self.output.lock();
        if output.closing.is_none() {
            if let Some(farewell) = reason.farewell() {
                let reply = Reply::to(self.identity.app, self.identity.user, farewell);
                output.items.push_back(Output::Reply(code::LOGOUT, Box::new(reply)));
            }
            output.closing = Some(reason);
        }
        drop(output);
        self.wake.notify_one();
    }

    /// Returns why it is closing, if it is.
    pub(crate) fn closing(&self) -> Option<CloseReason> {
        self.output.lock().closing.clone()
    }

    /// Drops the queued output after the socket has gone. From here on it takes
    /// no message.
    pub(crate) fn abandon(&self) {
        let mut output = self.output.lock();
        output.closing.get_or_insert(CloseReason::Disconnected);
        output.clear();
    }

    /// Notes since when the socket takes nothing. `None`: it takes output.
    pub(crate) fn note_stall(&self, since: Option<Instant>) {
        self.output.lock().stalled_since = since;
    }

    /// Returns the bytes that are queued for it.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.output.lock().bytes
    }

    /// Moves queued output to `out`, as much as one good write takes. Appends to
    /// `accepted_ms` the times of the messages that are measured here.
    pub(crate) fn drain_into(&self, out: &mut BytesMut, accepted_ms: &mut Vec<u64>) {
        let mut output = self.output.lock();
        if !output.welcomed {
            // Before the welcome, a closing connection has its farewell to write only.
            if output.closing.is_none() {
                return;
            }
            output.items.retain(|item| matches!(item, Output::Reply(..)));
        }
        while out.len() < WRITE_BYTES
            && let Some(item) = output.items.pop_front()
        {
            output.bytes = output.bytes.saturating_sub(item.bytes());
            match item {
                Output::Reply(code, reply) => self.transport.write_reply(out, code, &reply),
                Output::Message { message, accepted_ms: measured } => {
                    accepted_ms.extend(measured);
                    self.transport.write_message(out, &message, &self.user_digits);
                }
                Output::Missed(message) => {
                    self.transport.write_message(out, &message, &self.user_digits);
                }
            }
        }
    }

    /// Returns whether no output is queued.
    pub(crate) fn is_drained(&self) -> bool {
        self.output.lock().items.is_empty()
    }
}

impl OutputQueue {
    /// Queues output. Closes the connection if it reads too slowly for it.
    fn push(&mut self, item: Output) {
        self.bytes += item.bytes();
        self.items.push_back(item);
        let stalled = self.stalled_since.is_some_and(|since| since.elapsed() >= STALL_TIMEOUT);
        let bytes_max = if stalled { QUEUE_BYTES_STALLED_MAX } else { QUEUE_BYTES_MAX };
        if self.bytes > bytes_max && self.closing.is_none() {
            // The peer will not read the queued output, so none of it is kept.
            self.clear();
            self.closing = Some(CloseReason::SlowReader);
        }
    }

    fn clear(&mut self) {
        self.items.clear();
        self.bytes = 0;
    }
}

impl Output {
    fn bytes(&self) -> usize {
        match self {
            Self::Reply(..) => REPLY_BYTES,
            Self::Message { message, .. } => message.bytes(),
            Self::Missed(_) => 0,
        }
    }
}
