//! Parsing a business frame into a [`SendRequest`]. No I/O.
//!
//! The sender is the connection's identity. A frame's own fields about its
//! sender are not used.

use qiyu_schema::{AppId, ClientMsgId, Partition, RoomId, UserId};
use serde::Deserialize;

use crate::frame::{BusinessBody, RefusalCode, biz, object, optional_number_or_digits};

/// A business frame with a valid form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SendRequest {
    /// A message to a room.
    Room { room: RoomId, biz_code: i32, text: RoomText },
    /// A direct message to one user.
    Direct { to: UserId, biz_code: i32, content: String },
    /// A message for the integrator's own consumer of the log.
    Business { to: Addressee, biz_code: i32, data: String },
    /// Likes of a room.
    Like { room: RoomId, count: u32 },
}

impl SendRequest {
    /// Returns the text that people will read, which content checks look at.
    pub(crate) fn content(&self) -> Option<&str> {
        match self {
            Self::Room { text, .. } => Some(&text.content),
            Self::Direct { content, .. } => Some(content),
            Self::Business { .. } | Self::Like { .. } => None,
        }
    }

    /// Returns the room or the user that the request is addressed to.
    pub(crate) fn addressee(&self) -> Addressee {
        match *self {
            Self::Room { room, .. } | Self::Like { room, .. } => Addressee::Room(room),
            Self::Direct { to, .. } => Addressee::User(to),
            Self::Business { to, .. } => to,
        }
    }

    pub(crate) fn biz_code(&self) -> i32 {
        match *self {
            Self::Room { biz_code, .. }
            | Self::Direct { biz_code, .. }
            | Self::Business { biz_code, .. } => biz_code,
            Self::Like { .. } => biz::LIKES,
        }
    }

    /// Returns the room that the request is addressed to, if it is a room.
    pub(crate) fn room(&self) -> Option<RoomId> {
        self.addressee().room()
    }

    /// Returns the partition of the log that the request belongs to.
    pub(crate) fn partition(&self, app: AppId) -> Partition {
        match self.addressee() {
            Addressee::Room(room) => Partition::of_room(app, room),
            Addressee::User(user) => Partition::of_user(app, user),
        }
    }
}

/// The text of a message to a room.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RoomText {
    /// The client's `type`, which the gateway passes on.
    pub(crate) kind: i64,
    pub(crate) content: String,
}

/// The room or the user that a message is addressed to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Addressee {
    Room(RoomId),
    User(UserId),
}

impl Addressee {
    pub(crate) fn room(self) -> Option<RoomId> {
        match self {
            Self::Room(room) => Some(room),
            Self::User(_) => None,
        }
    }

    pub(crate) fn user(self) -> Option<UserId> {
        match self {
            Self::User(user) => Some(user),
            Self::Room(_) => None,
        }
    }
}

/// Likes in one frame at most.
const LIKES_MAX: u32 = 100;

/// Parses a business frame's body. Returns the clientMsgId also when the rest
/// is refused, so that the refusal can name it.
pub(crate) fn parse(text: &str) -> (Option<ClientMsgId>, Result<SendRequest, RefusalCode>) {
    match object::<BusinessBody>(text) {
        Ok(body) => (body.client_msg_id.clone(), parse_request(body)),
        Err(_) => (salvage_client_msg_id(text), Err(RefusalCode::Unreadable)),
    }
}

/// Returns the clientMsgId of a body that is wrong elsewhere.
fn salvage_client_msg_id(text: &str) -> Option<ClientMsgId> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct OnlyId {
        client_msg_id: ClientMsgId,
    }
    object::<OnlyId>(text).ok().map(|only| only.client_msg_id)
}

