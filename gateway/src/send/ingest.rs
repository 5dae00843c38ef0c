//! What becomes of a business frame: may they say this, there, now? If so it
//! goes to the log, and the log's answer is the receipt.

use std::time::Duration;

use qiyu_nats::{
    chain,
    log::{APPEND_DEADLINE, AppendError, Condition},
};
use qiyu_schema::{
    ClientMsgId, MsgId, Partition, RoomId,
    command::{FindSent, fold_of},
    event::{Event, Record, Sender},
    subject::{self, RoomKind},
};
use tokio::time::Instant;
use tracing::{debug, field, warn};

use crate::{
    delivery::connection::Connection,
    frame::Reason,
    metrics::Limit,
    send::content::{Objection, Said},
    send::request::{self, Addressee, Ask, Identity},
    session::registry::Serving,
};

/// How long the owner of a partition may take to say whether it knows a message.
const QUESTION_PATIENCE: Duration = Duration::from_millis(200);

/// Stores what is asked for. The answer comes after the PubAck, never before.
pub(crate) async fn store(
    serving: &Serving,
    connection: &Connection,
    client_msg_id: &Option<ClientMsgId>,
    ask: Ask,
    arrived: Instant,
    number: u64,
) -> Result<Option<MsgId>, Reason> {
    let mut step = serving.bus.first_step("accept");
    let who = &connection.who;
    let sender = Sender {
        user: Some(who.user),
        gateway: Some(serving.gateway.clone()),
        connection: Some(connection.id),
        client_msg_id: client_msg_id.clone(),
    };
    let place = format!("{}.{}:{number}", serving.gateway, connection.id);
    let key = request::dedup_key(who, client_msg_id.as_ref(), &place);
    let (app, now_ms) = (who.app, qiyu_nats::now_ms());
    let partition = ask.partition(app);
    let (said, to_room) = (ask.words(), ask.room());
    step.note("qiyu.partition", || partition.to_string());
    step.note("qiyu.room", || to_room.map_or_else(String::new, |room| room.to_string()));
    let (subject, event) = match ask {
        Ask::Room { room, biz_code, data } => {
            may_speak(serving, connection, room).await?;
            may_be_heard(serving, who, Some(room))?;
            let data = request::room_data(who, room, &data, now_ms);
            let event = Event::RoomMessageSent { app, room, sender, biz_code, data };
            (subject::room(app, room, RoomKind::Msg), event)
        }
        Ask::Direct { to, biz_code, content } => {
            may_be_heard(serving, who, None)?;
            let data = request::direct_data(who, &content, now_ms);
            let event = Event::DirectMessageSent { app, to, sender, biz_code, data };
            (subject::user_msg(app, to), event)
        }
        Ask::Business { to, biz_code, data } => {
            let (subject, room, to) = match to {
                Addressee::Room(room) => {
                    may_speak(serving, connection, room).await?;
                    may_be_heard(serving, who, Some(room))?;
                    (subject::room(app, room, RoomKind::Biz), Some(room), None)
                }
                Addressee::User(user) => {
                    may_be_heard(serving, who, None)?;
                    (subject::user_biz(app, user), None, Some(user))
                }
            };
            (subject, Event::BusinessSent { app, room, to, sender, biz_code, data })
        }
        Ask::Like { room, count } => {
            may_speak(serving, connection, room).await?;
            serving.like(app, room, count);
            return Ok(None); // counted, not stored one by one
        }
    };
    let deadline = APPEND_DEADLINE.saturating_sub(arrived.elapsed());
    if !serving.may_act() {
        return Err(Reason::NotStored); // our lease is old: nobody may be listening to us
    }
    if serving.brakes.is_on(partition) {
        serving.metrics.too_fast(Limit::SendPartition);
        return Err(Reason::TooFast); // its deliveries are far behind already
    }
    if let Some(room) = to_room
        && !serving.limits.may_send_to(app, room)
    {
        return Err(Reason::TooFast); // its neighbours are to be heard, too
    }
    if let Some(name) = client_msg_id
        && let Some(first) = sent_before(serving, who, partition, name).await
    {
        return Ok(Some(first));
    }
    if let Some(content) = said {
        may_be_said(serving, connection, &event, content, &place).await?;
    }
    let record = Record::at(qiyu_nats::now_ms(), event);
    let handed_over = Instant::now();
    let mut appending = step.then("append");
    let trail = appending.trail();
    let appended = serving.bus.append_on_trail(subject, &record, &key, deadline, trail.as_ref());
    match appended.await {
        Ok(appended) => {
            appending.note("qiyu.msg_id", || appended.msg_id.to_string());
            serving.metrics.append.observe(handed_over.elapsed());
            let msg_id = appended.msg_id;
            debug!(%msg_id, room = to_room.map(field::display), %partition, "message stored");
            Ok(Some(msg_id))
        }
        Err(error @ AppendError::Refused { .. }) => {
            warn!(error = %chain(&error), connection = %connection.id, "message refused by the log");
            Err(Reason::NotStored)
        }
        Err(error) => {
            debug!(error = %chain(&error), connection = %connection.id, "message not stored in time");
            Err(Reason::NotStored)
        }
    }
}

