//! The state of the delivery core. The rules are in the files beside it, one
//! topic each.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use qiyu_schema::{AppId, ConnId, MsgId, RoomId, UserId, ledger::Recipient};

use super::{
    action::{Action, Counts},
    ids::{DeliveryId, IdMap, QueuePosition, RoomKey},
    in_flight::InFlight,
    unacked::Unacked,
};
use crate::frame::{EncodedMessage, biz};

/// The delivery core: from envelopes, acknowledgements and timers to actions.
///
/// It is pure. Time comes in with every input, and everything outside is named
/// by an id, so the rules can be tested without a socket, a clock or NATS.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) retry_policy: RetryPolicy,
    pub(super) connections: IdMap<ConnId, ConnectionState>,
    pub(super) rooms: HashMap<RoomKey, Room>,
    pub(super) in_flight: IdMap<DeliveryId, InFlight>,
    /// Envelopes that were opened, recorded ones for a while too.
    pub(super) envelopes: IdMap<QueuePosition, EnvelopeState>,
    /// When to forget an envelope.
    pub(super) tombstones: VecDeque<(Instant, QueuePosition)>,
    /// When to retry deliveries that have no envelope.
    pub(super) own_clock: VecDeque<(Instant, DeliveryId)>,
    pub(super) last_delivery: u64,
    /// The time of the current input.
    pub(super) now: Instant,
    /// The actions of the current input.
    pub(super) actions: Vec<Action>,
    pub(super) counts: Counts,
}

/// How long an acknowledgement is awaited, and how many copies are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryPolicy {
    pub(crate) ack_wait: Duration,
    pub(crate) sends_max: u32,
}

/// A logged-in connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub(super) app: AppId,
    pub(super) user: UserId,
    /// The room it is in. `None`: none, or not any more.
    pub(super) room: Option<RoomId>,
    pub(super) unacked: Unacked,
    /// Messages given up in a row since the last acknowledgement.
    pub(super) missed_acks: u32,
    pub(super) direct: DirectQueue,
}

/// The direct messages of one connection, in the order of the log.
#[derive(Debug, Default)]
pub(super) struct DirectQueue {
    /// The last one sent to it.
    pub(super) last: Option<MsgId>,
    pub(super) buffered: BTreeMap<MsgId, BufferedDirect>,
    pub(super) gap_timer: GapTimer,
}

/// A direct message that waits for the one before it.
#[derive(Debug)]
pub(super) struct BufferedDirect {
    pub(super) prev: Option<MsgId>,
    pub(super) delivery: DeliveryId,
}

/// A room as far as this gateway has to do with it.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Everything up to here is delivered. `None`: the log has no join of ours yet.
    pub(super) last: Option<MsgId>,
    /// The newest message that was ever delivered, whichever join it followed.
    pub(super) newest: Option<MsgId>,
    pub(super) members: IdMap<ConnId, Member>,
    /// The members as the log has them. When the last one leaves, fan-out
    /// forgets this gateway.
    pub(super) confirmed: HashSet<ConnId>,
    pub(super) buffered: BTreeMap<MsgId, Buffered>,
    pub(super) gap_timer: GapTimer,
    pub(super) closed: bool,
}

/// A connection in a room.
#[derive(Debug, Default)]
pub(super) struct Member {
    /// The position of its join: it gets the messages after it. `None`: not known
    /// yet, so messages are held.
    pub(super) joined: Option<MsgId>,
    /// Deliveries that expect it, and that it gets if they are after its join.
    pub(super) held: Vec<DeliveryId>,
}

/// An envelope that waits for the one before it.
#[derive(Debug)]
pub(super) struct Buffered {
    pub(super) prev: MsgId,
    pub(super) position: QueuePosition,
    pub(super) payload: Payload,
}

/// The content of a room's envelope.
#[derive(Debug)]
pub(super) enum Payload {
    Message { from: Option<UserId>, biz_code: i32, data: String, at_ms: Option<u64> },
    Closed,
}

/// Whether a gap is being looked after: by a timer, or by a read of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum GapTimer {
    #[default]
    Idle,
    Armed,
}

/// The state of an envelope that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EnvelopeState {
    InFlight(DeliveryId),
    /// Its outcome is on the way to the ledger.
    Resolved {
        redelivered: Redelivered,
    },
    /// Its outcome is in the ledger, and it was acknowledged.
    Recorded,
}

/// Whether an envelope was delivered again while its outcome was on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redelivered {
    No,
    Yes,
}

impl Core {
    pub(crate) fn new(retry_policy: RetryPolicy, now: Instant) -> Self {
        Self {
            retry_policy,
            connections: IdMap::default(),
            rooms: HashMap::new(),
            in_flight: IdMap::default(),
            envelopes: IdMap::default(),
            tombstones: VecDeque::new(),
            own_clock: VecDeque::new(),
            last_delivery: 0,
            now,
            actions: Vec::new(),
            counts: Counts::default(),
        }
    }
}

impl ConnectionState {
    pub(super) fn recipient(&self, connection: ConnId) -> Recipient {
        Recipient { user: self.user, connection }
    }
}

impl GapTimer {
    /// Arms the timer. Returns `false` if it was armed before.
    pub(super) fn arm(&mut self) -> bool {
        std::mem::replace(self, Self::Armed) == Self::Idle
    }
}

impl Payload {
    pub(super) fn is_message(&self) -> bool {
        matches!(self, Self::Message { .. })
    }

    /// Returns the sender, which gets no copy. `None`: the system.
    pub(super) fn from(&self) -> Option<UserId> {
        match self {
            Self::Message { from, .. } => *from,
            Self::Closed => None,
        }
    }

    /// Returns when the message was accepted, if that is measured, ms since 1970.
    pub(super) fn accepted_ms(&self) -> Option<u64> {
        match self {
            Self::Message { at_ms, .. } => *at_ms,
            Self::Closed => None,
        }
    }

    pub(super) fn encode(&self, (app, room): RoomKey, msg_id: MsgId) -> Arc<EncodedMessage> {
        Arc::new(match self {
            Self::Message { biz_code, data, .. } => {
                EncodedMessage::new(app, *biz_code, data, Some(msg_id))
            }
            Self::Closed => {
                let data = format!(r#"{{"roomId":{room}}}"#);
                EncodedMessage::new(app, biz::ROOM_CLOSED, &data, Some(msg_id))
            }
        })
    }
}
