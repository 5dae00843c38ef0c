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
    AppId, ClientMsgId, MsgId, Namespace, Partition, RoomId,
    command::{FindDuplicate, fold_group},
    event::{Event, Record, Sender},
    room::key as room_key,
    subject::{self, RoomKind},
    ticket::fresh_nonce,
};
use serde_json::Value;
use tokio::time::Instant;
use tracing::warn;

use super::{
    call::{Authorized, ServerCall},
    error::{ServerError, ServerErrorBody},
    message_data::{Destination, build_data},
    send_request::{
        BATCH_MAX, SendBatchRequest, SendBatchResponse, SendRequest, SendResult, SentMessage,
    },
};
use crate::{context::ApiContext, messages::CHAT, texts};

/// How long a call may try to store. The HTTP server gives it twenty seconds.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the owner of a partition may take to find a duplicate.
const DUPLICATE_QUERY_TIMEOUT: Duration = Duration::from_millis(200);
/// The business codes of the system's own messages, which clients trust.
const RESERVED_BIZ_CODES: std::ops::RangeInclusive<i32> = 5600..=5699;

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

/// Checks a message, and stores it unless it is a duplicate.
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
    let partition = destination.partition(app);
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
        Ok(msg_id) => Ok(SentMessage { msg_id: msg_id.to_string() }),
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
    let kv_entry = context.bus.bucket(BucketName::Rooms).read(&room_key(app, room)).await;
    match kv_entry {
        Ok(kv_entry) => Ok(kv_entry.value.is_some()),
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