/// Whether these words may be said. If not, that is in the log, too.
async fn may_be_said(
    serving: &Serving,
    connection: &Connection,
    event: &Event,
    content: String,
    place: &str,
) -> Result<(), Reason> {
    let (app, sender, biz_code, room, to) = match event {
        Event::RoomMessageSent { app, room, sender, biz_code, .. } => {
            (*app, sender, *biz_code, Some(*room), None)
        }
        Event::DirectMessageSent { app, to, sender, biz_code, .. } => {
            (*app, sender, *biz_code, None, Some(*to))
        }
        _ => return Ok(()),
    };
    let (user_id, room_id, object_id) = (connection.who.user, room, to);
    let said = Said { app_id: app, user_id, room_id, object_id, biz_code, content: &content };
    let Err(objection) = serving.content.check(&said).await else { return Ok(()) };
    if let Objection::Refused(reason) = &objection {
        let subject = match (room, to) {
            (Some(room), _) => subject::room(app, room, RoomKind::Refused),
            (None, to) => subject::user_refused(app, to.unwrap_or(user_id)),
        };
        let key = format!("refused:{place}");
        let (sender, reason) = (sender.clone(), reason.clone());
        let refused = Event::ContentRefused { app, room, to, sender, biz_code, content, reason };
        let record = Record::at(qiyu_nats::now_ms(), refused);
        let kept = serving.bus.append(subject, &record, &key, Condition::Any, APPEND_DEADLINE);
        if let Err(error) = kept.await {
            warn!(error = %chain(&error), "a refusal is not in the log");
        }
    }
    Err(objection.reason())
}

/// The message this sender has given this name, longer ago than the bus
/// remembers. Unanswered, the append goes ahead: the fold knows it again then.
async fn sent_before(
    serving: &Serving,
    who: &Identity,
    partition: Partition,
    name: &ClientMsgId,
) -> Option<MsgId> {
    let (app, user, client_msg_id) = (who.app, Some(who.user), name.clone());
    let question = FindSent { app, user, client_msg_id };
    let owner = fold_of(partition);
    match serving.bus.ask_within(&owner, &question, QUESTION_PATIENCE).await {
        Ok(first) => first,
        Err(error) => {
            debug!(user = %who.user, error = %chain(&error), "not known whether this was sent before");
            None
        }
    }
}

/// Whoever speaks is not muted, there or everywhere.
fn may_be_heard(serving: &Serving, who: &Identity, room: Option<RoomId>) -> Result<(), Reason> {
    match serving.measures.is_muted(who.app, room, who.user) {
        true => Err(Reason::Muted),
        false => Ok(()),
    }
}

/// Whoever speaks in a room is in it, and it is open.
async fn may_speak(serving: &Serving, connection: &Connection, room: RoomId) -> Result<(), Reason> {
    if connection.room() == Some(room) {
        return if connection.room_has_ended() { Err(Reason::RoomNotOpen) } else { Ok(()) };
    }
    match serving.room_is_open(connection.who.app, room).await {
        Ok(true) => Err(Reason::NotInRoom),
        Ok(false) => Err(Reason::RoomNotOpen),
        Err(_) => Err(Reason::NotStored),
    }
}
