//! The destination of an integrator's message, and the data that its recipients get.

use qiyu_nats::now_ms;
use qiyu_schema::{AppId, Partition, RoomId, UserId};
use serde::Serialize;
use serde_json::Value;

use super::{error::ServerError, send_request::SendRequest};
use crate::{context::ApiContext, profile::Profile, texts};

/// Bytes of data: the limit of a client's frame.
const DATA_BYTES_MAX: usize = 128 * 1024;

/// The destination of a message.
#[derive(Clone, Copy)]
pub(super) enum Destination {
    Room(RoomId),
    User(UserId),
}

impl Destination {
    /// Returns the partition of the log that takes the message.
    pub(super) fn partition(self, app: AppId) -> Partition {
        match self {
            Self::Room(room) => Partition::of_room(app, room),
            Self::User(user) => Partition::of_user(app, user),
        }
    }
}

/// Builds the data that recipients get.
pub(super) async fn build_data(
    context: &ApiContext,
    destination: Destination,
    message: &SendRequest,
) -> Result<String, ServerError> {
    let data = match (&message.data, &message.content) {
        (Some(Value::String(text)), None) => text.clone(),
        (Some(data), None) if !data.is_null() => data.to_string(),
        (None, Some(content)) => chat_message(context, destination, message, content).await,
        _ => return Err(ServerError::bad_request(texts::server::DATA_AND_CONTENT)),
    };
    if data.len() > DATA_BYTES_MAX {
        return Err(ServerError::bad_request(texts::server::DATA_TOO_LONG));
    }
    Ok(data)
}

/// Builds a chat message as clients send it.
async fn chat_message(
    context: &ApiContext,
    destination: Destination,
    message: &SendRequest,
    content: &str,
) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct ChatMessage<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<UserId>,
        #[serde(skip_serializing_if = "Option::is_none")]
        sender_id: Option<UserId>,
        #[serde(skip_serializing_if = "Option::is_none")]
        room_id: Option<RoomId>,
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        kind: Option<i64>,
        content: &'a str,
        sender_name: &'a str,
        sender_avatar: &'a str,
        create_time: u64,
    }
    let named = message.sender_name.is_some() && message.sender_avatar.is_some();
    let known = match message.from.filter(|_| !named) {
        Some(from) => context.stored_profile(from).await,
        None => Profile { nick_name: String::new(), avatar: String::new() },
    };
    let (user_id, sender_id, room_id, kind) = match destination {
        Destination::Room(room) => (message.from, None, Some(room), Some(1)),
        Destination::User(_) => (None, message.from, None, None),
    };
    let chat = ChatMessage {
        user_id,
        sender_id,
        room_id,
        kind,
        content,
        sender_name: message.sender_name.as_deref().unwrap_or(&known.nick_name),
        sender_avatar: message.sender_avatar.as_deref().unwrap_or(&known.avatar),
        create_time: now_ms(),
    };
    serde_json::to_string(&chat).expect("plain data encodes")
}
