//! `/server/send` and `/server/batchSend`: messages of an integrator's server. They are stored,
//! delivered, resumed and found in the history like messages of clients.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, http::StatusCode};
use qiyu_nats::{
    chain,
    log::{AppendCondition, AppendError},
    now_ms,
    stream::BucketName,
};
use qiyu_schema::{
    AppId, ClientMsgId, MsgId, Namespace, Partition, RoomId, UserId,
    command::{FindDuplicate, fold_group},
    event::{Event, Record, Sender},
    id::InvalidId,
    room::key as room_key,
    subject::{self, RoomKind},
    ticket::fresh_nonce,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;
use utoipa::ToSchema;

use super::{
    call::{Authorized, ServerCall},
    error::{ServerError, ServerErrorBody},
    ids::maybe_id,
};
use crate::{context::ApiContext, messages::CHAT, profile::Profile, texts};

/// Messages in one batch.
const BATCH_MAX: usize = 100;
/// Bytes of data: the limit of a client's frame.
const DATA_BYTES_MAX: usize = 128 * 1024;
/// How long a call may try to store. The HTTP server gives it twenty seconds.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the owner of a partition may take to find a duplicate.
const DUPLICATE_QUERY_TIMEOUT: Duration = Duration::from_millis(200);
/// The business codes of the system's own messages, which clients trust.
const RESERVED_BIZ_CODES: std::ops::RangeInclusive<i32> = 5600..=5699;

/// One message to a room or to a user.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = Send)]
pub(crate) struct SendRequest {
    /// Absent: the first of QIYU_APPS.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u32>)]
    app_id: Option<AppId>,
    /// To everybody in this room. Either this or userId.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    room_id: Option<RoomId>,
    /// To this user, wherever they are; it waits if they are nowhere.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    user_id: Option<UserId>,
    /// 5555, a chat message, if absent. 5600 to 5699 are the system's own.
    #[serde(default)]
    biz_code: Option<i32>,
    /// What recipients get as `data`: a string as it is, anything else as JSON text.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    data: Option<Value>,
    /// Instead of data: the text of a chat message.
    #[serde(default)]
    content: Option<String>,
    /// In whose name. They do not hear it in a room. Absent: the system's.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    from: Option<UserId>,
    /// Shown with content. Absent: as `from` is known.
    #[serde(default)]
    sender_name: Option<String>,
    /// Shown with content. Absent: as `from` is known.
    #[serde(default)]
    sender_avatar: Option<String>,
    /// 1 to 64 of A-Z a-z 0-9 _ -: the same key stores nothing new within 24 h
    /// and is answered with the first msgId. Keys of different apps are different.
    #[serde(default, alias = "clientMsgId")]
    #[schema(value_type = Option<String>)]
    idempotency_key: Option<ClientMsgId>,
}

/// The message is stored.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Sent, description = "It is stored.")]
pub(crate) struct SentMessage {
    /// Its place in the log.
    msg_id: String,
}

/// Up to 100 messages, stored in this order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = SendBatch)]
pub(crate) struct SendBatchRequest {
    /// Read one by one: what is wrong with one is no matter of the others.
    #[schema(value_type = Vec<SendRequest>)]
    messages: Vec<Value>,
    /// Gives every message without a key of its own the key `<this>-<index>`; at
    /// most 61 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    idempotency_key: Option<BatchKey>,
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
    fn for_message(&self, index: usize) -> Option<ClientMsgId> {
        format!("{}-{index}", self.0).parse().ok()
    }
}

/// The result of each message, in the order of the messages.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SentBatch, description = "What became of each, in the order of the messages.")]
pub(crate) struct SendBatchResponse {
    results: Vec<SendResult>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Outcome)]
pub(crate) enum SendResult {
    Sent(SentMessage),
    Failed(ServerErrorBody),
}

/// Sends one message.
#[utoipa::path(post, path = "/server/send", tag = "server", security(("apiKey" = [])), request_body = SendRequest, responses(
    (status = 200, description = "Stored", body = SentMessage),
    (status = 400, description = "The body is wrong", body = ServerErrorBody),
    (status = 401, description = "The key is", body = ServerErrorBody),
    (status = 404, description = "The room is not open", body = ServerErrorBody),
    (status = 429, description = "Deliveries are far behind; try again", body = ServerErrorBody),
    (status = 503, description = "Not stored in time; the same idempotencyKey may be sent again", body = ServerErrorBody),
))]
pub(super) async fn send(
    State(context): State<Arc<ApiContext>>,
    call: Authorized<SendRequest>,
) -> Result<Json<SentMessage>, ServerError> {
    call.respond(&context).await
}

/// Sends several messages; each has an outcome of its own.
#[utoipa::path(post, path = "/server/batchSend", tag = "server", security(("apiKey" = [])), request_body = SendBatchRequest, responses(
    (status = 200, description = "What became of each", body = SendBatchResponse),
    (status = 400, description = "The body is wrong, or holds over 100 messages", body = ServerErrorBody),
    (status = 401, description = "The key is wrong", body = ServerErrorBody),
))]
pub(super) async fn send_batch(
    State(context): State<Arc<ApiContext>>,
    call: Authorized<SendBatchRequest>,
) -> Result<Json<SendBatchResponse>, ServerError> {
    call.respond(&context).await
}

impl ServerCall for SendRequest {
    type Response = SentMessage;

    async fn handle(self, context: &ApiContext) -> Result<SentMessage, ServerError> {
        handle_send(context, self, Instant::now() + STORE_TIMEOUT).await
    }
}

impl ServerCall for SendBatchRequest {
    type Response = SendBatchResponse;

