//! What the log tells after a message: the fold goes on from it, and whatever
//! the fold asks for about this message is noted.

use std::{collections::BTreeSet, time::Duration};

use qiyu_fanout::fold::{Effect, Fold};
use qiyu_nats::{
    Bus,
    log::{From, LogEntry},
    stream::{INBOX_AGE_MAX, OUTBOX_AGE_MAX},
};
use qiyu_schema::{
    AppId, Incarnation, Partition, RoomId, UserId,
    envelope::Envelope,
    event::{Event, MemberChange, Record, SessionChange},
    subject::{self, RoomKind},
};

use super::life::{
    Because, Departure, Direction, Dispatch, Fate, Forgotten, Gone, Hearer, LeftBehind, Life, Step,
    Taken, What,
};

/// How long after a room message something may still be done about it: as long
/// as an envelope may lie in a queue, then its gateway's burial and takeover,
/// and the minute in which those who lost it may come back.
const ROOM_HORIZON: Duration = Duration::from_secs(OUTBOX_AGE_MAX.as_secs() + 300);

/// Folds the message and what follows it into `fold`, which is as of right before it.
pub(super) async fn follow(
    bus: &Bus,
    partition: Partition,
    entry: &LogEntry,
    mut fold: Fold,
    user: Option<UserId>,
    life: &mut Life,
) -> anyhow::Result<()> {
    look_around(&fold, user, life);
    let horizon = match life.what.room() {
        Some(_) => life.stored_ms.saturating_add(millis(ROOM_HORIZON)),
        None => u64::MAX, // it waits for its recipient
    };
    let filter = vec![subject::partition(partition)];
    let mut reader = bus.read_history(filter, From::After(entry.seq - 1)).await?;
    let mut left = reader.pending_at_start();
    while 0 < left && life.taken.is_none() && life.forgotten.is_none() {
        let next = reader.next().await?;
        if horizon < next.written_ms {
            break;
        }
        life.searched.log_until_ms = next.written_ms;
        left = next.pending;
        let Ok(record) = next.record() else { continue }; // set aside by its owner, too
        note_event(&fold, &next, &record, user, life);
        let effects = fold.apply(next.msg_id(), record).unwrap_or_default();
        note_effects(&fold, &next, effects, life);
        note_forgetting(&fold, &next, life);
    }
    reader.close().await;
    if left == 0 {
        life.searched.log_until_ms = qiyu_nats::now_ms();
        note_age(life);
    }
    Ok(())
}

/// A 1:1 message that waits no more and was not acknowledged: of those that wait
/// only the newest are kept, and none longer than a week.
fn note_forgetting(fold: &Fold, entry: &LogEntry, life: &mut Life) {
    let What::Whispered { to, .. } = life.what else { return };
    let repeated = matches!(life.fate, Fate::Repeated { .. });
    if repeated || life.taken.is_some() || fold.waits(life.app, to, life.msg_id) {
        return;
    }
    let aged = waits_until_ms(life) <= entry.written_ms;
    let because = (!aged).then(|| entry.msg_id());
    life.forgotten = Some(Forgotten { at_ms: entry.written_ms, because });
}

fn note_age(life: &mut Life) {
    let until_ms = waits_until_ms(life);
    let whispered = matches!(life.what, What::Whispered { .. });
    let waits = life.taken.is_none() && !matches!(life.fate, Fate::Repeated { .. });
    if whispered && waits && life.forgotten.is_none() && until_ms <= qiyu_nats::now_ms() {
        life.forgotten = Some(Forgotten { at_ms: until_ms, because: None });
    }
}

fn waits_until_ms(life: &Life) -> u64 {
    life.accepted_ms.saturating_add(millis(INBOX_AGE_MAX))
}

/// Where everybody was right before the message.
fn look_around(fold: &Fold, user: Option<UserId>, life: &mut Life) {
    let Some(room) = life.what.room() else { return };
    let Some(state) = fold.room_state(life.app, room) else {
        life.fate = Fate::Unheard;
        return;
    };
    if let Some(user) = user {
        let measures = state.measures.iter().find(|(of, _)| *of == user);
        life.about.get_or_insert_default().measures = measures.map(|(_, entry)| entry.clone());
    }
    if let Some((closed, _)) = state.closed {
        life.fate = Fate::RoomClosed { closed };
        return;
    }
    let silent = match life.what {
        What::Said { .. } => life.sender.as_ref().and_then(|sender| sender.user),
        _ => None, // everybody hears of a closing
    };
    let hears = state.members.into_iter().filter(|member| Some(member.user) != silent);
    life.audience = hears
        .map(|member| Hearer {
            user: member.user,
            gateway: member.gateway,
            connection: member.connection,
            joined: Some(member.joined),
        })
        .collect();
}

