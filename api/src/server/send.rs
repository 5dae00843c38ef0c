//! Messages that come from a server: stored, receipted, delivered, resumed and
//! found in the history like anybody's.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use qiyu_nats::{
    chain,
    log::{AppendError, Condition},
    now_ms,
    stream::BucketName,
};
use qiyu_schema::{
    AppId, ClientMsgId, MsgId, Partition, RoomId, UserId,
    command::{FindSent, fold_of},
    event::{Event, Record, Sender},
    id::BadId,
    room::key as room_key,
    subject::{self, RoomKind},
    ticket::fresh_nonce,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::warn;
use utoipa::ToSchema;

use super::{Asked, Call, Failed, Failure, maybe_id};
use crate::{edge::Edge, messages::CHAT, profile::Profile};

/// Messages in one batch.
const BATCH_MAX: usize = 100;
/// Bytes of data: what a client's frame may hold at most.
const DATA_BYTES_MAX: usize = 128 * 1024;
/// How long a call may try to store; the HTTP server gives it twenty seconds.
const STORE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the owner of a partition may take to say whether it knows a message.
const QUESTION_PATIENCE: Duration = Duration::from_millis(200);
/// What the system itself says; a client trusts it.
const RESERVED: std::ops::RangeInclusive<i32> = 5600..=5699;

/// One message to a room or to a user.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Send {
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

/// It is stored.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sent {
    /// Its place in the log.
    msg_id: String,
}

/// Up to 100 messages, stored in this order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SendBatch {
    /// Read one by one: what is wrong with one is no matter of the others.
    #[schema(value_type = Vec<Send>)]
    messages: Vec<Value>,
    /// Gives every message without a key of its own the key `<this>-<index>`; at
    /// most 61 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    idempotency_key: Option<BatchKey>,
}

/// The beginning of several keys.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct BatchKey(String);

impl TryFrom<String> for BatchKey {
    type Error = BadId;

    fn try_from(key: String) -> Result<Self, BadId> {
        // What the last message's key would be, so that no message finds it bad later.
        let longest = format!("{key}-{}", BATCH_MAX - 1);
        longest.parse::<ClientMsgId>().map(|_| Self(key))
    }
}

impl BatchKey {
    fn of(&self, index: usize) -> Option<ClientMsgId> {
        format!("{}-{index}", self.0).parse().ok()
    }
}

/// What became of each, in the order of the messages.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SentBatch {
    results: Vec<Outcome>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Outcome {
    Sent(Sent),
    Failed(Failure),
}

/// Sends one message.
#[utoipa::path(post, path = "/server/send", tag = "server", security(("apiKey" = [])), request_body = Send, responses(
    (status = 200, description = "Stored", body = Sent),
    (status = 400, description = "The body is wrong", body = Failure),
    (status = 401, description = "The key is", body = Failure),
    (status = 404, description = "The room is not open", body = Failure),
    (status = 429, description = "Deliveries are far behind; try again", body = Failure),
    (status = 503, description = "Not stored in time; the same idempotencyKey may be sent again", body = Failure),
))]
pub(super) async fn send(
    State(edge): State<Arc<Edge>>,
    asked: Asked<Send>,
) -> Result<Json<Sent>, Failed> {
    asked.answered(&edge).await
}

/// Sends several messages; each has an outcome of its own.
#[utoipa::path(post, path = "/server/batchSend", tag = "server", security(("apiKey" = [])), request_body = SendBatch, responses(
    (status = 200, description = "What became of each", body = SentBatch),
    (status = 400, description = "The body is wrong, or holds over 100 messages", body = Failure),
    (status = 401, description = "The key is wrong", body = Failure),
))]
pub(super) async fn send_batch(
    State(edge): State<Arc<Edge>>,
    asked: Asked<SendBatch>,
) -> Result<Json<SentBatch>, Failed> {
    asked.answered(&edge).await
}

impl Call for Send {
    type Answer = Sent;

    async fn answer(self, edge: &Edge) -> Result<Sent, Failed> {
        store(edge, self, Instant::now() + STORE_DEADLINE).await
    }
}

impl Call for SendBatch {
    type Answer = SentBatch;

    /// One after the other, so that their order is the log's.
    async fn answer(self, edge: &Edge) -> Result<SentBatch, Failed> {
        if BATCH_MAX < self.messages.len() {
            return Err(Failed::asked("a batch holds at most 100 messages"));
        }
        let deadline = Instant::now() + STORE_DEADLINE;
        let mut results = Vec::with_capacity(self.messages.len());
        for (index, message) in self.messages.into_iter().enumerate() {
            let key = self.idempotency_key.as_ref().and_then(|key| key.of(index));
            results.push(match one_of_several(edge, message, key, deadline).await {
                Ok(sent) => Outcome::Sent(sent),
                Err(failed) => Outcome::Failed(failed.failure()),
            });
        }
        Ok(SentBatch { results })
    }
}

