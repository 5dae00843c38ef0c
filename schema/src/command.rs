//! The commands that services send each other, as NATS micro services:
//! `nats micro ls` shows the processes that serve them.
//!
//! A command's subject is its service group and its [`Command::VERB`]. Room
//! commands go to [`LIVING_GROUP`], questions about a partition to
//! [`fold_group`], and the rest to one gateway
//! ([`gateway_commands`](crate::subject::gateway_commands)).

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    id::{AppId, ClientMsgId, ConnId, MsgId, Partition, RoomId, UserId},
    namespace::Namespace,
    sanction::SanctionKind,
};

/// A request with one type of response.
pub trait Command: Serialize + DeserializeOwned + Send + 'static {
    /// The response.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The last token of the command's subject.
    const VERB: &'static str;
}

/// The service group of room commands.
pub const LIVING_GROUP: &str = "qiyu.living";

/// Returns the service group of the owner of `partition`.
pub fn fold_group(partition: Partition) -> String {
    format!("qiyu.fold.{partition}")
}

/// Declares a command: its fields, its response and its verb.
macro_rules! command {
    (
        $(#[$attribute:meta])*
        $name:ident -> $reply:ty = $verb:literal {
            $($(#[$field_attribute:meta])* $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            $($(#[$field_attribute])* pub $field: $type,)*
        }

        impl Command for $name {
            type Reply = $reply;
            const VERB: &'static str = $verb;
        }
    };
}

command! {
    /// Opens a room for an anchor and returns its id. An anchor with an open
    /// room gets that one.
    OpenRoom -> RoomId = "open" {
        app: AppId,
        anchor: UserId,
        /// 1 ordinary, 2 pk.
        room_type: u8,
        /// `None`: made from the anchor's id.
        name: Option<String>,
        /// Cover image URL; may be empty.
        cover: String,
    }
}

command! {
    /// Closes the sender's own room. Refused with 501 for any other user.
    CloseRoom -> () = "close" {
        app: AppId,
        room: RoomId,
        by: UserId,
    }
}

command! {
    /// Closes a room whose anchor has been away for too long. The owner of the
    /// room's partition sends it.
    CloseAbandoned -> () = "close_abandoned" {
        app: AppId,
        room: RoomId,
    }
}

command! {
    /// Looks up one room; `None` if it is unknown or closed.
    FindRoom -> Option<RoomView> = "find" {
        app: AppId,
        room: RoomId,
    }
}

command! {
    /// Lists open rooms, newest first.
    ListRooms -> RoomPage = "list" {
        app: AppId,
        /// 1 ordinary, 2 pk.
        room_type: u8,
        /// From 1.
        page: u32,
        /// 1 to 100.
        page_size: u32,
    }
}

/// An open room as its visitors see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomView {
    pub room: RoomId,
    pub anchor: UserId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    pub name: String,
    /// Cover image URL; may be empty.
    pub cover: String,
    /// Users in the room; a user with several connections counts once.
    pub watch_num: u64,
    /// Likes.
    pub good_num: u64,
}

/// One page of the room list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomPage {
    /// Newest first.
    pub rooms: Vec<RoomView>,
    pub has_next: bool,
}

command! {
    /// Imposes a sanction on a user and returns the position of its event.
    /// Refused with 403 for a user who is not the room's anchor, and with 404
    /// for a room that is not open.
    ImposeSanction -> MsgId = "moderate" {
        app: AppId,
        /// `None`: in the whole app.
        room: Option<RoomId>,
        user: UserId,
        #[serde(rename = "measure")]
        sanction: SanctionKind,
        /// End, ms since 1970. `None`: until it is lifted. Ignored for a kick.
        until_ms: Option<u64>,
        /// For display; may be empty.
        reason: String,
        /// The anchor that sends it. `None`: the server API, which may do everything.
        by: Option<UserId>,
    }
}

command! {
    /// Lifts a mute or a ban; returns whether there was one. Refused as
    /// [`ImposeSanction`] is.
    LiftSanction -> bool = "pardon" {
        app: AppId,
        /// `None`: in the whole app.
        room: Option<RoomId>,
        user: UserId,
        #[serde(rename = "measure")]
        sanction: SanctionKind,
        /// The anchor that sends it. `None`: the server API.
        by: Option<UserId>,
    }
}

command! {
    /// Lists the active mutes and bans. Refused as [`ImposeSanction`] is.
    ListSanctions -> SanctionPage = "list_measures" {
        app: AppId,
        /// `None`: those of the whole app.
        room: Option<RoomId>,
        /// Only those of this user. `None`: of all users.
        user: Option<UserId>,
        /// The anchor that sends it. `None`: the server API.
        by: Option<UserId>,
        /// Only those of users above this one.
        after: Option<UserId>,
        /// Users at most, 1 to 1000.
        limit: u32,
    }
}

/// Active mutes and bans, in the order of user ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SanctionPage {
    pub list: Vec<ActiveSanction>,
    pub has_next: bool,
}

