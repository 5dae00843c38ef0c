//! Follows a message in the log: the fold continues from it, and every effect about the
//! message is noted.

use std::{collections::BTreeSet, time::Duration};

use qiyu_fanout::fold::{Effect, Fold};
use qiyu_nats::{
    Bus,
    log::{LogEntry, ReadFrom},
    stream::{INBOX_AGE_MAX, OUTBOX_AGE_MAX},
};
use qiyu_schema::{
    AppId, Incarnation, Partition, RoomId, UserId,
    envelope::Envelope,
    event::{Event, MemberChange, Record, SessionChange},
    subject::{self, RoomKind},
};

use super::message::{
    AudienceMember, Decision, Departure, Direction, Expiry, GatewayEnd, MembershipStep,
    MessageKind, MessageTrace, PlannedDelivery, RecipientAck, SendCause, UnackedReport,
};

/// Time after a room message in which the log may still concern it. It is the time an
/// envelope may stay in a queue, then its gateway's removal and reassignment, and the
/// minute in which recipients may return.
const ROOM_HORIZON: Duration = Duration::from_secs(OUTBOX_AGE_MAX.as_secs() + 300);

/// Applies the message and the events after it to `fold`, which is as of right before it.
pub(super) async fn follow(
    bus: &Bus,
    partition: Partition,
    entry: &LogEntry,
    mut fold: Fold,
    user: Option<UserId>,
    trace: &mut MessageTrace,
) -> anyhow::Result<()> {
    look_around(&fold, user, trace);
    let horizon = match trace.kind.room() {
        Some(_) => trace.stored_ms.saturating_add(millis(ROOM_HORIZON)),
        None => u64::MAX, // it waits for its recipient
    };
    let filter = vec![subject::partition(partition)];
    let reader = bus.read_history(filter, ReadFrom::After(entry.seq - 1)).await?;
    let mut reader = reader.to_present_end();
    let mut beyond_horizon = false;
    while trace.taken.is_none() && trace.expiry.is_none() {
        let Some(next) = reader.next().await? else { break };
        beyond_horizon = next.written_ms > horizon;
        if beyond_horizon {
            break;
        }
        trace.searched.log_until_ms = next.written_ms;
        let Ok(record) = next.record() else { continue }; // set aside by its owner, too
        note_event(&fold, &next, &record, user, trace);
        let effects = fold.apply(next.msg_id(), record).unwrap_or_default();
        note_effects(&fold, &next, effects, trace);
        note_forgetting(&fold, &next, trace);
    }
    let at_end = reader.is_at_end() && !beyond_horizon;
    reader.close().await;
    if at_end {
        trace.searched.log_until_ms = qiyu_nats::now_ms();
        note_age(trace);
    }
    Ok(())
}

/// Notes that a direct message expired: only the newest wait, and none longer than a week.
fn note_forgetting(fold: &Fold, entry: &LogEntry, trace: &mut MessageTrace) {
    let MessageKind::Direct { to, .. } = trace.kind else { return };
    let repeated = matches!(trace.decision, Decision::Duplicate { .. });
    if repeated || trace.taken.is_some() || fold.waits(trace.app, to, trace.msg_id) {
        return;
    }
    let aged = waits_until_ms(trace) <= entry.written_ms;
    let because = (!aged).then(|| entry.msg_id());
    trace.expiry = Some(Expiry { at_ms: entry.written_ms, because });
}

fn note_age(trace: &mut MessageTrace) {
    let until_ms = waits_until_ms(trace);
    let whispered = matches!(trace.kind, MessageKind::Direct { .. });
    let waits = trace.taken.is_none() && !matches!(trace.decision, Decision::Duplicate { .. });
    if whispered && waits && trace.expiry.is_none() && until_ms <= qiyu_nats::now_ms() {
        trace.expiry = Some(Expiry { at_ms: until_ms, because: None });
    }
}

fn waits_until_ms(trace: &MessageTrace) -> u64 {
    trace.accepted_ms.saturating_add(millis(INBOX_AGE_MAX))
}

