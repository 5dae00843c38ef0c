//! What fan-out hands to one gateway: `IM_OUT`, one envelope per (message, gateway).

use serde::{Deserialize, Serialize};

use crate::id::{AppId, ConnId, MsgId, RoomId, UserId};

/// One message for the connections of one gateway incarnation.
///
/// Any owner of a partition computes the same envelope for the same message,
/// so a copy from an owner that has lost its claim is a correct one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Envelope {
    /// A room message. Who hears it, the gateway knows: its members that
    /// joined before `msg_id`, less the sender's own connections.
    Room {
        /// Where.
        app: AppId,
        /// Which room.
        room: RoomId,
        /// The message.
        msg_id: MsgId,
        /// The message of this room sent to this gateway before this one, or
        /// the join that brought the gateway into the room. A gateway that has
        /// not seen it has lost something and reads it from the log.
        prev: MsgId,
        /// Who spoke; hears nothing. `None`: the system, whom everybody hears.
        from: Option<UserId>,
        /// What it is about.
        biz_code: i32,
        /// JSON text for the recipients.
        data: String,
        /// When it was accepted, by its writer's clock, ms since 1970: only ever
        /// measured by. `None`: its owner is of a build that did not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_ms: Option<u64>,
    },
    /// The room ended: its members are told and leave it.
    RoomClosed {
        /// Where.
        app: AppId,
        /// Which room.
        room: RoomId,
        /// The closing's place in the log.
        msg_id: MsgId,
        /// As in [`Envelope::Room`].
        prev: MsgId,
        /// Connections that joined after the end. Empty: everybody in the room.
        late: Vec<ConnId>,
    },
    /// A room message again, for connections whose users had it on another
    /// connection and never acknowledged it there.
    Repeat {
        /// Where.
        app: AppId,
        /// Which room.
        room: RoomId,
        /// The message.
        msg_id: MsgId,
        /// Copies sent before this one.
        sends: u32,
        /// Who spoke; hears nothing, whatever else is named here. `None`: the system.
        from: Option<UserId>,
        /// What it is about.
        biz_code: i32,
        /// JSON text for the recipients.
        data: String,
        /// Which connections.
        to: Vec<ConnId>,
    },
    /// A 1:1 message for some connections of its recipient.
    Direct {
        /// Where.
        app: AppId,
        /// The recipient.
        user: UserId,
        /// The message.
        msg_id: MsgId,
        /// What it is about.
        biz_code: i32,
        /// JSON text for the recipient.
        data: String,
        /// Which connections.
        to: Vec<DirectTarget>,
        /// As in [`Envelope::Room`]; `None` too for one that has waited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_ms: Option<u64>,
    },
    /// A kind newer than this build; acknowledged unread and counted.
    #[serde(other)]
    Unknown,
}

impl Envelope {
    /// The message this is about.
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

/// One connection that a 1:1 message is for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectTarget {
    /// Which one.
    pub connection: ConnId,
    /// The 1:1 message sent to it before this one; `None` for its first.
    pub prev: Option<MsgId>,
}