/// What an event itself says about the message or those it was for. `fold` is as of before it.
fn note_event(
    fold: &Fold,
    entry: &LogEntry,
    record: &Record,
    user: Option<UserId>,
    life: &mut Life,
) {
    let at_ms = entry.written_ms;
    match &record.event {
        Event::RoomMessageSent { app, sender, .. }
        | Event::DirectMessageSent { app, sender, .. }
            if entry.msg_id() == life.msg_id =>
        {
            let first = sender.client_msg_id.as_ref();
            let first = first.and_then(|id| fold.find_sent(*app, sender.user, id, record.at_ms));
            if let Some(first) = first {
                life.fate = Fate::Repeated { first };
                life.audience.clear();
            }
        }
        Event::MembersChanged { app, room, gateway, changes }
            if *app == life.app && Some(*room) == life.what.room() =>
        {
            for change in changes {
                match *change {
                    MemberChange::Left { connection, user, heard } => {
                        let theirs =
                            |h: &Hearer| h.gateway == *gateway && h.connection == connection;
                        if life.audience.iter().any(theirs) {
                            let gateway = gateway.clone();
                            let left = Departure { user, gateway, connection, at_ms, heard };
                            life.departures.push(left);
                        }
                    }
                    MemberChange::Joined { user: who, .. } if user == Some(who) => {
                        let about = life.about.get_or_insert_default();
                        let step = Step { at_ms, direction: Direction::Entered };
                        about.after.get_or_insert(step);
                    }
                    _ => {}
                }
            }
        }
        Event::GatewayGone { gateway } => {
            let over = |g: &Incarnation| g.id == gateway.id && g.epoch <= gateway.epoch;
            let mut gone: Vec<Incarnation> =
                life.dispatches.iter().map(|d| d.to.clone()).filter(|g| over(g)).collect();
            gone.sort_unstable();
            gone.dedup();
            for gateway in gone {
                if life.gone(&gateway).is_none() {
                    life.gateways_gone.push(Gone { gateway, at_ms });
                }
            }
        }
        Event::Unacknowledged { gateway, messages, .. } => {
            let about = messages.iter().filter(|message| message.msg_id == life.msg_id);
            life.left_behind.extend(about.map(|message| LeftBehind {
                gateway: gateway.clone(),
                at_ms,
                users: message.users.clone(),
                sends: message.sends,
            }));
        }
        Event::SessionsChanged { gateway, changes, .. } => {
            let took = |change: &SessionChange| match change {
                SessionChange::Read { msg_ids, .. } => msg_ids.contains(&life.msg_id),
                _ => false,
            };
            if changes.iter().any(took) {
                life.taken = Some(Taken { gateway: gateway.clone(), at_ms });
            }
        }
        _ => {}
    }
}

/// What the fold asks for about the message. `fold` is as of after the event.
fn note_effects(fold: &Fold, entry: &LogEntry, effects: Vec<Effect>, life: &mut Life) {
    let (event, at_ms) = (entry.msg_id(), entry.written_ms);
    for effect in effects {
        match effect {
            Effect::Deliver { to, envelope } if envelope.msg_id() == Some(life.msg_id) => {
                let because = match event == life.msg_id {
                    true => Because::Said,
                    false => Because::Late { event },
                };
                let connections = match envelope {
                    Envelope::Direct { user, to: targets, .. } => {
                        life.audience.extend(targets.iter().map(|target| Hearer {
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
                life.dispatches.push(Dispatch { to, because, at_ms, connections });
            }
            Effect::DeliverWaiting { to, user, connection, msg_ids, .. }
                if msg_ids.contains(&life.msg_id) =>
            {
                let connections = vec![(connection, Some(user))];
                let because = Because::Login { event };
                life.dispatches.push(Dispatch { to, because, at_ms, connections });
            }
            Effect::Repeat { to, app, room, msg_id, connections, .. } if msg_id == life.msg_id => {
                let members = fold.room_state(app, room).map(|state| state.members);
                let members = members.unwrap_or_default();
                let user_of = |connection| {
                    let is = |m: &&qiyu_fanout::state::Member| {
                        m.gateway == to && m.connection == connection
                    };
                    members.iter().find(is).map(|member| member.user)
                };
                let connections = connections.into_iter().map(|c| (c, user_of(c))).collect();
                let because = Because::Return { event };
                life.dispatches.push(Dispatch { to, because, at_ms, connections });
            }
            _ => {}
        }
    }
    let at_once = |dispatch: &Dispatch| dispatch.because == Because::Said;
    if event == life.msg_id && life.fate == Fate::Delivered && !life.dispatches.iter().any(at_once)
    {
        life.fate = Fate::Unheard;
    }
}

/// Entries about one user that are looked at, the newest: with more they have
/// come and gone so often that what was before hardly matters.
const STEPS_MAX: usize = 64;

/// How somebody came and went.
#[derive(Default)]
pub(super) struct Steps {
    /// The last thing that changed whether they were there, on any connection.
    pub(super) last: Option<Step>,
    /// The last time they entered.
    pub(super) entered: Option<Step>,
}

/// How `user` came to a room and went before `seq`.
pub(super) async fn steps(
    bus: &Bus,
    (app, room): (AppId, RoomId),
    user: UserId,
    seq: u64,
) -> anyhow::Result<Steps> {
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
    let (mut steps, mut open) = (Steps::default(), BTreeSet::new());
    for (entry, (gateway, changes)) in found.iter().filter_map(|e| Some((e, changes(e)?))) {
        let step = |direction| Some(Step { at_ms: entry.written_ms, direction });
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
    // What is still open ended with its gateway, if that has ended.
    for (gateway, _) in open {
        let subject = subject::gateway_gone(Partition::of_room(app, room), &gateway.id);
        let its_end = |entry: &LogEntry| match entry.record().map(|record| record.event) {
            Ok(Event::GatewayGone { gateway: gone }) => gateway.epoch <= gone.epoch,
            _ => false,
        };
        let ended = bus.read_back(&subject, seq, 1, its_end).await?;
        let Some(at_ms) = ended.first().map(|entry| entry.written_ms) else { continue };
        if steps.last.as_ref().is_none_or(|last| last.at_ms <= at_ms) {
            steps.last = Some(Step { at_ms, direction: Direction::Lost });
        }
    }
    Ok(steps)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
