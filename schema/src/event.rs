//! What can happen. Past tense; the log holds these and nothing else.
//!
//! To evolve: add a variant, or add an `Option` field. Never rename, never
//! change a meaning. `nats/fixtures/` has a sample of each shape ever shipped.

use serde::{Deserialize, Serialize};

use crate::{
    id::{AppId, ClientMsgId, ConnId, Incarnation, MsgId, RoomId, UserId},
    sanction::SanctionKind,
};

/// The version a writer of today stamps.
pub const VERSION: u8 = 1;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The writer's [`VERSION`].
    pub v: u8,
    /// The writer's clock, ms since 1970. For people: order is the log's.
    pub at_ms: u64,
    /// What happened.
    pub event: Event,
}

impl Record {
    /// Wraps `event` with the version of this build and the writer's clock.
    pub fn at(at_ms: u64, event: Event) -> Self {
        Self { v: VERSION, at_ms, event }
    }
}

/// Something that happened to a room, a user or a gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// A live room began. First on its subject, or it did not happen.
    RoomOpened {
        /// Where.
        app: AppId,
        /// The room's id, never used before.
        room: RoomId,
        /// Whose room it is.
        anchor: UserId,
        /// 1 ordinary, 2 pk.
        room_type: u8,
        /// As listed.
        name: String,
        /// Cover image URL; may be empty.
        cover: String,
    },
    /// A live room ended. First on its subject, or it did not happen.
    RoomClosed {
        /// Where.
        app: AppId,
        /// Which room.
        room: RoomId,
        /// Who closed it. `None` if the system did.
        by: Option<UserId>,
        /// The most users that were inside at once, as far as the closer knew.
        #[serde(default)]
        peak: Option<u64>,
        /// Its likes, likewise.
        #[serde(default)]
        good_num: Option<u64>,
    },
    /// Somebody spoke in a room. Stored, so it counts as sent; delivery is another story.
    RoomMessageSent {
        /// Where.
        app: AppId,
        /// In which room.
        room: RoomId,
        /// Who spoke, and how it came in.
        sender: Sender,
        /// What it is about; 5555 is chat.
        biz_code: i32,
        /// JSON text, exactly as recipients will see it.
        data: String,
    },
    /// Somebody wrote to one user.
    DirectMessageSent {
        /// Where.
        app: AppId,
        /// To whom.
        to: UserId,
        /// From whom, and how it came in.
        sender: Sender,
        /// What it is about; 5555 is chat.
        biz_code: i32,
        /// JSON text, exactly as the recipient will see it.
        data: String,
    },
    /// Something an integrator's own consumer acts upon; stored, never delivered.
    BusinessSent {
        /// Where.
        app: AppId,
        /// The room it concerns. `None`: a user.
        room: Option<RoomId>,
        /// The user it concerns. `None`: a room.
        to: Option<UserId>,
        /// From whom, and how it came in.
        sender: Sender,
        /// 7000 to 7999.
        biz_code: i32,
        /// JSON text, as the client sent it.
        data: String,
    },
    /// A room was liked; a gateway counts for a second, then says so.
    RoomLiked {
        /// Where.
        app: AppId,
        /// Which room.
        room: RoomId,
        /// Who counted.
        gateway: Incarnation,
        /// How many.
        count: u64,
    },
    /// Connections of one gateway entered and left one room, in this order.
    MembersChanged {
        /// Where.
        app: AppId,
        /// Which room.
        room: RoomId,
        /// Whose connections.
        gateway: Incarnation,
        /// What they did.
        changes: Vec<MemberChange>,
    },
    /// Connections of one gateway came and went, and their users read 1:1 messages, in this order.
    SessionsChanged {
        /// Where.
        app: AppId,
        /// Whose connections.
        gateway: Incarnation,
        /// What they did.
        changes: Vec<SessionChange>,
    },
    /// Messages that a gateway had sent and that were never acknowledged, when
    /// those who owed the acknowledgement were gone. Whoever of them has come
    /// back into the room since gets a copy.
    Unacknowledged {
        /// Where.
        app: AppId,
        /// Which room.
        room: RoomId,
        /// Which gateway had sent them.
        gateway: Incarnation,
        /// The messages, oldest first.
        messages: Vec<UnackedMessage>,
        /// Whether they are also kept a while for those who have not come back yet.
        keep: bool,
    },
    /// A gateway's incarnation is over. Every event of it, or of an older one
    /// of the same id, that comes after this means nothing.
    GatewayGone {
        /// Which one.
        gateway: Incarnation,
    },
    /// A measure was taken against a user.
    #[serde(rename = "measure_taken")]
    SanctionImposed {
        /// Where.
        app: AppId,
        /// In which room. `None`: in the whole app.
        room: Option<RoomId>,
        /// Against whom.
        user: UserId,
        /// What.
        #[serde(rename = "measure")]
        sanction: SanctionKind,
        /// Until when, ms since 1970. `None`: until it is lifted.
        until_ms: Option<u64>,
        /// For people; may be empty.
        reason: String,
        /// The anchor who did it. `None`: the server API.
        by: Option<UserId>,
    },
    /// A measure was lifted.
    #[serde(rename = "measure_lifted")]
    SanctionLifted {
        /// Where.
        app: AppId,
        /// In which room. `None`: in the whole app.
        room: Option<RoomId>,
        /// Whose.
        user: UserId,
        /// What.
        #[serde(rename = "measure")]
        sanction: SanctionKind,
        /// The anchor who did it. `None`: the server API.
        by: Option<UserId>,
    },
    /// Somebody's words were refused for what they say; nobody hears them.
    ContentRefused {
        /// Where.
        app: AppId,
        /// The room they were for. `None`: a user.
        room: Option<RoomId>,
        /// The user they were for. `None`: a room.
        to: Option<UserId>,
        /// From whom, and how they came in.
        sender: Sender,
        /// What they are about; 5555 is chat.
        biz_code: i32,
        /// The words.
        content: String,
        /// Why, for people.
        reason: String,
    },
    /// A kind newer than this build.
    #[serde(other)]
    Unknown,
}

