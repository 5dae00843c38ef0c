//! Handling a send: checks, then one append to the log. The log's confirmation
//! is the receipt.

use std::time::Duration;

use qiyu_nats::{
    chain,
    log::{APPEND_DEADLINE, AppendCondition, AppendError},
};
use qiyu_schema::{
    ClientMsgId, MsgId, Namespace, Partition, RoomId,
    command::{FindDuplicate, fold_group},
    event::Record,
};
use tokio::time::Instant;
use tracing::{debug, error, field, warn};

use super::{
    checks::{self, Admission, Rejection, RoomPresence, SendState},
    content::{ContentObjection, ContentQuery},
    event::{self, FrameOrigin},
    request::SendRequest,
};
use crate::{
    delivery::connection::Connection, frame::RefusalCode, instance::GatewayInstance, metrics::Limit,
};

/// How long the owner of a partition may take to answer whether it knows a message.
const FIND_DUPLICATE_TIMEOUT: Duration = Duration::from_millis(200);

/// A parsed business frame.
#[derive(Debug)]
pub(crate) struct ReceivedFrame {
    pub(crate) client_msg_id: Option<ClientMsgId>,
    pub(crate) request: SendRequest,
    pub(crate) received_at: Instant,
    /// The number of the frame among those of its connection that were handled.
    pub(crate) number: u64,
}

/// Checks a request and appends its event to the log. Returns the message's id
/// after the log's confirmation, never before; `None` for likes.
pub(crate) async fn handle_send(
    instance: &GatewayInstance,
    connection: &Connection,
    frame: ReceivedFrame,
) -> Result<Option<MsgId>, RefusalCode> {
    let ReceivedFrame { client_msg_id, request, received_at, number } = frame;
    let client_msg_id = client_msg_id.as_ref();
    let identity = &connection.identity;
    let (app, room, created_ms) = (identity.app, request.room(), qiyu_nats::now_ms());
    let partition = request.partition(app);
    let mut span = instance.bus.start_trace("accept");
    span.set_attribute("qiyu.partition", || partition.to_string());
    span.set_attribute("qiyu.room", || room.map_or_else(String::new, |room| room.to_string()));
    let deadline = APPEND_DEADLINE.saturating_sub(received_at.elapsed());
    let origin =
        FrameOrigin { gateway: &instance.gateway, connection: connection.id, number, identity };
    let state = LiveState { instance, connection };
    match checks::check_request(&state, app, client_msg_id, &request).await {
        Ok(Admission::Append) => {}
        Ok(Admission::CountLikes { room, count }) => {
            instance.likes.add(app, room, count);
            return Ok(None);
        }
        Ok(Admission::Duplicate(first)) => return Ok(Some(first)),
        Err(rejection) => {
            let code = rejection.code();
            if let Rejection::Content { reason } = rejection {
                record_refused_content(instance, origin, client_msg_id, &request, reason).await;
            }
            return Err(code);
        }
    }
    let sender = origin.sender(client_msg_id);
    let key = origin.dedup_key(client_msg_id);
    let Some((subject, event)) = event::build(identity, sender, request, created_ms) else {
        error!(connection = %connection.id, "an admitted request has no event");
        return Err(RefusalCode::NotStored);
    };
    let record = Record::at(qiyu_nats::now_ms(), event);
    let append_started = Instant::now();
    let mut appending = span.next_span("append");
    let trace_context = appending.trace_context();
    let appended =
        instance.bus.append_traced(subject, &record, &key, deadline, trace_context.as_ref());
    let msg_id = match appended.await {
        Ok(msg_id) => msg_id,
        Err(error) => {
            log_append_error(&error, connection);
            return Err(RefusalCode::NotStored);
        }
    };
    appending.set_attribute("qiyu.msg_id", || msg_id.to_string());
    instance.metrics.append_duration_seconds.observe(append_started.elapsed());
    debug!(%msg_id, room = room.map(field::display), %partition, "message stored");
    Ok(Some(msg_id))
}

fn log_append_error(error: &AppendError, connection: &Connection) {
    let connection = connection.id;
    if matches!(error, AppendError::Refused { .. }) {
        warn!(error = %chain(error), %connection, "message refused by the log");
    } else {
        debug!(error = %chain(error), %connection, "message not stored in time");
    }
}

/// Appends the refusal of a content to the log, so that moderators can review it.
async fn record_refused_content(
    instance: &GatewayInstance,
    origin: FrameOrigin<'_>,
    client_msg_id: Option<&ClientMsgId>,
    request: &SendRequest,
    reason: String,
) {
    let sender = origin.sender(client_msg_id);
    let (subject, event) =
        event::build_content_refused(origin.identity.app, sender, request, reason);
    let record = Record::at(qiyu_nats::now_ms(), event);
    let (key, any) = (origin.refusal_key(), AppendCondition::Any);
    if let Err(error) = instance.bus.append(subject, &record, &key, any, APPEND_DEADLINE).await {
        warn!(error = %chain(&error), "content refusal not stored");
    }
}

/// The state of a connection and its gateway that the checks read.
struct LiveState<'a> {
    instance: &'a GatewayInstance,
    connection: &'a Connection,
}

impl SendState for LiveState<'_> {
    fn presence_in(&self, room: RoomId) -> RoomPresence {
        if self.connection.room() != Some(room) {
            RoomPresence::Outside
        } else if self.connection.room_has_ended() {
            RoomPresence::InsideClosed
        } else {
            RoomPresence::Inside
        }
    }

    async fn is_room_open(&self, room: RoomId) -> Option<bool> {
        self.instance.is_room_open(self.connection.identity.app, room).await.ok()
    }

    fn is_muted(&self, room: Option<RoomId>) -> bool {
        let identity = &self.connection.identity;
        self.instance.sanctions.is_muted(identity.app, room, identity.user)
    }

    fn has_fresh_lease(&self) -> bool {
        self.instance.may_act()
    }

    fn partition_admits(&self, partition: Partition) -> bool {
        let behind = self.instance.backpressure.is_active(partition);
        if behind {
            self.instance.metrics.count_rate_limited(Limit::SendPartition);
        }
        !behind
    }

    fn room_admits(&self, room: RoomId) -> bool {
        self.instance.rate_limits.admits_message_to(self.connection.identity.app, room)
    }

    /// Asks the owner of the partition, which remembers messages for longer than
    /// the bus. If it does not answer, the append goes ahead: the fold marks
    /// the second copy as a duplicate.
    async fn find_duplicate(&self, partition: Partition, id: &ClientMsgId) -> Option<MsgId> {
        let identity = &self.connection.identity;
        let (app, namespace) = (identity.app, Namespace::of_user(identity.user));
        let query = FindDuplicate { app, namespace, client_msg_id: id.clone() };
        let owner = fold_group(partition);
        match self.instance.bus.request_with_timeout(&owner, &query, FIND_DUPLICATE_TIMEOUT).await {
            Ok(first) => first,
            Err(error) => {
                debug!(user = %identity.user, error = %chain(&error), "look-up of a duplicate failed");
                None
            }
        }
    }

    async fn check_content(
        &self,
        request: &SendRequest,
        content: &str,
    ) -> Result<(), ContentObjection> {
        let identity = &self.connection.identity;
        let query = ContentQuery {
            app_id: identity.app,
            user_id: identity.user,
            room_id: request.room(),
            object_id: request.addressee().user(),
            biz_code: request.biz_code(),
            content,
        };
        self.instance.content.check(&query).await
    }
}
