//! What services ask of each other, in the imperative. Answered over NATS
//! micro services; `nats micro ls` shows who answers.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::id::{AppId, ClientMsgId, MsgId, Partition, RoomId, UserId};

/// A request with one kind of answer.
pub trait Command: Serialize + DeserializeOwned + Send + 'static {
    /// What the answer holds.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The request's name, the last token of its subject.
    const VERB: &'static str;
}

/// The service that answers room commands.
pub const LIVING: &str = "qiyu.living";

/// Open a room for an anchor; an anchor with an open room gets that one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenRoom {
    /// Where.
    pub app: AppId,
    /// Whose room.
    pub anchor: UserId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    /// As listed. `None`: made from the anchor's id.
    pub name: Option<String>,
    /// Cover image URL; may be empty.
    pub cover: String,
}

impl Command for OpenRoom {
    type Reply = RoomId;
    const VERB: &'static str = "open";
}

/// Close a room of one's own. Refused with 501 for whoever may not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloseRoom {
    /// Where.
    pub app: AppId,
    /// Which room.
    pub room: RoomId,
    /// Who asks.
    pub by: UserId,
}

impl Command for CloseRoom {
    type Reply = ();
    const VERB: &'static str = "close";
}

/// Look one open room up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FindRoom {
    /// Where.
    pub app: AppId,
    /// Which room.
    pub room: RoomId,
}

impl Command for FindRoom {
    /// `None`: unknown or closed.
    type Reply = Option<RoomView>;
    const VERB: &'static str = "find";
}

/// List open rooms, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListRooms {
    /// Where.
    pub app: AppId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    /// From 1.
    pub page: u32,
    /// 1 to 100.
    pub page_size: u32,
}

impl Command for ListRooms {
    type Reply = RoomPage;
    const VERB: &'static str = "list";
}

/// An open room as its visitors see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomView {
    /// Its id.
    pub room: RoomId,
    /// Whose room.
    pub anchor: UserId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    /// As listed.
    pub name: String,
    /// Cover image URL; may be empty.
    pub cover: String,
    /// Users inside, each once.
    pub watch_num: u64,
    /// Likes.
    pub good_num: u64,
}

/// One page of the list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomPage {
    /// Newest first.
    pub rooms: Vec<RoomView>,
    /// Whether a further page has rows.
    pub has_next: bool,
}

/// What waits for a user, asked of the owner of the user's partition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListWaiting {
    /// Where.
    pub app: AppId,
    /// Whose.
    pub user: UserId,
    /// Only messages above this one.
    pub after: Option<MsgId>,
    /// How many, 1 to 100.
    pub limit: u32,
}

impl Command for ListWaiting {
    type Reply = Waiting;
    const VERB: &'static str = "list_waiting";
}

/// 1:1 messages nobody has acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// Oldest first.
    pub messages: Vec<Kept>,
    /// Whether there are more.
    pub has_next: bool,
}

/// A 1:1 message as the inbox keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Its place in the log.
    pub msg_id: MsgId,
    /// What it is about.
    pub biz_code: i32,
    /// JSON text for the recipient.
    pub data: String,
}

/// Whether a message of this name is in the log already, asked of the owner of
/// the partition it would go to. Reaches back 24 h, where the bus's own memory
/// ends after two minutes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FindSent {
    /// Where.
    pub app: AppId,
    /// Who would have sent it.
    pub user: UserId,
    /// The sender's own name for it.
    pub client_msg_id: ClientMsgId,
}

impl Command for FindSent {
    /// `None`: not within the last 24 h.
    type Reply = Option<MsgId>;
    const VERB: &'static str = "find_sent";
}

/// The group under which the owner of a partition answers.
pub fn fold_of(partition: Partition) -> String {
    format!("qiyu.fold.{partition}")
}

/// Tells a gateway that a room is closed, before the caller hears that it is:
/// from then on no gateway takes a message to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndRoom {
    /// Where.
    pub app: AppId,
    /// Which room.
    pub room: RoomId,
    /// The closing's place in the log.
    pub msg_id: MsgId,
}

impl Command for EndRoom {
    type Reply = ();
    const VERB: &'static str = "end_room";
}

/// Tells a gateway to end one of its connections in favour of a newer login.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplaceSession {
    /// Which connection.
    pub connection: crate::id::ConnId,
}

impl Command for ReplaceSession {
    type Reply = ();
    const VERB: &'static str = "replace";
}
