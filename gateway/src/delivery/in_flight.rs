//! One message on its way to the connections of this gateway: who still owes an
//! acknowledgement, and what became of the others.
//!
//! Each connection remembers what it owes, the entry counts how many do. So an
//! acknowledgement touches its own connection and one counter, and can by
//! construction never concern anybody else's copy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use qiyu_nats::{outbox::AckHandle, trace_context::Span};
use qiyu_schema::{
    AppId, ConnId, MsgId, RoomId, UserId,
    ledger::{EXCEPTIONS_MAX, Exception, Outcome, Recipient, UnackedReason, Via},
};
use tokio::{sync::mpsc, time::Instant};

use crate::{delivery::connection::Connection, frame::EncodedMessage, metrics::Metrics};

/// A message on its way.
pub(crate) struct Entry {
    pub(crate) app: AppId,
    /// `None`: a 1:1 message.
    pub(crate) room: Option<RoomId>,
    pub(crate) msg_id: MsgId,
    pub(crate) message: Arc<EncodedMessage>,
    via: Via,
    /// Connections that have not settled it, and one for the hand that is still adding some.
    owing: AtomicU32,
    resolved: AtomicU32,
    written: AtomicU32,
    acknowledged: AtomicU32,
    resent: AtomicU32,
    given_up: AtomicU32,
    left: AtomicU32,
    slow_path: Mutex<SlowPath>,
    recorded: AtomicBool,
    sample: Option<Sample>,
    /// The connection whose times are measured; 0: none yet.
    sampled: AtomicU64,
    sample_written: AtomicBool,
    desk: Desk,
}

/// How long an acknowledgement is waited for, and how many copies are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) ack_wait: Duration,
    pub(crate) sends_max: u32,
}

/// Where it is told what became of a message.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) settled: mpsc::UnboundedSender<Arc<Entry>>,
    pub(crate) metrics: Metrics,
}

/// How a message is measured: at one of its recipients, because a look at the
/// clock for each would cost a crowded room as much as the message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// When it was accepted, ms since 1970.
    accepted_ms: u64,
    /// At which of its recipients, from 0.
    nth: u32,
}

impl Sample {
    /// One of `audience`, a different one for each message, so that what is
    /// measured is how recipients fare, not how the first one does.
    pub(crate) fn of(accepted_ms: u64, msg_id: MsgId, audience: usize) -> Self {
        // The sender may be one of them: then the last place is empty.
        let places = u64::try_from(audience).unwrap_or(1).saturating_sub(1).max(1);
        Self { accepted_ms, nth: u32::try_from(msg_id.seq() % places).unwrap_or(0) }
    }
}

/// What is only looked at when something is sent again or goes wrong.
struct SlowPath {
    recipients: Vec<Arc<Connection>>,
    exceptions: Vec<Exception>,
    /// Users whose connections ended before they acknowledged a room message.
    orphans: Vec<UserId>,
    ack: Option<AckHandle>,
    sends: u32,
    sent: Instant,
    /// What its trace says meanwhile.
    span: Span,
    /// The one connection that asked for it. `None`: it is for whoever is there.
    asked: Option<Recipient>,
    /// Those who have it beside this entry, and the names of the first of them.
    lagging: usize,
    lagging_recipients: Vec<Recipient>,
}

/// How a connection stops owing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Acknowledged,
    GivenUp,
    Left,
    /// It was never meant for this connection after all: it joined later.
    NotForIt,
}

impl Entry {
    /// An entry that stays open until [`Entry::seal`].
    pub(crate) fn open(
        app: AppId,
        room: Option<RoomId>,
        msg_id: MsgId,
        message: Arc<EncodedMessage>,
        source: Source,
        sample: Option<Sample>,
        desk: Desk,
    ) -> Arc<Self> {
        desk.metrics.envelopes_pending.inc();
        let (via, ack) = match source {
            Source::Envelope(ack) => (Via::Envelope, Some(ack)),
            Source::Repeat(ack) => (Via::Repeat, Some(ack)),
            Source::Late(ack) => (Via::Late, Some(ack)),
            Source::Log => (Via::Log, None),
            Source::Resume => (Via::Resume, None),
            Source::Lagging => (Via::Lagging, None),
        };
        let (recipients, exceptions, orphans) = (Vec::new(), Vec::new(), Vec::new());
        Arc::new(Self {
            app,
            room,
            msg_id,
            message,
            via,
            owing: AtomicU32::new(1),
            resolved: AtomicU32::new(0),
            written: AtomicU32::new(0),
            acknowledged: AtomicU32::new(0),
            resent: AtomicU32::new(0),
            given_up: AtomicU32::new(0),
            left: AtomicU32::new(0),
            slow_path: Mutex::new(SlowPath {
                recipients,
                exceptions,
                orphans,
                ack,
                sends: 1,
                sent: Instant::now(),
                span: Span::default(),
                asked: None,
                lagging: 0,
                lagging_recipients: Vec::new(),
            }),
            recorded: AtomicBool::new(false),
            sample,
            sampled: AtomicU64::new(0),
            sample_written: AtomicBool::new(false),
            desk,
        })
    }

