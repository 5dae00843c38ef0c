//! The actions of the delivery core: everything that its task carries out for it.

use std::{sync::Arc, time::Duration};

use qiyu_schema::{AppId, ConnId, MsgId, RoomId, UserId, ledger::Outcome};

use super::ids::{DeliveryId, QueuePosition, RoomKey};
use crate::frame::EncodedMessage;

/// One action, to be carried out in the order of the buffer.
#[derive(Debug)]
pub(crate) enum Action {
    /// Put a copy of a message on the output queues of connections. Those that
    /// are closing do not take it: the task answers with `Input::Refused`.
    Send {
        delivery: DeliveryId,
        attempt: Attempt,
        room: Option<RoomId>,
        msg_id: MsgId,
        message: Arc<EncodedMessage>,
        to: Vec<ConnId>,
        sample: Option<Sample>,
    },
    /// Put a notice on the output queues of connections that have little to read.
    Notify { message: Arc<EncodedMessage>, to: Vec<ConnId> },
    /// The room of these connections takes no messages any more.
    EndRoom { connections: Vec<ConnId> },
    /// These connections are in no room from here on.
    DetachFromRoom { connections: Vec<ConnId> },
    /// Every recipient of an envelope is known: it waits for acknowledgements.
    AwaitAcks(QueuePosition),
    /// Store an outcome, then acknowledge its envelope, if there is one.
    RecordOutcome { outcome: Outcome, position: Option<QueuePosition> },
    /// Acknowledge an envelope that needs no outcome, or has one in the ledger.
    AcknowledgeEnvelope(QueuePosition),
    /// Append that a user has read direct messages.
    MarkRead { app: AppId, user: UserId, msg_ids: Vec<MsgId> },
    /// Observe the time from the acceptance of a message to an acknowledgement.
    ObserveAcknowledgement { accepted_ms: u64 },
    /// Read the messages of a room in (after, until] from the log.
    ReadRoom { room: RoomKey, after: MsgId, until: MsgId },
    /// Read the direct messages of a user in (after, until] from the log.
    ReadDirect {
        connection: ConnId,
        app: AppId,
        user: UserId,
        /// A sequence of the log, not an id: it may be before the first event.
        after: u64,
        until: MsgId,
    },
    /// Compare rooms with the log, each from its last delivered message on.
    CompareRooms(Vec<(RoomKey, MsgId)>),
    /// Answer with `Input::TimerFired` after a pause.
    ArmTimer { after: Duration, timer: Timer },
    /// Append unacknowledged messages of closed connections to the log, then
    /// answer with `Input::Reassigned`.
    Reassign { unacked: Vec<UnackedDelivery>, keep: KeepForReturn },
}

/// Whether a copy is the first one for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    First,
    Retry,
}

/// The one recipient of a message at which its times are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(super) connection: ConnId,
    /// When the message was accepted, ms since 1970.
    pub(super) accepted_ms: u64,
}

/// A timer of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// A missing envelope of a room has had its time to arrive.
    RoomGap(RoomKey),
    /// Likewise for the direct messages of a connection.
    DirectGap(ConnId),
    /// Fan-out has had its time to come back after an outage.
    CompareRooms,
}

/// A room message that users left unacknowledged on closed connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnackedDelivery {
    pub(super) delivery: DeliveryId,
    pub(super) room: RoomKey,
    pub(super) msg_id: MsgId,
    pub(super) users: Vec<UserId>,
    /// Copies sent so far.
    pub(super) sends: u32,
}

/// Whether fan-out keeps a reassigned message for users that are not back yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeepForReturn {
    No,
    Yes,
}

/// Counts for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Deliveries that were opened. Each is recorded once.
    pub(super) opened: u64,
    pub(super) acknowledged: u64,
    pub(super) given_up: u64,
    /// Messages read from the log because their envelope was lost.
    pub(super) gap_fills: u64,
}
