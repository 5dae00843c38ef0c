//! Building the log event of a checked request, with its subject and its
//! deduplication key. No I/O.

use qiyu_schema::{
    AppId, ClientMsgId, ConnId, Incarnation, RoomId, UserId,
    event::{Event, Sender},
    subject::{self, RoomKind},
};
use serde::Serialize;

use super::request::{Addressee, RoomText, SendRequest};
use crate::session::identity::ClientIdentity;

/// A sender's connection and the number of the frame on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameOrigin<'a> {
    pub(crate) gateway: &'a Incarnation,
    pub(crate) connection: ConnId,
    /// The number of the stored business frame on its connection, from 1.
    pub(crate) number: u64,
    pub(crate) identity: &'a ClientIdentity,
}

impl FrameOrigin<'_> {
    /// Returns the sender as the log names it.
    pub(crate) fn sender(&self, client_msg_id: Option<&ClientMsgId>) -> Sender {
        Sender {
            user: Some(self.identity.user),
            gateway: Some(self.gateway.clone()),
            connection: Some(self.connection),
            client_msg_id: client_msg_id.cloned(),
        }
    }

    /// Returns the `Nats-Msg-Id` of the message: by its clientMsgId, or else by
    /// its place on its connection.
    pub(crate) fn dedup_key(&self, client_msg_id: Option<&ClientMsgId>) -> String {
        match client_msg_id {
            Some(id) => format!("m:{}:{}:{id}", self.identity.app, self.identity.user),
            None => format!("c:{}", self.place()),
        }
    }

    /// Returns the `Nats-Msg-Id` of the event that records the refusal of the message.
    pub(crate) fn refusal_key(&self) -> String {
        format!("refused:{}", self.place())
    }

    fn place(&self) -> String {
        format!("{}.{}:{}", self.gateway, self.connection, self.number)
    }
}

/// Builds the event of a request and its subject. `None`: likes, which are
/// counted and not stored one by one.
pub(crate) fn build(
    identity: &ClientIdentity,
    sender: Sender,
    request: SendRequest,
    created_ms: u64,
) -> Option<(String, Event)> {
    let app = identity.app;
    Some(match request {
        SendRequest::Room { room, biz_code, text } => {
            let data = room_data(identity, room, &text, created_ms);
            let event = Event::RoomMessageSent { app, room, sender, biz_code, data };
            (subject::room(app, room, RoomKind::Msg), event)
        }
        SendRequest::Direct { to, biz_code, content } => {
            let data = direct_data(identity, &content, created_ms);
            let event = Event::DirectMessageSent { app, to, sender, biz_code, data };
            (subject::user(app, to, subject::UserKind::Msg), event)
        }
        SendRequest::Business { to, biz_code, data } => {
            let subject = match to {
                Addressee::Room(room) => subject::room(app, room, RoomKind::Biz),
                Addressee::User(user) => subject::user(app, user, subject::UserKind::Biz),
            };
            let (room, to) = (to.room(), to.user());
            (subject, Event::BusinessSent { app, room, to, sender, biz_code, data })
        }
        SendRequest::Like { .. } => return None,
    })
}

/// Builds the event that records a refused content, and its subject.
pub(crate) fn build_content_refused(
    app: AppId,
    sender: Sender,
    request: &SendRequest,
    reason: String,
) -> (String, Event) {
    let subject = match request.addressee() {
        Addressee::Room(room) => subject::room(app, room, RoomKind::Refused),
        Addressee::User(user) => subject::user(app, user, subject::UserKind::Refused),
    };
    let event = Event::ContentRefused {
        app,
        room: request.room(),
        to: request.addressee().user(),
        sender,
        biz_code: request.biz_code(),
        content: request.content().unwrap_or_default().to_owned(),
        reason,
    };
    (subject, event)
}

/// Returns the `data` of a message that the members of a room receive.
fn room_data(identity: &ClientIdentity, room: RoomId, text: &RoomText, created_ms: u64) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct RoomData<'a> {
        user_id: UserId,
        room_id: RoomId,
        #[serde(rename = "type")]
        kind: i64,
        content: &'a str,
        sender_name: &'a str,
        sender_avatar: &'a str,
        create_time: u64,
    }
    let data = RoomData {
        user_id: identity.user,
        room_id: room,
        kind: text.kind,
        content: &text.content,
        sender_name: &identity.nick_name,
        sender_avatar: &identity.avatar,
        create_time: created_ms,
    };
    serde_json::to_string(&data).expect("plain data encodes")
}

/// Returns the `data` of a direct message that its recipient receives.
fn direct_data(identity: &ClientIdentity, content: &str, created_ms: u64) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct DirectData<'a> {
        sender_id: UserId,
        content: &'a str,
        sender_name: &'a str,
        sender_avatar: &'a str,
        create_time: u64,
    }
    let data = DirectData {
        sender_id: identity.user,
        content,
        sender_name: &identity.nick_name,
        sender_avatar: &identity.avatar,
        create_time: created_ms,
    };
    serde_json::to_string(&data).expect("plain data encodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> ClientIdentity {
        ClientIdentity {
            app: "10001".parse().unwrap(),
            user: "11113".parse().unwrap(),
            nick_name: "鱼".into(),
            avatar: "/a.svg".into(),
        }
    }

    fn with_origin<T>(number: u64, then: impl FnOnce(FrameOrigin<'_>) -> T) -> T {
        let gateway = Incarnation { id: "gw-1".parse().unwrap(), epoch: 17 };
        let connection = ConnId(std::num::NonZeroU64::new(3).unwrap());
        let identity = identity();
        then(FrameOrigin { gateway: &gateway, connection, number, identity: &identity })
    }

    #[test]
    fn a_message_is_known_by_its_client_msg_id_or_by_its_place() {
        let id: ClientMsgId = "a-1".parse().unwrap();
        let keys = with_origin(5, |origin| {
            (origin.dedup_key(Some(&id)), origin.dedup_key(None), origin.refusal_key())
        });
        let expected = ("m:10001:11113:a-1", "c:gw-1.17.3:5", "refused:gw-1.17.3:5");
        assert_eq!((&*keys.0, &*keys.1, &*keys.2), expected);
    }

    #[test]
    fn a_room_message_names_its_sender_as_the_login_proved_it() {
        let sender = with_origin(1, |origin| origin.sender(None));
        let text = RoomText { kind: 2, content: "x".into() };
        let room = "7".parse().unwrap();
        let request = SendRequest::Room { room, biz_code: 5555, text };
        let (subject, event) = build(&identity(), sender, request, 99).unwrap();
        let Event::RoomMessageSent { data, .. } = event else { panic!("{event:?}") };
        assert!(subject.ends_with(".10001.room.7.msg"), "{subject}");
        let expected = r#"{"userId":11113,"roomId":7,"type":2,"content":"x","senderName":"鱼","senderAvatar":"/a.svg","createTime":99}"#;
        assert_eq!(data, expected);
    }

    #[test]
    fn a_refused_direct_message_is_recorded_at_its_addressee() {
        let sender = with_origin(1, |origin| origin.sender(None));
        let to = "100002".parse().unwrap();
        let request = SendRequest::Direct { to, biz_code: 5555, content: "bad".into() };
        let app = "10001".parse().unwrap();
        let (subject, event) = build_content_refused(app, sender, &request, "word: bad".into());
        assert!(subject.ends_with(".10001.user.100002.refused"), "{subject}");
        let Event::ContentRefused { room: None, to: Some(_), content, .. } = event else {
            panic!("{event:?}")
        };
        assert_eq!(content, "bad");
    }
}
