//! What services ask of each other, in the imperative. Answered over NATS
//! micro services; `nats micro ls` shows who answers.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    id::{AppId, ClientMsgId, MsgId, Partition, RoomId, UserId},
    sanction::SanctionKind,
};

/// A request with one kind of answer.
pub trait Command: Serialize + DeserializeOwned + Send + 'static {
    /// What the answer holds.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The request's name, the last token of its subject.
    const VERB: &'static str;
}

/// The service that answers room commands.
pub const LIVING_GROUP: &str = "qiyu.living";

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
pub struct ListPendingMessages {
    /// Where.
    pub app: AppId,
    /// Whose.
    pub user: UserId,
    /// Only messages above this one.
    pub after: Option<MsgId>,
    /// How many, 1 to 100.
    pub limit: u32,
}

impl Command for ListPendingMessages {
    type Reply = PendingMessages;
    const VERB: &'static str = "list_waiting";
}

/// 1:1 messages nobody has acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingMessages {
    /// Oldest first.
    pub messages: Vec<InboxMessage>,
    /// Whether there are more.
    pub has_next: bool,
}

/// A 1:1 message as the inbox keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InboxMessage {
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
pub struct FindDuplicate {
    /// Where.
    pub app: AppId,
    /// Who would have sent it. `None`: the server API.
    pub user: Option<UserId>,
    /// The sender's own name for it.
    pub client_msg_id: ClientMsgId,
}

impl Command for FindDuplicate {
    /// `None`: not within the last 24 h.
    type Reply = Option<MsgId>;
    const VERB: &'static str = "find_sent";
}

/// The group under which the owner of a partition answers.
pub fn fold_group(partition: Partition) -> String {
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

/// Take a measure against a user. Asked of [`LIVING_GROUP`]; refused with 403 for
/// whoever is not the room's anchor, with 404 for a room that is not open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImposeSanction {
    /// Where.
    pub app: AppId,
    /// In which room. `None`: in the whole app.
    pub room: Option<RoomId>,
    /// Against whom.
    pub user: UserId,
    /// What.
    #[serde(rename = "measure")]
    pub sanction: SanctionKind,
    /// Until when, ms since 1970. `None`: until it is lifted. Means nothing for a kick.
    pub until_ms: Option<u64>,
    /// For people; may be empty.
    pub reason: String,
    /// The anchor who asks. `None`: the server API, which may do everything.
    pub by: Option<UserId>,
}

impl Command for ImposeSanction {
    /// The event's place in the log.
    type Reply = MsgId;
    const VERB: &'static str = "moderate";
}

/// Lift a mute or a ban. Asked of [`LIVING_GROUP`]; who may is as in [`ImposeSanction`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiftSanction {
    /// Where.
    pub app: AppId,
    /// In which room. `None`: in the whole app.
    pub room: Option<RoomId>,
    /// Whose.
    pub user: UserId,
    /// What.
    #[serde(rename = "measure")]
    pub sanction: SanctionKind,
    /// The anchor who asks. `None`: the server API.
    pub by: Option<UserId>,
}

impl Command for LiftSanction {
    /// Whether there was anything to lift.
    type Reply = bool;
    const VERB: &'static str = "pardon";
}

/// List the mutes and bans in force. Asked of [`LIVING_GROUP`]; who may is as in [`ImposeSanction`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListSanctions {
    /// Where.
    pub app: AppId,
    /// In which room. `None`: those of the whole app.
    pub room: Option<RoomId>,
    /// Only this user's. `None`: everybody's.
    pub user: Option<UserId>,
    /// The anchor who asks. `None`: the server API.
    pub by: Option<UserId>,
    /// Only those of users above this one.
    pub after: Option<UserId>,
    /// How many users at most, 1 to 1000.
    pub limit: u32,
}

impl Command for ListSanctions {
    type Reply = SanctionPage;
    const VERB: &'static str = "list_measures";
}

/// Mutes and bans in force, by user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SanctionPage {
    /// In the order of user ids.
    pub list: Vec<ActiveSanction>,
    /// Whether there are more.
    pub has_next: bool,
}

/// A mute or a ban.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActiveSanction {
    /// Against whom.
    pub user: UserId,
    /// What.
    #[serde(rename = "measure")]
    pub sanction: SanctionKind,
    /// Until when, ms since 1970. `None`: until it is lifted.
    pub until_ms: Option<u64>,
    /// For people; may be empty.
    pub reason: String,
    /// The anchor who did it. `None`: the server API.
    pub by: Option<UserId>,
    /// The event's place in the log.
    pub msg_id: MsgId,
}

/// List the users inside a room, asked of the owner of the room's partition
/// ([`fold_of`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListMembers {
    /// Where.
    pub app: AppId,
    /// Which room.
    pub room: RoomId,
    /// Only users above this one.
    pub after: Option<UserId>,
    /// How many, 1 to 1000.
    pub limit: u32,
}

impl Command for ListMembers {
    type Reply = Members;
    const VERB: &'static str = "list_members";
}

/// Users inside a room, each once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Members {
    /// In the order of their ids.
    pub users: Vec<UserId>,
    /// How many there are in all.
    pub total: u64,
    /// Whether there are more above the last of these.
    pub has_next: bool,
}

/// What a partition's fold knows, by name and hash, asked of its owner
/// ([`fold_of`]): for whoever has folded the same log and wants to compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SurveyFold {
    /// What does not matter any more then is left out; ms since 1970.
    pub at_ms: u64,
    /// Only things above this one.
    pub after: Option<String>,
    /// How many, 1 to 10,000.
    pub limit: u32,
}

impl Command for SurveyFold {
    type Reply = FoldSurvey;
    const VERB: &'static str = "survey";
}

/// Some of what a fold knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldSurvey {
    /// The sequence of the last event in the fold.
    pub position: u64,
    /// Name and hash of each thing, in order.
    pub things: Vec<(String, u64)>,
    /// Whether there are more above the last of these.
    pub has_next: bool,
}

/// Close a room whose anchor has been gone for too long, as its fold's owner
/// saw it. Asked of [`LIVING_GROUP`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloseAbandoned {
    /// Where.
    pub app: AppId,
    /// Which room.
    pub room: RoomId,
}

impl Command for CloseAbandoned {
    type Reply = ();
    const VERB: &'static str = "close_abandoned";
}