    /// What is happening to it, as its trace says.
    pub(crate) fn set_span(&self, mut span: Span) {
        span.set_attribute("qiyu.msg_id", || self.msg_id.to_string());
        self.slow_path.lock().span = span;
    }

    /// One more connection it is for.
    pub(crate) fn expect(&self, connection: &Arc<Connection>) {
        self.owing.fetch_add(1, Ordering::Relaxed);
        let nth = self.resolved.fetch_add(1, Ordering::Relaxed);
        if self.sample.is_some_and(|sample| sample.nth == nth) {
            self.sampled.store(connection.id.0.get(), Ordering::Relaxed);
        }
        let mut slow = self.slow_path.lock();
        slow.recipients.push(Arc::clone(connection));
        if self.via == Via::Resume {
            // The fold knows who was there; who asked for it later, only we know.
            slow.asked = Some(recipient(connection));
        }
    }

    /// Sends its first copy to these, and to nobody else.
    pub(crate) fn send_to<'a>(
        self: &Arc<Self>,
        connections: impl IntoIterator<Item = &'a Arc<Connection>>,
    ) {
        for connection in connections {
            self.expect(connection);
            connection.send(self);
        }
        self.seal();
    }

    /// When it was accepted, if it is measured at this connection and this is
    /// the first copy to be written to it.
    pub(crate) fn first_written_to(&self, connection: ConnId) -> Option<u64> {
        let accepted_ms = self.accepted_ms(connection)?;
        (!self.sample_written.swap(true, Ordering::Relaxed)).then_some(accepted_ms)
    }

    /// When it was accepted, if it is measured at this connection.
    fn accepted_ms(&self, connection: ConnId) -> Option<u64> {
        let here = self.sampled.load(Ordering::Relaxed) == connection.0.get();
        self.sample.filter(|_| here).map(|sample| sample.accepted_ms)
    }

    /// The connection has acknowledged it.
    pub(crate) fn acknowledged_by(self: &Arc<Self>, connection: ConnId) {
        if let Some(accepted_ms) = self.accepted_ms(connection) {
            self.desk
                .metrics
                .acknowledgement_duration_seconds
                .observe_since(accepted_ms, qiyu_nats::now_ms());
        }
        self.settle(Settled::Acknowledged);
    }

    /// A connection has it on its queue.
    pub(crate) fn note_written(&self, copy: Copy) {
        match copy {
            Copy::First => {
                self.written.fetch_add(1, Ordering::Relaxed);
                self.desk.metrics.written.inc();
            }
            Copy::Again => {
                self.resent.fetch_add(1, Ordering::Relaxed);
                self.desk.metrics.resent.inc();
            }
        }
    }

    /// A connection owes nothing any more. The last one settles the entry.
    pub(crate) fn settle(self: &Arc<Self>, how: Settled) {
        let counter = match how {
            Settled::Acknowledged => {
                self.desk.metrics.acknowledged.inc();
                &self.acknowledged
            }
            Settled::GivenUp => {
                self.desk.metrics.given_up.inc();
                &self.given_up
            }
            Settled::Left => &self.left,
            Settled::NotForIt => {
                self.resolved.fetch_sub(1, Ordering::Relaxed);
                return self.release();
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.release();
    }

    /// Nobody will be added any more.
    pub(crate) fn seal(self: &Arc<Self>) {
        {
            let mut slow = self.slow_path.lock();
            slow.span = std::mem::take(&mut slow.span).next_span("settle");
        }
        self.release();
    }

    fn release(self: &Arc<Self>) {
        if self.owing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.slow_path.lock().recipients = Vec::new();
            // Fails only when the gateway's life is over, and with it the record.
            self.desk.settled.send(Arc::clone(self)).ok();
        }
    }

    /// Whether every connection has settled.
    pub(crate) fn is_settled(&self) -> bool {
        self.owing.load(Ordering::Acquire) == 0
    }

    /// Remembers why a connection did not acknowledge.
    pub(crate) fn except(&self, connection: &Connection, reason: UnackedReason) {
        let mut slow = self.slow_path.lock();
        if slow.exceptions.len() < EXCEPTIONS_MAX {
            let (user, connection) = (connection.identity.user, connection.id);
            slow.exceptions.push(Exception { user, connection, reason });
        }
    }

    /// A connection ended without acknowledging. A 1:1 message waits for its
    /// user anyway; of a room message the user gets a further copy where they
    /// have come back, when it is due.
    pub(crate) fn leave_owing(self: &Arc<Self>, connection: &Connection) {
        self.except(connection, UnackedReason::Left);
        if self.room.is_none() {
            return self.settle(Settled::Left);
        }
        self.slow_path.lock().orphans.push(connection.identity.user);
    }

    /// Those who left owing, and how many copies there have been; whoever takes
    /// them settles for each.
    pub(crate) fn take_orphans(&self) -> (Vec<UserId>, u32) {
        let mut slow = self.slow_path.lock();
        (std::mem::take(&mut slow.orphans), slow.sends)
    }

    /// The clock has ticked: those still owing get another copy, or are given up.
    /// A tick that comes soon after the last copies is none: while the gateway
    /// could not act, several may have queued up.
    ///
    /// Returns who left owing and may be sent one more elsewhere, and how many
    /// copies there have been; whoever takes them settles for each.
    pub(crate) fn tick(
        self: &Arc<Self>,
        terms: Terms,
        ack: Option<AckHandle>,
    ) -> (Vec<UserId>, u32) {
        let (recipients, again) = {
            let mut slow = self.slow_path.lock();
            if ack.is_some() {
                slow.ack = ack;
            }
            if slow.sent.elapsed() < terms.ack_wait / 2 {
                return (Vec::new(), slow.sends);
            }
            (slow.sent, slow.sends) = (Instant::now(), slow.sends + 1);
            let sends_max = terms.sends_max;
            (slow.recipients.clone(), slow.sends <= sends_max)
        };
        for connection in recipients {
            if again {
                connection.send_again(self);
            } else if connection.give_up(self) {
                self.except(&connection, UnackedReason::NotAcknowledged);
                self.settle(Settled::GivenUp);
            }
        }
        let (orphans, sends) = self.take_orphans();
        if again {
            return (orphans, sends - 1);
        }
        orphans.iter().for_each(|_| self.settle(Settled::Left)); // they had all they get
        (Vec::new(), sends)
    }

    /// Copies were sent before, elsewhere: there are so many fewer to come.
    pub(crate) fn sent_before(&self, sends: u32) {
        self.slow_path.lock().sends += sends;
    }

    /// These have it, too, on a clock of their own, and an outcome of their own.
    pub(crate) fn leave_apart(&self, lagging: &[Arc<Connection>]) {
        if lagging.is_empty() {
            return;
        }
        let mut slow = self.slow_path.lock();
        slow.lagging = lagging.len();
        slow.lagging_recipients = lagging.iter().take(EXCEPTIONS_MAX).map(recipient).collect();
    }

    /// How many connections its outcome names.
    pub(crate) fn names(&self) -> usize {
        let slow = self.slow_path.lock();
        slow.exceptions.len() + slow.lagging_recipients.len()
    }

    /// What acknowledges the envelope.
    pub(crate) fn ack(&self) -> Option<AckHandle> {
        self.slow_path.lock().ack.clone()
    }

    /// Takes note of a further delivery of the same envelope.
    pub(crate) fn redelivered(&self, ack: AckHandle) {
        self.slow_path.lock().ack = Some(ack);
    }

    /// Its outcome is in the ledger.
    pub(crate) fn note_recorded(&self) {
        let mut span = std::mem::take(&mut self.slow_path.lock().span);
        let read = |counter: &AtomicU32| counter.load(Ordering::Relaxed).to_string();
        span.set_attribute("qiyu.acknowledged", || read(&self.acknowledged));
        span.set_attribute("qiyu.given_up", || read(&self.given_up));
        self.recorded.store(true, Ordering::Release);
    }

    /// Whether its outcome is in the ledger.
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::Acquire)
    }

    /// Whether a connection that came back asked for it.
    pub(crate) fn is_resumed(&self) -> bool {
        self.via == Via::Resume
    }

    /// What the ledger will say of it.
    pub(crate) fn outcome(&self) -> Outcome {
        let read = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        let (exceptions, to, lagging, lagging_recipients) = {
            let slow = self.slow_path.lock();
            (slow.exceptions.clone(), slow.asked, slow.lagging, slow.lagging_recipients.clone())
        };
        Outcome {
            app: self.app,
            room: self.room,
            msg_id: self.msg_id,
            via: self.via,
            resolved: read(&self.resolved),
            written: read(&self.written),
            acknowledged: read(&self.acknowledged),
            resent: read(&self.resent),
            given_up: read(&self.given_up),
            left: read(&self.left),
            exceptions,
            to,
            lagging: u32::try_from(lagging).unwrap_or(u32::MAX),
            lagging_recipients,
        }
    }
}

fn recipient(connection: &Arc<Connection>) -> Recipient {
    Recipient { user: connection.identity.user, connection: connection.id }
}

/// Where a message came from, and so who keeps its clock.
pub(crate) enum Source {
    /// Its envelope: the queue delivers it again until this is acknowledged.
    Envelope(AckHandle),
    /// Its envelope, for connections whose users had it elsewhere before: likewise.
    Repeat(AckHandle),
    /// Its envelope, for connections that came too late to the room's end: likewise.
    Late(AckHandle),
    /// The log: the gateway's own timer sends it again.
    Log,
    /// The log, because a connection that came back asked for it: likewise.
    Resume,
    /// Its envelope, for connections it is not held up for: likewise.
    Lagging,
}

/// Which copy of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copy {
    First,
    Again,
}
