//! The requests and responses of `/server/send` and `/server/batchSend`.

use qiyu_schema::{AppId, ClientMsgId, RoomId, UserId, id::InvalidId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{error::ServerErrorBody, ids::maybe_id};

/// Messages in one batch.
pub(super) const BATCH_MAX: usize = 100;

/// One message to a room or to a user.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = Send)]
pub(crate) struct SendRequest {
    /// Absent: the first of QIYU_APPS.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u32>)]
    pub(super) app_id: Option<AppId>,
    /// To everybody in this room. Either this or userId.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    pub(super) room_id: Option<RoomId>,
    /// To this user, wherever they are; it waits if they are nowhere.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    pub(super) user_id: Option<UserId>,
    /// 5555, a chat message, if absent. 5600 to 5699 are the system's own.
    #[serde(default)]
    pub(super) biz_code: Option<i32>,
    /// What recipients get as `data`: a string as it is, anything else as JSON text.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub(super) data: Option<Value>,
    /// Instead of data: the text of a chat message.
    #[serde(default)]
    pub(super) content: Option<String>,
    /// In whose name. They do not hear it in a room. Absent: the system's.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    pub(super) from: Option<UserId>,
    /// Shown with content. Absent: as `from` is known.
    #[serde(default)]
    pub(super) sender_name: Option<String>,
    /// Shown with content. Absent: as `from` is known.
    #[serde(default)]
    pub(super) sender_avatar: Option<String>,
    /// 1 to 64 of A-Z a-z 0-9 _ -: the same key stores nothing new within 24 h
    /// and is answered with the first msgId. Keys of different apps are different.
    #[serde(default, alias = "clientMsgId")]
    #[schema(value_type = Option<String>)]
    pub(super) idempotency_key: Option<ClientMsgId>,
}

/// The message is stored.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Sent, description = "It is stored.")]
pub(crate) struct SentMessage {
    /// Its place in the log.
    pub(super) msg_id: String,
}

/// Up to 100 messages, stored in this order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = SendBatch)]
pub(crate) struct SendBatchRequest {
    /// Read one by one: what is wrong with one is no matter of the others.
    #[schema(value_type = Vec<SendRequest>)]
    pub(super) messages: Vec<Value>,
    /// Gives every message without a key of its own the key `<this>-<index>`; at
    /// most 61 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub(super) idempotency_key: Option<BatchKey>,
}

/// The prefix of the keys of a batch.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct BatchKey(String);

impl TryFrom<String> for BatchKey {
    type Error = InvalidId;

    fn try_from(key: String) -> Result<Self, InvalidId> {
        // The key of the last message is the longest, so no message has an invalid key later.
        let longest = format!("{key}-{}", BATCH_MAX - 1);
        longest.parse::<ClientMsgId>().map(|_| Self(key))
    }
}

impl BatchKey {
    /// Returns the key of the message at `index`.
    pub(super) fn for_message(&self, index: usize) -> Option<ClientMsgId> {
        format!("{}-{index}", self.0).parse().ok()
    }
}

/// The result of each message, in the order of the messages.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SentBatch, description = "What became of each, in the order of the messages.")]
pub(crate) struct SendBatchResponse {
    pub(super) results: Vec<SendResult>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Outcome)]
pub(crate) enum SendResult {
    Sent(SentMessage),
    Failed(ServerErrorBody),
}
