//! Every rule about speaking, and no I/O.
//!
//! The sender is who the connection proved to be; what a frame claims about
//! that is not even parsed.

use qiyu_schema::{AppId, ClientMsgId, Partition, RoomId, UserId};
use serde::{Deserialize, Serialize};

use crate::frame::{BusinessBody, Reason, biz, object, optional_number_or_digits};

/// Who speaks, as the login proved it.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) app: AppId,
    pub(crate) user: UserId,
    pub(crate) nick_name: String,
    pub(crate) avatar: String,
}

/// What a business frame asks for, once its form is right.
#[derive(Debug, PartialEq)]
pub(crate) enum Ask {
    /// Say something in a room.
    Room { room: RoomId, biz_code: i32, data: RoomText },
    /// Write to one user.
    Direct { to: UserId, biz_code: i32, content: String },
    /// Something for the integrator's own consumer.
    Business { to: Addressee, biz_code: i32, data: String },
    /// Like a room so many times.
    Like { room: RoomId, count: u32 },
}

impl Ask {
    /// Its words, if people are to read them.
    pub(crate) fn words(&self) -> Option<String> {
        match self {
            Self::Room { data, .. } => Some(data.content.clone()),
            Self::Direct { content, .. } => Some(content.clone()),
            Self::Business { .. } | Self::Like { .. } => None,
        }
    }

    /// The room it goes to, if it goes to one.
    pub(crate) fn room(&self) -> Option<RoomId> {
        match *self {
            Self::Room { room, .. }
            | Self::Like { room, .. }
            | Self::Business { to: Addressee::Room(room), .. } => Some(room),
            Self::Direct { .. } | Self::Business { to: Addressee::User(_), .. } => None,
        }
    }

    /// The partition it goes to.
    pub(crate) fn partition(&self, app: AppId) -> Partition {
        match *self {
            Self::Room { room, .. }
            | Self::Like { room, .. }
            | Self::Business { to: Addressee::Room(room), .. } => Partition::of_room(app, room),
            Self::Direct { to, .. } | Self::Business { to: Addressee::User(to), .. } => {
                Partition::of_user(app, to)
            }
        }
    }
}

/// What is said in a room.
#[derive(Debug, PartialEq)]
pub(crate) struct RoomText {
    kind: i64,
    content: String,
}

/// Whom an integrator's message concerns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Addressee {
    Room(RoomId),
    User(UserId),
}

/// Likes in one frame.
const LIKES_MAX: u32 = 100;

/// Reads a business frame's body. The client's own id for it comes back also
/// when the rest is refused, so that the refusal can name it.
pub(crate) fn read(text: &str) -> (Option<ClientMsgId>, Result<Ask, Reason>) {
    match object::<BusinessBody>(text) {
        Ok(body) => (body.client_msg_id.clone(), ask(body)),
        Err(_) => (salvage_client_msg_id(text), Err(Reason::Unreadable)),
    }
}

/// The clientMsgId of a body that is wrong elsewhere.
fn salvage_client_msg_id(text: &str) -> Option<ClientMsgId> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct OnlyId {
        client_msg_id: ClientMsgId,
    }
    object::<OnlyId>(text).ok().map(|only| only.client_msg_id)
}

fn ask(body: BusinessBody) -> Result<Ask, Reason> {
    let biz_code = body.biz_code.unwrap_or_default();
    let data = body.data;
    match biz_code {
        biz::CHAT => chat(&data.ok_or(Reason::Unreadable)?),
        biz::LIKES => like(&data.ok_or(Reason::Unreadable)?),
        code if biz::INTEGRATORS.contains(&code) => {
            let data = data.ok_or(Reason::Unreadable)?;
            let to: Target = object(&data).map_err(|_| Reason::Unreadable)?;
            Ok(Ask::Business { to: to.addressee()?, biz_code, data })
        }
        _ => Err(Reason::NotRouted),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    #[serde(default, deserialize_with = "optional_number_or_digits")]
    room_id: Option<u64>,
    #[serde(default, deserialize_with = "optional_number_or_digits")]
    object_id: Option<u64>,
}

impl Target {
    /// A room wins over a user: 1:1 is what has no room.
    fn addressee(&self) -> Result<Addressee, Reason> {
        match (self.room_id, self.object_id) {
            (Some(room), _) => room.try_into().map(Addressee::Room).map_err(|_| Reason::Unreadable),
            (None, Some(user)) => {
                user.try_into().map(Addressee::User).map_err(|_| Reason::Unreadable)
            }
            (None, None) => Err(Reason::Unreadable),
        }
    }
}

fn chat(data: &str) -> Result<Ask, Reason> {
    #[derive(Deserialize)]
    struct Said {
        #[serde(flatten)]
        target: Target,
        #[serde(default, rename = "type")]
        kind: Option<i64>,
        content: String,
    }
    let said: Said = object(data).map_err(|_| Reason::Unreadable)?;
    let (biz_code, content) = (biz::CHAT, said.content);
    Ok(match said.target.addressee()? {
        Addressee::Room(room) => {
            let data = RoomText { kind: said.kind.unwrap_or(1), content };
            Ask::Room { room, biz_code, data }
        }
        Addressee::User(to) => Ask::Direct { to, biz_code, content },
    })
}

fn like(data: &str) -> Result<Ask, Reason> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Liked {
        room_id: RoomId,
        count: u32,
    }
    let liked: Liked = object(data).map_err(|_| Reason::Unreadable)?;
    match liked.count {
        1..=LIKES_MAX => Ok(Ask::Like { room: liked.room_id, count: liked.count }),
        _ => Err(Reason::Unreadable),
    }
}