fn parse_request(body: BusinessBody) -> Result<SendRequest, RefusalCode> {
    let biz_code = body.biz_code.unwrap_or_default();
    let data = body.data.ok_or(RefusalCode::Unreadable);
    match biz_code {
        biz::CHAT => parse_chat(&data?),
        biz::LIKES => parse_like(&data?),
        code if biz::INTEGRATORS.contains(&code) => {
            let data = data?;
            let target: TargetIds = object(&data).map_err(|_| RefusalCode::Unreadable)?;
            Ok(SendRequest::Business { to: target.addressee()?, biz_code, data })
        }
        _ => Err(RefusalCode::NotRouted),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TargetIds {
    #[serde(default, deserialize_with = "optional_number_or_digits")]
    room_id: Option<u64>,
    #[serde(default, deserialize_with = "optional_number_or_digits")]
    object_id: Option<u64>,
}

impl TargetIds {
    /// Returns the addressee. A room takes precedence: a direct message is one
    /// without a room.
    fn addressee(&self) -> Result<Addressee, RefusalCode> {
        let addressee = match (self.room_id, self.object_id) {
            (Some(room), _) => room.try_into().ok().map(Addressee::Room),
            (None, Some(user)) => user.try_into().ok().map(Addressee::User),
            (None, None) => None,
        };
        addressee.ok_or(RefusalCode::Unreadable)
    }
}

fn parse_chat(data: &str) -> Result<SendRequest, RefusalCode> {
    #[derive(Deserialize)]
    struct Chat {
        #[serde(flatten)]
        target: TargetIds,
        #[serde(default, rename = "type")]
        kind: Option<i64>,
        content: String,
    }
    let chat: Chat = object(data).map_err(|_| RefusalCode::Unreadable)?;
    let (biz_code, content) = (biz::CHAT, chat.content);
    Ok(match chat.target.addressee()? {
        Addressee::Room(room) => {
            let text = RoomText { kind: chat.kind.unwrap_or(1), content };
            SendRequest::Room { room, biz_code, text }
        }
        Addressee::User(to) => SendRequest::Direct { to, biz_code, content },
    })
}

fn parse_like(data: &str) -> Result<SendRequest, RefusalCode> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Like {
        room_id: RoomId,
        count: u32,
    }
    let like: Like = object(data).map_err(|_| RefusalCode::Unreadable)?;
    match like.count {
        1..=LIKES_MAX => Ok(SendRequest::Like { room: like.room_id, count: like.count }),
        _ => Err(RefusalCode::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(biz_code: i32, data: &str) -> String {
        serde_json::json!({ "bizCode": biz_code, "data": data }).to_string()
    }

    #[test]
    fn a_business_frame_is_a_request_or_a_refusal_code() {
        let room: RoomId = "7".parse().unwrap();
        let user: UserId = "100002".parse().unwrap();
        let to_room = |kind, content: &str| SendRequest::Room {
            room,
            biz_code: 5555,
            text: RoomText { kind, content: content.into() },
        };
        let direct = |content: &str| SendRequest::Direct {
            to: user,
            biz_code: 5555,
            content: content.into(),
        };
        for (biz_code, data, expected) in [
            (5555, r#"{"roomId":7,"type":2,"content":"x"}"#, Ok(to_room(2, "x"))),
            (5555, r#"{"roomId":"7","content":""}"#, Ok(to_room(1, ""))),
            (5555, r#"{"roomId":7,"objectId":100002,"content":"x"}"#, Ok(to_room(1, "x"))),
            (5555, r#"{"roomId":null,"objectId":100002,"content":"x"}"#, Ok(direct("x"))),
            (5555, r#"{"content":"x"}"#, Err(RefusalCode::Unreadable)),
            (5555, r#"{"roomId":0,"content":"x"}"#, Err(RefusalCode::Unreadable)),
            (5555, r#"{"roomId":-7,"content":"x"}"#, Err(RefusalCode::Unreadable)),
            (5555, r#"{"objectId":9999,"content":"x"}"#, Err(RefusalCode::Unreadable)),
            (5555, r#"{"roomId":7,"content":1}"#, Err(RefusalCode::Unreadable)),
            (5555, r#"{"roomId":7}"#, Err(RefusalCode::Unreadable)),
            (5555, r#"["roomId"]"#, Err(RefusalCode::Unreadable)),
            (5555, "", Err(RefusalCode::Unreadable)),
            (5602, r#"{"roomId":7,"count":100}"#, Ok(SendRequest::Like { room, count: 100 })),
            (5602, r#"{"roomId":7,"count":101}"#, Err(RefusalCode::Unreadable)),
            (5602, r#"{"roomId":7,"count":0}"#, Err(RefusalCode::Unreadable)),
            (4321, r#"{"roomId":7,"content":"x"}"#, Err(RefusalCode::NotRouted)),
            (8000, "{}", Err(RefusalCode::NotRouted)),
            (7000, "{}", Err(RefusalCode::Unreadable)),
        ] {
            assert_eq!(parse(&body(biz_code, data)).1, expected, "{biz_code} {data}");
        }
        let gift = r#"{"roomId":7,"gift":"rose"}"#;
        let (to, biz_code, data) = (Addressee::Room(room), 7999, gift.to_owned());
        assert_eq!(parse(&body(7999, gift)).1, Ok(SendRequest::Business { to, biz_code, data }));
    }

    #[test]
    fn an_unknown_biz_code_without_data_is_not_routed() {
        assert_eq!(parse(r#"{"bizCode":4321}"#).1, Err(RefusalCode::NotRouted));
    }

    #[test]
    fn a_refusal_names_the_client_msg_id_if_it_is_readable() {
        let id: ClientMsgId = "a-1".parse().unwrap();
        for bad in [
            r#"{"clientMsgId":"a-1","bizCode":"5555"}"#,
            r#"{"clientMsgId":"a-1","bizCode":5555,"data":{}}"#,
            r#"{"clientMsgId":"a-1","userId":"me","bizCode":5555,"data":"{}"}"#,
            r#"{"clientMsgId":"a-1","bizCode":5555}"#,
        ] {
            assert_eq!(parse(bad), (Some(id.clone()), Err(RefusalCode::Unreadable)), "{bad}");
        }
        for bad in ["", "x", "[]", r#"{"clientMsgId":"a b","bizCode":5555,"data":"{}"}"#] {
            assert_eq!(parse(bad), (None, Err(RefusalCode::Unreadable)), "{bad}");
        }
    }
}
