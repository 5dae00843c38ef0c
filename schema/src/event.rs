//! The events of the log, in the past tense. The log holds nothing else.
//!
//! To change this file, add a variant or an `Option` field. Never rename a
//! stored name and never change a meaning. `nats/fixtures/` holds a sample of
//! every shape that was ever shipped.

use serde::{Deserialize, Serialize};

use crate::{
    id::{AppId, ClientMsgId, ConnId, Incarnation, MsgId, RoomId, UserId},
    namespace::Namespace,
    sanction::SanctionKind,
};

/// The record version that this build writes.
pub const VERSION: u8 = 1;

/// An event as it is stored in one entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The writer's [`VERSION`].
    pub v: u8,
    /// Writer's clock, ms since 1970. For display and retention; the log defines the order.
    pub at_ms: u64,
    pub event: Event,
}

impl Record {
    /// Wraps `event` with this build's version and the writer's clock.
    pub fn at(at_ms: u64, event: Event) -> Self {
        Self { v: VERSION, at_ms, event }
    }
}

/// A fact about a room, a user or a gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// A room was opened. Only the first such event of a room is stored.
    RoomOpened {
        app: AppId,
        /// Never used before.
        room: RoomId,
        anchor: UserId,
        /// 1 ordinary, 2 pk.
        room_type: u8,
        name: String,
        /// Cover image URL; may be empty.
        cover: String,
    },
    /// A room was closed. Only the first such event of a room is stored.
    RoomClosed {
        app: AppId,
        room: RoomId,
        /// `None`: the system closed it.
        by: Option<UserId>,
        /// Most users in the room at once, as far as the closing process knew.
        #[serde(default)]
        peak: Option<u64>,
        /// Likes, as far as the closing process knew.
        #[serde(default)]
        good_num: Option<u64>,
    },
    /// A message was sent to a room. It is accepted; its delivery follows.
    RoomMessageSent {
        app: AppId,
        room: RoomId,
        sender: Sender,
        /// 5555 is chat.
        biz_code: i32,
        /// JSON text, exactly as recipients receive it.
        data: String,
    },
    /// A direct message was sent to one user.
    DirectMessageSent {
        app: AppId,
        to: UserId,
        sender: Sender,
        /// 5555 is chat.
        biz_code: i32,
        /// JSON text, exactly as the recipient receives it.
        data: String,
    },
    /// A business message for an integrator's own consumer. Stored, never delivered.
    BusinessSent {
        app: AppId,
        /// The room it concerns. `None`: it concerns a user.
        room: Option<RoomId>,
        /// The user it concerns. `None`: it concerns a room.
        to: Option<UserId>,
        sender: Sender,
        /// 7000 to 7999.
        biz_code: i32,
        /// JSON text, as the client sent it.
        data: String,
    },
    /// A room was liked. A gateway counts for a second and then appends the count.
    RoomLiked { app: AppId, room: RoomId, gateway: Incarnation, count: u64 },
    /// Connections of one gateway joined and left one room, in this order.
    MembersChanged { app: AppId, room: RoomId, gateway: Incarnation, changes: Vec<MemberChange> },
    /// Connections of one gateway logged in and closed, and their users read
    /// direct messages, in this order.
    SessionsChanged { app: AppId, gateway: Incarnation, changes: Vec<SessionChange> },
    /// Messages that a gateway sent and that stayed unacknowledged when their
    /// recipients' connections closed. A recipient that has joined the room
    /// again since then receives a copy.
    Unacknowledged {
        app: AppId,
        room: RoomId,
        gateway: Incarnation,
        /// Oldest first.
        messages: Vec<UnackedMessage>,
        /// Whether they are also kept for a while, for recipients that return later.
        keep: bool,
    },
    /// A gateway incarnation has ended. The fold ignores every later event of it
    /// and of older incarnations of the same id.
    GatewayGone { gateway: Incarnation },
    /// A sanction was imposed on a user.
    #[serde(rename = "measure_taken")]
    SanctionImposed {
        app: AppId,
        /// `None`: in the whole app.
        room: Option<RoomId>,
        user: UserId,
        #[serde(rename = "measure")]
        sanction: SanctionKind,
        /// End, ms since 1970. `None`: until it is lifted.
        until_ms: Option<u64>,
        /// For display; may be empty.
        reason: String,
        /// The anchor that imposed it. `None`: the server API.
        by: Option<UserId>,
    },
    /// A sanction was lifted.
    #[serde(rename = "measure_lifted")]
    SanctionLifted {
        app: AppId,
        /// `None`: in the whole app.
        room: Option<RoomId>,
        user: UserId,
        #[serde(rename = "measure")]
        sanction: SanctionKind,
        /// The anchor that lifted it. `None`: the server API.
        by: Option<UserId>,
    },
    /// A message was refused for its content. It is not delivered.
    ContentRefused {
        app: AppId,
        /// The room it was for. `None`: it was for a user.
        room: Option<RoomId>,
        /// The user it was for. `None`: it was for a room.
        to: Option<UserId>,
        sender: Sender,
        /// 5555 is chat.
        biz_code: i32,
        content: String,
        /// For display.
        reason: String,
    },
    /// A kind newer than this build.
    #[serde(other)]
    Unknown,
}