async fn one_of_several(
    edge: &Edge,
    message: Value,
    key: Option<ClientMsgId>,
    deadline: Instant,
) -> Result<Sent, Failed> {
    let message: Send = serde_json::from_value(message)
        .map_err(|error| Failed::asked(format!("message: {error}")))?;
    if deadline <= Instant::now() {
        return Err(unstored()); // those before it took all the time
    }
    let idempotency_key = message.idempotency_key.clone().or(key);
    store(edge, Send { idempotency_key, ..message }, deadline).await
}

fn unstored() -> Failed {
    Failed::new(StatusCode::SERVICE_UNAVAILABLE, "not stored in time")
}

/// Where a message goes.
#[derive(Clone, Copy)]
enum To {
    Room(RoomId),
    User(UserId),
}

async fn store(edge: &Edge, message: Send, deadline: Instant) -> Result<Sent, Failed> {
    let app = edge.app_of(message.app_id).map_err(Failed::asked)?;
    let biz_code = message.biz_code.unwrap_or(CHAT);
    if RESERVED.contains(&biz_code) {
        return Err(Failed::asked("bizCodes 5600 to 5699 are the system's own"));
    }
    let to = match (message.room_id, message.user_id) {
        (Some(room), None) => To::Room(room),
        (None, Some(user)) => To::User(user),
        _ => return Err(Failed::asked("give either roomId or userId")),
    };
    let partition = match to {
        To::Room(room) => Partition::of_room(app, room),
        To::User(user) => Partition::of_user(app, user),
    };
    if let To::Room(room) = to
        && !is_open(edge, app, room).await?
    {
        return Err(Failed::new(StatusCode::NOT_FOUND, "the room is not open"));
    }
    let data = data(edge, to, &message).await?;
    if edge.brakes.is_on(partition) {
        return Err(Failed::new(StatusCode::TOO_MANY_REQUESTS, "deliveries are far behind"));
    }
    if let Some(first) = sent_before(edge, app, partition, message.idempotency_key.as_ref()).await {
        return Ok(Sent { msg_id: first.to_string() });
    }
    let key = match &message.idempotency_key {
        Some(key) => format!("s:{app}:{key}"),
        None => format!("s::{:032x}", fresh_nonce()),
    };
    let client_msg_id = message.idempotency_key;
    let sender = Sender { user: message.from, gateway: None, connection: None, client_msg_id };
    let (subject, event) = match to {
        To::Room(room) => (
            subject::room(app, room, RoomKind::Msg),
            Event::RoomMessageSent { app, room, sender, biz_code, data },
        ),
        To::User(to) => (
            subject::user_msg(app, to),
            Event::DirectMessageSent { app, to, sender, biz_code, data },
        ),
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let record = Record::at(qiyu_nats::now_ms(), event);
    match edge.bus.append(subject, &record, &key, Condition::Any, left).await {
        Ok(appended) => Ok(Sent { msg_id: appended.msg_id.to_string() }),
        Err(error) => {
            warn!(%app, error = %chain(&error), "a server's message is not stored");
            Err(match error {
                AppendError::Refused { .. } => Failed::asked("the log does not take this message"),
                _ => unstored(),
            })
        }
    }
}

async fn is_open(edge: &Edge, app: AppId, room: RoomId) -> Result<bool, Failed> {
    let slot = edge.bus.bucket(BucketName::Rooms).read(&room_key(app, room)).await;
    match slot {
        Ok(slot) => Ok(slot.value.is_some()),
        Err(error) => {
            warn!(%room, error = %chain(&error), "rooms not read");
            Err(Failed::new(StatusCode::SERVICE_UNAVAILABLE, "not stored: the rooms do not answer"))
        }
    }
}

/// The message this key was used for, longer ago than the bus remembers.
/// Unanswered, the append goes ahead: the fold knows it again then.
async fn sent_before(
    edge: &Edge,
    app: AppId,
    partition: Partition,
    key: Option<&ClientMsgId>,
) -> Option<MsgId> {
    let question = FindSent { app, user: None, client_msg_id: key?.clone() };
    edge.bus.ask_within(&fold_of(partition), &question, QUESTION_PATIENCE).await.ok().flatten()
}

/// What the recipients will see.
async fn data(edge: &Edge, to: To, message: &Send) -> Result<String, Failed> {
    let data = match (&message.data, &message.content) {
        (Some(Value::String(text)), None) => text.clone(),
        (Some(data), None) if !data.is_null() => data.to_string(),
        (None, Some(content)) => chat(edge, to, message, content).await,
        _ => return Err(Failed::asked("give either data or content")),
    };
    if DATA_BYTES_MAX < data.len() {
        return Err(Failed::asked("data is longer than 131072 bytes"));
    }
    Ok(data)
}

/// A chat message as clients send it.
async fn chat(edge: &Edge, to: To, message: &Send, content: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Chat<'a> {
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
        Some(from) => edge.known(&[from]).await.pop(),
        None => None,
    };
    let known = known.unwrap_or(Profile { nick_name: String::new(), avatar: String::new() });
    let (user_id, sender_id, room_id, kind) = match to {
        To::Room(room) => (message.from, None, Some(room), Some(1)),
        To::User(_) => (None, message.from, None, None),
    };
    let chat = Chat {
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
