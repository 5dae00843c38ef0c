//! The envelopes of `IM_OUT`: one message for the connections of one gateway.

use serde::{Deserialize, Serialize};

use crate::id::{AppId, ConnId, MsgId, RoomId, UserId};

/// One message for the connections of one gateway incarnation.
///
/// Any owner of a partition computes the same envelope for the same message.
/// An envelope from an owner that has lost its claim is therefore correct.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Envelope {
    /// A room message. The gateway determines its recipients: the members that
    /// joined before `msg_id`, without the sender's own connections.
    Room {
        app: AppId,
        room: RoomId,
        msg_id: MsgId,
        /// The previous message of this room sent to this gateway, or the join
        /// that brought the gateway into the room. A gateway that has not seen
        /// it has lost an envelope and reads the missing messages from the log.
        prev: MsgId,
        /// The sender, who does not receive the message. `None`: the system sent
        /// it, and all members receive it.
        from: Option<UserId>,
        biz_code: i32,
        /// JSON text for the recipients.
        data: String,
        /// Time of acceptance by the writer's clock, ms since 1970; used for
        /// metrics only. `None`: the owner runs an older build.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_ms: Option<u64>,
    },
    /// The room is closed. Its members are notified and removed.
    RoomClosed {
        app: AppId,
        room: RoomId,
        /// Position of the `closed` event in the log.
        msg_id: MsgId,
        /// As in [`Envelope::Room`].
        prev: MsgId,
        /// Connections that joined after the closing. Empty: all members.
        late: Vec<ConnId>,
    },
    /// A room message sent again, to connections whose users had it on another
    /// connection that closed without acknowledging it.
    Repeat {
        app: AppId,
        room: RoomId,
        msg_id: MsgId,
        /// Copies sent before this one.
        sends: u32,
        /// The sender, who does not receive the message even if a connection of
        /// theirs is in `to`. `None`: the system.
        from: Option<UserId>,
        biz_code: i32,
        /// JSON text for the recipients.
        data: String,
        to: Vec<ConnId>,
    },
    /// A direct message for some connections of its recipient.
    Direct {
        app: AppId,
        /// The recipient.
        user: UserId,
        msg_id: MsgId,
        biz_code: i32,
        /// JSON text for the recipient.
        data: String,
        to: Vec<DirectTarget>,
        /// As in [`Envelope::Room`]; also `None` for a message that was pending.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_ms: Option<u64>,
    },
    /// A kind newer than this build. A gateway counts and acknowledges it.
    #[serde(other)]
    Unknown,
}

impl Envelope {
    /// Returns the message this envelope delivers; `None` for [`Envelope::Unknown`].
    pub fn msg_id(&self) -> Option<MsgId> {
        match self {
            Self::Room { msg_id, .. }
            | Self::RoomClosed { msg_id, .. }
            | Self::Repeat { msg_id, .. }
            | Self::Direct { msg_id, .. } => Some(*msg_id),
            Self::Unknown => None,
        }
    }
}

/// One connection that a direct message is for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectTarget {
    pub connection: ConnId,
    /// The previous direct message sent to it; `None` for the first.
    pub prev: Option<MsgId>,
}