/// What the members of a room see.
pub(crate) fn room_data(who: &Identity, room: RoomId, text: &RoomText, now_ms: u64) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data<'a> {
        user_id: UserId,
        room_id: RoomId,
        #[serde(rename = "type")]
        kind: i64,
        content: &'a str,
        sender_name: &'a str,
        sender_avatar: &'a str,
        create_time: u64,
    }
    let data = Data {
        user_id: who.user,
        room_id: room,
        kind: text.kind,
        content: &text.content,
        sender_name: &who.nick_name,
        sender_avatar: &who.avatar,
        create_time: now_ms,
    };
    serde_json::to_string(&data).expect("plain data encodes")
}

/// What the recipient of a 1:1 message sees.
pub(crate) fn direct_data(who: &Identity, content: &str, now_ms: u64) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data<'a> {
        sender_id: UserId,
        content: &'a str,
        sender_name: &'a str,
        sender_avatar: &'a str,
        create_time: u64,
    }
    let data = Data {
        sender_id: who.user,
        content,
        sender_name: &who.nick_name,
        sender_avatar: &who.avatar,
        create_time: now_ms,
    };
    serde_json::to_string(&data).expect("plain data encodes")
}

/// The key under which the log knows a message again: the sender's own id for
/// it, or else its place on its connection.
pub(crate) fn dedup_key(who: &Identity, name: Option<&ClientMsgId>, place: &str) -> String {
    match name {
        Some(name) => format!("m:{}:{}:{name}", who.app, who.user),
        None => format!("c:{place}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(biz_code: i32, data: &str) -> String {
        serde_json::json!({ "bizCode": biz_code, "data": data }).to_string()
    }

    #[test]
    fn what_a_frame_asks_for() {
        let room: RoomId = "7".parse().unwrap();
        let user: UserId = "100002".parse().unwrap();
        let said = |kind, content: &str| Ask::Room {
            room,
            biz_code: 5555,
            data: RoomText { kind, content: content.into() },
        };
        let wrote =
            |content: &str| Ask::Direct { to: user, biz_code: 5555, content: content.into() };
        for (biz_code, data, expected) in [
            (5555, r#"{"roomId":7,"type":2,"content":"x"}"#, Ok(said(2, "x"))),
            (5555, r#"{"roomId":"7","content":""}"#, Ok(said(1, ""))),
            (5555, r#"{"roomId":7,"objectId":100002,"content":"x"}"#, Ok(said(1, "x"))),
            (5555, r#"{"roomId":null,"objectId":100002,"content":"x"}"#, Ok(wrote("x"))),
            (5555, r#"{"content":"x"}"#, Err(Reason::Unreadable)),
            (5555, r#"{"roomId":0,"content":"x"}"#, Err(Reason::Unreadable)),
            (5555, r#"{"roomId":-7,"content":"x"}"#, Err(Reason::Unreadable)),
            (5555, r#"{"objectId":9999,"content":"x"}"#, Err(Reason::Unreadable)),
            (5555, r#"{"roomId":7,"content":1}"#, Err(Reason::Unreadable)),
            (5555, r#"{"roomId":7}"#, Err(Reason::Unreadable)),
            (5555, r#"["roomId"]"#, Err(Reason::Unreadable)),
            (5555, "", Err(Reason::Unreadable)),
            (5602, r#"{"roomId":7,"count":100}"#, Ok(Ask::Like { room, count: 100 })),
            (5602, r#"{"roomId":7,"count":101}"#, Err(Reason::Unreadable)),
            (5602, r#"{"roomId":7,"count":0}"#, Err(Reason::Unreadable)),
            (4321, r#"{"roomId":7,"content":"x"}"#, Err(Reason::NotRouted)),
            (8000, "{}", Err(Reason::NotRouted)),
            (7000, "{}", Err(Reason::Unreadable)),
        ] {
            assert_eq!(read(&body(biz_code, data)).1, expected, "{biz_code} {data}");
        }
        let gift = r#"{"roomId":7,"gift":"rose"}"#;
        let (to, biz_code, data) = (Addressee::Room(room), 7999, gift.to_owned());
        assert_eq!(read(&body(7999, gift)).1, Ok(Ask::Business { to, biz_code, data }));
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name_if_it_has_one() {
        let id: ClientMsgId = "a-1".parse().unwrap();
        for bad in [
            r#"{"clientMsgId":"a-1","bizCode":"5555"}"#,
            r#"{"clientMsgId":"a-1","bizCode":5555,"data":{}}"#,
            r#"{"clientMsgId":"a-1","userId":"me","bizCode":5555,"data":"{}"}"#,
            r#"{"clientMsgId":"a-1","bizCode":5555}"#,
        ] {
            assert_eq!(read(bad), (Some(id.clone()), Err(Reason::Unreadable)), "{bad}");
        }
        for bad in ["", "x", "[]", r#"{"clientMsgId":"a b","bizCode":5555,"data":"{}"}"#] {
            assert_eq!(read(bad), (None, Err(Reason::Unreadable)), "{bad}");
        }
    }
}