/// A message somebody never acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnackedMessage {
    /// Which one.
    pub msg_id: MsgId,
    /// Whose connections owed it. `None`: the gateway died with that knowledge,
    /// so everybody it then had in the room.
    pub users: Option<Vec<UserId>>,
    /// Copies they were sent, as far as is known: at least one.
    pub sends: u32,
}

/// Who sent a message, and through what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sender {
    /// Proven by the connection, never by the frame; or as the server API was
    /// told. `None`: nobody, the system speaks.
    pub user: Option<UserId>,
    /// The gateway that accepted it. `None`: the server API did.
    pub gateway: Option<Incarnation>,
    /// The connection it came on. `None`: the server API accepted it.
    pub connection: Option<ConnId>,
    /// The sender's own name for it, or the server API's key. `None`: not named.
    pub client_msg_id: Option<ClientMsgId>,
}

impl Sender {
    /// Whose names are told apart: those of each user, and those of the server
    /// API (`None`), so that no client can use up a key of an integrator's.
    pub fn namespace(&self) -> Option<UserId> {
        self.user.filter(|_| self.gateway.is_some())
    }
}

/// One step of one connection in one room.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum MemberChange {
    /// It hears what comes after this event.
    Joined {
        /// Which connection.
        connection: ConnId,
        /// Whose.
        user: UserId,
        /// It asked for what it had missed, and so needs no copies of that.
        #[serde(default)]
        resumed: bool,
    },
    /// It hears nothing from here on.
    Left {
        /// Which connection.
        connection: ConnId,
        /// Whose.
        user: UserId,
        /// The last room message its gateway had for it, or dealt with while it was
        /// there; position 0: none. What came later, and before this event, is for
        /// it as far as the log goes, and never reached it. `None`: not known.
        #[serde(default, rename = "heard")]
        last_seen: Option<MsgId>,
    },
    /// A step newer than this build.
    #[serde(other)]
    Unknown,
}

/// One step of one connection of one user, in no room in particular.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum SessionChange {
    /// Logged in: what waits for the user is sent to this connection, then what comes.
    Online {
        /// Which connection.
        connection: ConnId,
        /// Whose.
        user: UserId,
        /// The room it entered with. `None`: none.
        room: Option<RoomId>,
    },
    /// Gone, whatever the reason.
    Offline {
        /// Which connection.
        connection: ConnId,
        /// Whose.
        user: UserId,
        /// Why.
        reason: DisconnectReason,
    },
    /// Acknowledged by some connection of the user: these wait no more.
    Read {
        /// Whose.
        user: UserId,
        /// Which messages.
        msg_ids: Vec<MsgId>,
    },
    /// A step newer than this build.
    #[serde(other)]
    Unknown,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisconnectReason {
    /// The client said 1002.
    Logout,
    /// The socket closed or broke.
    Disconnect,
    /// Silent for too long.
    Idle,
    /// It read too slowly.
    Slow,
    /// It broke the protocol.
    Abuse,
    /// A newer login took its place.
    Replaced,
    /// Thrown out.
    Kicked,
    /// Thrown out for good.
    Banned,
    /// The gateway drained.
    Drained,
    /// The login did not come to its end, or the bus did not answer for long.
    Unstored,
    /// A reason newer than this build.
    #[serde(other)]
    Other,
}