    /// Sends one message after the other, so that their order is that of the log.
    async fn handle(self, context: &ApiContext) -> Result<SendBatchResponse, ServerError> {
        if self.messages.len() > BATCH_MAX {
            return Err(ServerError::bad_request(texts::server::BATCH_TOO_LONG));
        }
        let deadline = Instant::now() + STORE_TIMEOUT;
        let mut results = Vec::with_capacity(self.messages.len());
        for (index, message) in self.messages.into_iter().enumerate() {
            let key = self.idempotency_key.as_ref().and_then(|key| key.for_message(index));
            results.push(match send_one_of_batch(context, message, key, deadline).await {
                Ok(sent) => SendResult::Sent(sent),
                Err(error) => SendResult::Failed(error.body()),
            });
        }
        Ok(SendBatchResponse { results })
    }
}

async fn send_one_of_batch(
    context: &ApiContext,
    message: Value,
    key: Option<ClientMsgId>,
    deadline: Instant,
) -> Result<SentMessage, ServerError> {
    let message: SendRequest = serde_json::from_value(message)
        .map_err(|error| ServerError::bad_request(format!("message: {error}")))?;
    if Instant::now() >= deadline {
        return Err(not_stored()); // the messages before it took all the time
    }
    let idempotency_key = message.idempotency_key.clone().or(key);
    handle_send(context, SendRequest { idempotency_key, ..message }, deadline).await
}

fn not_stored() -> ServerError {
    ServerError::new(StatusCode::SERVICE_UNAVAILABLE, texts::server::NOT_STORED)
}

/// The destination of a message.
#[derive(Clone, Copy)]
enum Destination {
    Room(RoomId),
    User(UserId),
}

async fn handle_send(
    context: &ApiContext,
    message: SendRequest,
    deadline: Instant,
) -> Result<SentMessage, ServerError> {
    let app = context.app_or_default(message.app_id).map_err(ServerError::bad_request)?;
    let biz_code = message.biz_code.unwrap_or(CHAT);
    if RESERVED_BIZ_CODES.contains(&biz_code) {
        return Err(ServerError::bad_request(texts::server::RESERVED_BIZ_CODE));
    }
    let destination = match (message.room_id, message.user_id) {
        (Some(room), None) => Destination::Room(room),
        (None, Some(user)) => Destination::User(user),
        _ => return Err(ServerError::bad_request(texts::server::ROOM_AND_USER)),
    };
    let partition = match destination {
        Destination::Room(room) => Partition::of_room(app, room),
        Destination::User(user) => Partition::of_user(app, user),
    };
    if let Destination::Room(room) = destination
        && !is_open(context, app, room).await?
    {
        return Err(ServerError::new(StatusCode::NOT_FOUND, texts::server::ROOM_NOT_OPEN));
    }
    let data = build_data(context, destination, &message).await?;
    if context.backpressure.is_active(partition) {
        return Err(ServerError::new(StatusCode::TOO_MANY_REQUESTS, texts::server::FAR_BEHIND));
    }
    if let Some(first) =
        find_duplicate(context, app, partition, message.idempotency_key.as_ref()).await
    {
        return Ok(SentMessage { msg_id: first.to_string() });
    }
    let key = match &message.idempotency_key {
        Some(key) => format!("s:{app}:{key}"),
        None => format!("s::{:032x}", fresh_nonce()),
    };
    let client_msg_id = message.idempotency_key;
    let sender = Sender { user: message.from, gateway: None, connection: None, client_msg_id };
    let (subject, event) = match destination {
        Destination::Room(room) => (
            subject::room(app, room, RoomKind::Msg),
            Event::RoomMessageSent { app, room, sender, biz_code, data },
        ),
        Destination::User(to) => (
            subject::user(app, to, subject::UserKind::Msg),
            Event::DirectMessageSent { app, to, sender, biz_code, data },
        ),
    };
    let time_left = deadline.saturating_duration_since(Instant::now());
    let record = Record::at(now_ms(), event);
    match context.bus.append(subject, &record, &key, AppendCondition::Any, time_left).await {
        Ok(appended) => Ok(SentMessage { msg_id: appended.msg_id.to_string() }),
        Err(error) => {
            warn!(%app, error = %chain(&error), "a server's message is not stored");
            Err(match error {
                AppendError::Refused { .. } => {
                    ServerError::bad_request(texts::server::REFUSED_BY_LOG)
                }
                _ => not_stored(),
            })
        }
    }
}

async fn is_open(context: &ApiContext, app: AppId, room: RoomId) -> Result<bool, ServerError> {
    let slot = context.bus.bucket(BucketName::Rooms).read(&room_key(app, room)).await;
    match slot {
        Ok(slot) => Ok(slot.value.is_some()),
        Err(error) => {
            warn!(%room, error = %chain(&error), "rooms not read");
            Err(ServerError::new(StatusCode::SERVICE_UNAVAILABLE, texts::server::NOT_STORED_ROOMS))
        }
    }
}

/// Returns the first message with this key, also one from before the bus's deduplication window.
/// Without a reply the message is appended, and the fold marks a duplicate.
async fn find_duplicate(
    context: &ApiContext,
    app: AppId,
    partition: Partition,
    key: Option<&ClientMsgId>,
) -> Option<MsgId> {
    let query = FindDuplicate { app, namespace: Namespace::SERVER, client_msg_id: key?.clone() };
    context
        .bus
        .request_with_timeout(&fold_group(partition), &query, DUPLICATE_QUERY_TIMEOUT)
        .await
        .ok()
        .flatten()
}

/// Builds the data that recipients get.
async fn build_data(
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