/// Notes the audience right before the message.
fn look_around(fold: &Fold, user: Option<UserId>, trace: &mut MessageTrace) {
    let Some(room) = trace.kind.room() else { return };
    let Some(state) = fold.room_state(trace.app, room) else {
        trace.decision = Decision::NoRecipient;
        return;
    };
    if let Some(user) = user {
        let measures = state.measures.iter().find(|(of, _)| *of == user);
        trace.about.get_or_insert_default().measures = measures.map(|(_, entry)| entry.clone());
    }
    if let Some((closed, _)) = state.closed {
        trace.decision = Decision::RoomClosed { closed };
        return;
    }
    let silent = match trace.kind {
        MessageKind::Room { .. } => trace.sender.as_ref().and_then(|sender| sender.user),
        _ => None, // all members receive a closing
    };
    let hears = state.members.into_iter().filter(|member| Some(member.user) != silent);
    trace.audience = hears
        .map(|member| AudienceMember {
            user: member.user,
            gateway: member.gateway,
            connection: member.connection,
            joined: Some(member.joined),
        })
        .collect();
}

/// Notes the facts an event itself states about the message or its audience. `fold` is as
/// of before the event.
fn note_event(
    fold: &Fold,
    entry: &LogEntry,
    record: &Record,
    user: Option<UserId>,
    trace: &mut MessageTrace,
) {
    let at_ms = entry.written_ms;
    match &record.event {
        Event::RoomMessageSent { app, sender, .. }
        | Event::DirectMessageSent { app, sender, .. }
            if entry.msg_id() == trace.msg_id =>
        {
            let first = sender.client_msg_id.as_ref();
            let first =
                first.and_then(|id| fold.find_sent(*app, sender.namespace(), id, record.at_ms));
            if let Some(first) = first {
                trace.decision = Decision::Duplicate { first };
                trace.audience.clear();
            }
        }
        Event::MembersChanged { app, room, gateway, changes }
            if *app == trace.app && Some(*room) == trace.kind.room() =>
        {
            for change in changes {
                match *change {
                    MemberChange::Left { connection, user, last_seen: heard } => {
                        let theirs = |h: &AudienceMember| {
                            h.gateway == *gateway && h.connection == connection
                        };
                        if trace.audience.iter().any(theirs) {
                            let gateway = gateway.clone();
                            let left = Departure { user, gateway, connection, at_ms, heard };
                            trace.departures.push(left);
                        }
                    }
                    MemberChange::Joined { user: who, .. } if user == Some(who) => {
                        let about = trace.about.get_or_insert_default();
                        let step = MembershipStep { at_ms, direction: Direction::Entered };
                        about.after.get_or_insert(step);
                    }
                    _ => {}
                }
            }
        }
        Event::GatewayGone { gateway } => {
            let over = |g: &Incarnation| g.id == gateway.id && g.epoch <= gateway.epoch;
            let mut gone: Vec<Incarnation> =
                trace.dispatches.iter().map(|d| d.to.clone()).filter(|g| over(g)).collect();
            gone.sort_unstable();
            gone.dedup();
            for gateway in gone {
                if trace.gone(&gateway).is_none() {
                    trace.gateways_gone.push(GatewayEnd { gateway, at_ms });
                }
            }
        }
        Event::Unacknowledged { gateway, messages, .. } => {
            let about = messages.iter().filter(|message| message.msg_id == trace.msg_id);
            trace.left_behind.extend(about.map(|message| UnackedReport {
                gateway: gateway.clone(),
                at_ms,
                users: message.users.clone(),
                sends: message.sends,
            }));
        }
        Event::SessionsChanged { gateway, changes, .. } => {
            let took = |change: &SessionChange| match change {
                SessionChange::Read { msg_ids, .. } => msg_ids.contains(&trace.msg_id),
                _ => false,
            };
            if changes.iter().any(took) {
                trace.taken = Some(RecipientAck { gateway: gateway.clone(), at_ms });
            }
        }
        _ => {}
    }
}