/// A message that stayed unacknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnackedMessage {
    pub msg_id: MsgId,
    /// Users with an unacknowledged connection. `None`: the gateway died with
    /// that knowledge, so all members it had in the room count.
    pub users: Option<Vec<UserId>>,
    /// Copies sent, as far as is known: at least one.
    pub sends: u32,
}

/// The origin of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sender {
    /// The user proven by the connection, never by the frame; or the user the
    /// server API named. `None`: the system.
    pub user: Option<UserId>,
    /// The gateway that accepted the message. `None`: the server API did.
    pub gateway: Option<Incarnation>,
    /// The connection it came on. `None`: the server API accepted it.
    pub connection: Option<ConnId>,
    /// The client message id, or the idempotency key of the server API.
    pub client_msg_id: Option<ClientMsgId>,
}

impl Sender {
    /// Returns the namespace of `client_msg_id`.
    ///
    /// It depends on the accepting process, not on `user`: the server API keeps
    /// its own namespace when it sends in a user's name.
    pub fn namespace(&self) -> Namespace {
        match (self.user, &self.gateway) {
            (Some(user), Some(_)) => Namespace::of_user(user),
            _ => Namespace::SERVER,
        }
    }
}

/// One change of one connection's membership in a room.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum MemberChange {
    /// The connection receives the messages after this event.
    Joined {
        connection: ConnId,
        user: UserId,
        /// Whether it resumed. It then reads the missed messages itself and
        /// needs no copies of them.
        #[serde(default)]
        resumed: bool,
    },
    /// The connection receives nothing from here on.
    Left {
        connection: ConnId,
        user: UserId,
        /// The last room message its gateway handled for it; position 0: none.
        /// Later messages before this event are for it as far as the log goes,
        /// and never reached it. `None`: not known.
        #[serde(default, rename = "heard")]
        last_seen: Option<MsgId>,
    },
    /// A change newer than this build.
    #[serde(other)]
    Unknown,
}

/// One change of one user's session, independent of rooms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum SessionChange {
    /// A connection logged in. It receives the user's pending direct messages,
    /// then the new ones.
    Online {
        connection: ConnId,
        user: UserId,
        /// The room it joined with the login.
        room: Option<RoomId>,
    },
    /// A connection closed.
    Offline { connection: ConnId, user: UserId, reason: DisconnectReason },
    /// Direct messages were acknowledged by a connection of the user and are no
    /// longer pending.
    Read { user: UserId, msg_ids: Vec<MsgId> },
    /// A change newer than this build.
    #[serde(other)]
    Unknown,
}

/// The reason a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisconnectReason {
    /// The client sent 1002.
    Logout,
    /// The socket closed or broke.
    Disconnect,
    /// The client was silent for too long.
    Idle,
    /// The client read too slowly.
    Slow,
    /// The client broke the protocol.
    Abuse,
    /// A newer login replaced it.
    Replaced,
    /// A kick closed it.
    Kicked,
    /// A ban closed it.
    Banned,
    /// The gateway drained.
    Drained,
    /// The login was not stored in time, or the bus did not respond for long.
    Unstored,
    /// A reason newer than this build.
    #[serde(other)]
    Other,
}

impl DisconnectReason {
    /// Returns the name as stored, which metrics and tools show, too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::Disconnect => "disconnect",
            Self::Idle => "idle",
            Self::Slow => "slow",
            Self::Abuse => "abuse",
            Self::Replaced => "replaced",
            Self::Kicked => "kicked",
            Self::Banned => "banned",
            Self::Drained => "drained",
            Self::Unstored => "unstored",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_message_in_the_name_of_a_user_keeps_the_servers_namespace() {
        let user: UserId = "100001".parse().unwrap();
        let gateway = Incarnation { id: "gw-1".parse().unwrap(), epoch: 1 };
        let by_client = Sender {
            user: Some(user),
            gateway: Some(gateway),
            connection: None,
            client_msg_id: Some("a-1".parse().unwrap()),
        };
        let by_server = Sender { gateway: None, ..by_client.clone() };
        assert_eq!(by_client.namespace(), Namespace::of_user(user));
        assert_eq!(by_server.namespace(), Namespace::SERVER);
    }
}