/// An active mute or ban.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActiveSanction {
    pub user: UserId,
    #[serde(rename = "measure")]
    pub sanction: SanctionKind,
    /// End, ms since 1970. `None`: until it is lifted.
    pub until_ms: Option<u64>,
    /// For display; may be empty.
    pub reason: String,
    /// The anchor that imposed it. `None`: the server API.
    pub by: Option<UserId>,
    /// Position of its event in the log.
    pub msg_id: MsgId,
}

command! {
    /// Lists the users in a room.
    ListMembers -> Members = "list_members" {
        app: AppId,
        room: RoomId,
        /// Only users above this one.
        after: Option<UserId>,
        /// 1 to 1000.
        limit: u32,
    }
}

/// Users in a room, each once, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Members {
    pub users: Vec<UserId>,
    /// Users in the room in all.
    pub total: u64,
    pub has_next: bool,
}

command! {
    /// Lists the pending direct messages of a user.
    ListPendingMessages -> PendingMessages = "list_waiting" {
        app: AppId,
        user: UserId,
        /// Only messages above this one.
        after: Option<MsgId>,
        /// 1 to 100.
        limit: u32,
    }
}

/// Pending direct messages, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingMessages {
    pub messages: Vec<InboxMessage>,
    pub has_next: bool,
}

/// A direct message as the inbox holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InboxMessage {
    pub msg_id: MsgId,
    pub biz_code: i32,
    /// JSON text for the recipient.
    pub data: String,
}

command! {
    /// Looks up the message with a client message id; `None` if the last 24 h
    /// hold none. The bus itself remembers an id for two minutes only.
    FindDuplicate -> Option<MsgId> = "find_sent" {
        app: AppId,
        #[serde(rename = "user")]
        namespace: Namespace,
        client_msg_id: ClientMsgId,
    }
}

command! {
    /// Lists names and hashes of the entries of a partition's fold, for a
    /// process that has folded the same log and compares the two.
    SurveyFold -> FoldSurvey = "survey" {
        /// Entries that have expired at this time are left out; ms since 1970.
        at_ms: u64,
        /// Only entries above this name.
        after: Option<String>,
        /// 1 to 10,000.
        limit: u32,
    }
}

/// Some entries of a fold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldSurvey {
    /// Sequence of the last event in the fold.
    pub position: u64,
    /// Name and hash of each entry, in order.
    pub things: Vec<(String, u64)>,
    pub has_next: bool,
}

command! {
    /// Tells a gateway that a room is closed. The closing process sends it
    /// before it responds; from then on no gateway accepts a message to the room.
    EndRoom -> () = "end_room" {
        app: AppId,
        room: RoomId,
        /// Position of the `closed` event in the log.
        msg_id: MsgId,
    }
}

command! {
    /// Tells a gateway to close a connection in favour of a newer login.
    ReplaceSession -> () = "replace" {
        connection: ConnId,
    }
}