/// Notes the effects of the fold about the message. `fold` is as of after the event.
fn note_effects(fold: &Fold, entry: &LogEntry, effects: Vec<Effect>, trace: &mut MessageTrace) {
    let (event, at_ms) = (entry.msg_id(), entry.written_ms);
    for effect in effects {
        match effect {
            Effect::Deliver { to, envelope } if envelope.msg_id() == Some(trace.msg_id) => {
                let because = match event == trace.msg_id {
                    true => SendCause::Message,
                    false => SendCause::Late { event },
                };
                let connections = match envelope {
                    Envelope::Direct { user, to: targets, .. } => {
                        trace.audience.extend(targets.iter().map(|target| AudienceMember {
                            user,
                            gateway: to.clone(),
                            connection: target.connection,
                            joined: None,
                        }));
                        targets.iter().map(|target| (target.connection, Some(user))).collect()
                    }
                    Envelope::RoomClosed { late, .. } => {
                        late.into_iter().map(|connection| (connection, None)).collect()
                    }
                    _ => Vec::new(), // those of the audience that are there
                };
                trace.dispatches.push(PlannedDelivery { to, because, at_ms, connections });
            }
            Effect::DeliverWaiting { to, user, connection, msg_ids, .. }
                if msg_ids.contains(&trace.msg_id) =>
            {
                let connections = vec![(connection, Some(user))];
                let because = SendCause::Login { event };
                trace.dispatches.push(PlannedDelivery { to, because, at_ms, connections });
            }
            Effect::Repeat { to, app, room, msg_id, connections, .. } if msg_id == trace.msg_id => {
                let members = fold.room_state(app, room).map(|state| state.members);
                let members = members.unwrap_or_default();
                let user_of = |connection| {
                    let is = |m: &&qiyu_fanout::state::Member| {
                        m.gateway == to && m.connection == connection
                    };
                    members.iter().find(is).map(|member| member.user)
                };
                let connections = connections.into_iter().map(|c| (c, user_of(c))).collect();
                let because = SendCause::Return { event };
                trace.dispatches.push(PlannedDelivery { to, because, at_ms, connections });
            }
            _ => {}
        }
    }
    let at_once = |dispatch: &PlannedDelivery| dispatch.because == SendCause::Message;
    if event == trace.msg_id
        && trace.decision == Decision::Delivered
        && !trace.dispatches.iter().any(at_once)
    {
        trace.decision = Decision::NoRecipient;
    }
}

/// Membership entries of one user that are read, the newest. With more of them the older
/// ones hardly matter.
const STEPS_MAX: usize = 64;

/// Joins and leaves of a user before the message.
#[derive(Default)]
pub(super) struct MembershipSteps {
    /// The last join or leave, on any connection.
    pub(super) last: Option<MembershipStep>,
    /// The last join.
    pub(super) entered: Option<MembershipStep>,
}

/// Reads the joins and leaves of `user` in a room before `seq`.
pub(super) async fn steps(
    bus: &Bus,
    (app, room): (AppId, RoomId),
    user: UserId,
    seq: u64,
) -> anyhow::Result<MembershipSteps> {
    let is_theirs = |change: &MemberChange| match *change {
        MemberChange::Joined { user: who, .. } | MemberChange::Left { user: who, .. } => {
            who == user
        }
        MemberChange::Unknown => false,
    };
    let changes = |entry: &LogEntry| match entry.record().ok()?.event {
        Event::MembersChanged { gateway, changes, .. } => Some((gateway, changes)),
        _ => None,
    };
    let about_them =
        |entry: &LogEntry| changes(entry).is_some_and(|(_, c)| c.iter().any(is_theirs));
    let subject = subject::room(app, room, RoomKind::Members);
    let found = bus.read_back(&subject, seq, STEPS_MAX, about_them).await?;
    let (mut steps, mut open) = (MembershipSteps::default(), BTreeSet::new());
    for (entry, (gateway, changes)) in found.iter().filter_map(|e| Some((e, changes(e)?))) {
        let step = |direction| Some(MembershipStep { at_ms: entry.written_ms, direction });
        for change in changes.iter().filter(|change| is_theirs(change)) {
            match *change {
                MemberChange::Joined { connection, .. } => {
                    open.insert((gateway.clone(), connection));
                    steps.entered = step(Direction::Entered);
                    steps.last = step(Direction::Entered);
                }
                MemberChange::Left { connection, .. } => {
                    open.remove(&(gateway.clone(), connection));
                    steps.last = step(Direction::Left);
                }
                MemberChange::Unknown => {}
            }
        }
    }
    // A connection that is still open ended with its gateway, if that has ended.
    for (gateway, _) in open {
        let subject = subject::gateway_gone(Partition::of_room(app, room), &gateway.id);
        let its_end = |entry: &LogEntry| match entry.record().map(|record| record.event) {
            Ok(Event::GatewayGone { gateway: gone }) => gateway.epoch <= gone.epoch,
            _ => false,
        };
        let ended = bus.read_back(&subject, seq, 1, its_end).await?;
        let Some(at_ms) = ended.first().map(|entry| entry.written_ms) else { continue };
        if steps.last.as_ref().is_none_or(|last| last.at_ms <= at_ms) {
            steps.last = Some(MembershipStep { at_ms, direction: Direction::Lost });
        }
    }
    Ok(steps)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
