//! The inputs of the delivery core: everything that may change its state.

use std::{slice, sync::Arc};

use qiyu_schema::{AppId, ConnId, MsgId, RoomId, UserId, envelope::Envelope, event::MemberChange};

use super::{
    action::{Attempt, Timer},
    ids::{DeliveryId, QueuePosition, RoomKey},
};
use crate::frame::EncodedMessage;

/// One input of the core.
#[derive(Debug)]
pub(crate) enum Input {
    /// A connection has logged in. If it enters a room, the room's messages are
    /// held for it until its join is known.
    Entered {
        connection: ConnId,
        app: AppId,
        user: UserId,
        room: Option<RoomId>,
    },
    /// A connection has ended. Its acknowledgements were applied before.
    Left {
        connection: ConnId,
    },
    /// The missed messages of a resumed connection were written behind its welcome.
    Resumed {
        connection: ConnId,
        room: RoomId,
        missed: Vec<MissedMessage>,
    },
    /// A connection acknowledged messages.
    Acknowledged {
        connection: ConnId,
        acks: AckBatch,
    },
    /// Closing connections did not take a copy.
    Refused {
        delivery: DeliveryId,
        attempt: Attempt,
        connections: Vec<ConnId>,
    },
    /// The queue delivered an envelope, for the first time or again.
    Envelope {
        position: QueuePosition,
        envelope: Envelope,
    },
    /// The queue delivered an envelope that the core knows already.
    Redelivered {
        position: QueuePosition,
    },
    /// The log has joins and leaves of this gateway's connections.
    MembersChanged {
        room: RoomKey,
        position: MsgId,
        changes: Vec<MemberChange>,
    },
    /// A room is about to be closed and takes no messages any more.
    RoomEnding {
        room: RoomKey,
    },
    /// The log was read for a gap of a room, up to `until`.
    RoomRead {
        room: RoomKey,
        until: MsgId,
        found: Vec<LoggedMessage>,
    },
    RoomReadFailed {
        room: RoomKey,
    },
    /// The log has the end of a room, and its envelope may be lost.
    RoomClosedInLog {
        room: RoomKey,
        position: MsgId,
    },
    /// The log was read for a gap in the direct messages of a connection.
    DirectRead {
        connection: ConnId,
        until: MsgId,
        found: Vec<LoggedMessage>,
    },
    DirectReadFailed {
        connection: ConnId,
    },
    /// NATS is connected again.
    Reconnected,
    TimerFired(Timer),
    /// A regular look at deadlines.
    Tick,
    /// The ledger holds the outcomes of these envelopes, which are acknowledged.
    OutcomesRecorded {
        positions: Vec<QueuePosition>,
    },
    /// The log was told of unacknowledged messages: deliveries with their number of users.
    Reassigned {
        deliveries: Vec<(DeliveryId, usize)>,
    },
    /// The gateway is about to end: unacknowledged messages of closed connections
    /// are reassigned, also to users that are not back yet.
    ReassignAll,
    /// A notice for the members of a room, which may be lost.
    Notice {
        room: RoomKey,
        message: Arc<EncodedMessage>,
    },
}

/// A message that a resumed connection missed.
#[derive(Clone, Debug)]
pub(crate) struct MissedMessage {
    pub(crate) msg_id: MsgId,
    pub(crate) message: Arc<EncodedMessage>,
}

/// A message as it was read from the log.
#[derive(Clone, Debug)]
pub(crate) struct LoggedMessage {
    pub(super) msg_id: MsgId,
    /// The sender, which gets no copy. `None`: the system.
    pub(super) from: Option<UserId>,
    pub(super) biz_code: i32,
    pub(super) data: String,
    /// When it was accepted, ms since 1970.
    pub(super) at_ms: u64,
}

/// The acknowledgements of one read of a socket. One alone, which is the common
/// case, needs no allocation.
#[derive(Clone, Debug)]
pub(crate) enum AckBatch {
    One(MsgId),
    Many(Vec<MsgId>),
}

impl AckBatch {
    /// Takes all of `acks`. `None`: there are none.
    pub(super) fn take_from(acks: &mut Vec<MsgId>) -> Option<Self> {
        match acks[..] {
            [] => None,
            [one] => {
                acks.clear();
                Some(Self::One(one))
            }
            _ => Some(Self::Many(std::mem::take(acks))),
        }
    }

    pub(super) fn as_slice(&self) -> &[MsgId] {
        match self {
            Self::One(msg_id) => slice::from_ref(msg_id),
            Self::Many(msg_ids) => msg_ids,
        }
    }
}
