//! One sentence about one user: whether the message was received, and if not, why.

use qiyu_schema::{
    ConnId, Incarnation, MsgId, UserId,
    ledger::{DispatchKind, UnackedReason, Via},
    sanction::Sanction,
};

use super::{
    message::{
        AudienceMember, Decision, Direction, GatewayOutcome, MessageKind, MessageTrace,
        PlannedDelivery, ReadPath, SendCause, UserContext,
    },
    print::why_forgotten,
};
use crate::timestamp::date_time;

/// The outcome of the message at one connection.
#[derive(Clone, Debug, PartialEq)]
enum ConnectionOutcome {
    /// Acknowledged at the latest at that time.
    Acknowledged {
        by_ms: u64,
    },
    GivenUp {
        at_ms: u64,
    },
    /// Written once, because it had ignored several messages before.
    Lagging,
    /// The connection ended first.
    Left,
    /// It had ended before the message arrived.
    LeftBefore,
    /// The gateway died before it reported.
    GatewayDied {
        at_ms: u64,
    },
    /// More connections did not acknowledge than are named.
    NotNamed {
        unnamed: u64,
        of: u64,
    },
    /// Some of the audience had left before, and the record does not name them.
    Unclear,
    /// Dispatched, without an outcome yet.
    Open,
    /// Not dispatched, as far as the record goes.
    NotHandedOver,
}

/// Returns the sentence about `user`.
pub(super) fn of(trace: &MessageTrace, user: UserId) -> String {
    let (first, later) = (main_clause(trace, user), later(trace, user));
    let first = match (later.acknowledged, first.split_once(": ")) {
        (true, Some((verdict, why))) if verdict != "Yes" => format!("Yes, later: {why}"),
        _ => first,
    };
    format!("{first}{}.", later.words)
}

fn main_clause(trace: &MessageTrace, user: UserId) -> String {
    if let MessageKind::Direct { to, .. } = trace.kind
        && to != user
    {
        return format!("No: it was written to user {to} alone, not to user {user}");
    }
    match trace.decision {
        Decision::Duplicate { first } => {
            return format!(
                "No: its sender had given the same clientMsgId to {first} before, which was \
                 delivered instead; ask about that one"
            );
        }
        Decision::RoomClosed { closed } => {
            return format!(
                "No: the room had been closed before (at {closed}); such a message is kept and \
                 delivered to nobody"
            );
        }
        Decision::Delivered | Decision::NoRecipient => {}
    }
    let by_them = trace.sender.as_ref().is_some_and(|sender| sender.user == Some(user));
    if let (MessageKind::Room { .. }, true) = (trace.kind, by_them) {
        return format!("User {user} said it: who speaks hears a receipt and no copy");
    }
    if let MessageKind::Direct { .. } = trace.kind {
        return about_whisper(trace, user);
    }
    let theirs: Vec<&AudienceMember> =
        trace.audience.iter().filter(|member| member.user == user).collect();
    if theirs.is_empty() {
        return absent(trace, user);
    }
    let first = trace.dispatches.iter().filter(|dispatch| dispatch.because == SendCause::Message);
    let first: Vec<&PlannedDelivery> = first.collect();
    let ends = theirs.iter().map(|member| {
        let dispatch = first.iter().find(|dispatch| dispatch.to == member.gateway).copied();
        (*member, end_of(trace, dispatch, &member.gateway, member.connection))
    });
    best(ends.collect(), user)
}

/// Describes the connection with the best outcome.
fn best(ends: Vec<(&AudienceMember, ConnectionOutcome)>, user: UserId) -> String {
    let rank = |end: &ConnectionOutcome| match end {
        ConnectionOutcome::Acknowledged { .. } => 0,
        ConnectionOutcome::Open => 1,
        ConnectionOutcome::GatewayDied { .. } => 2,
        ConnectionOutcome::NotNamed { .. } | ConnectionOutcome::Unclear => 3,
        ConnectionOutcome::Lagging => 4,
        ConnectionOutcome::GivenUp { .. } => 5,
        ConnectionOutcome::Left => 6,
        ConnectionOutcome::LeftBefore => 7,
        ConnectionOutcome::NotHandedOver => 8,
    };
    let devices = ends.len();
    let Some((member, end)) = ends.into_iter().min_by_key(|(_, end)| rank(end)) else {
        return format!("The record knows no connection of user {user} it was for");
    };
    let (gateway, connection) = (&member.gateway, member.connection);
    let on = format!("on connection {connection} of gateway {gateway}");
    let of_several = match devices {
        1 => String::new(),
        devices => format!(" (the best of their {devices} connections)"),
    };
    match end {
        ConnectionOutcome::Acknowledged { by_ms } => {
            format!("Yes: user {user} acknowledged it {on}{of_several}, by {}", date_time(by_ms))
        }
        ConnectionOutcome::GivenUp { at_ms } => format!(
            "No: it was sent to user {user} {on}{of_several} as often as allowed and not \
             acknowledged in time; given up by {}",
            date_time(at_ms)
        ),
        ConnectionOutcome::Lagging => format!(
            "Probably not: it was written to user {user} {on}{of_several}, which had ignored \
             several messages in a row and was not counted on; it was not acknowledged in time"
        ),
        ConnectionOutcome::Left => format!(
            "Not on that connection: user {user} left before acknowledging it {on}{of_several}"
        ),
        ConnectionOutcome::LeftBefore => format!(
            "No: user {user} had gone from connection {connection} of gateway \
             {gateway}{of_several} before it arrived there"
        ),
        ConnectionOutcome::GatewayDied { at_ms } => format!(
            "The record cannot tell: user {user} was in the room {on}{of_several}, and that \
             gateway died at {} with the knowledge of who had acknowledged what",
            date_time(at_ms)
        ),
        ConnectionOutcome::NotNamed { unnamed, of } => format!(
            "The record cannot tell: user {user} was in the room {on}{of_several}, where {of} \
             did not acknowledge it, of whom {unnamed} are not named"
        ),
        ConnectionOutcome::Unclear => format!(
            "The record cannot tell: user {user} was in the room {on}{of_several}, and it is not \
             written down whether they still were when it arrived there"
        ),
        ConnectionOutcome::Open => format!(
            "Not known yet: it was handed to user {user} {on}{of_several}, and the gateway has \
             reported no outcome"
        ),
        ConnectionOutcome::NotHandedOver => format!(
            "Not as far as the record goes: user {user} was in the room {on}{of_several}, and \
             nothing tells that the message was handed to that gateway"
        ),
    }
}

fn absent(trace: &MessageTrace, user: UserId) -> String {
    let mut sentence = format!("No: user {user} was not in the room at that moment");
    let about = trace.about.as_ref();
    let measures = about.and_then(|about| about.measures.as_ref());
    match about.and_then(|about| about.before.as_ref()) {
        Some(step) => {
            let how = match step.direction {
                Direction::Left => "they had left it at",
                Direction::Lost => "they had been there until their gateway was declared gone at",
                Direction::Entered => "they had last entered it at",
            };
            sentence += &format!("; {how} {}", date_time(step.at_ms));
        }
        None => sentence += "; as far as the log reaches they had never been",
    }
    let why = put_out(about);
    sentence += why;
    let banned = measures.is_some_and(|entry| entry.is_banned(trace.accepted_ms));
    if banned && why != BANNED {
        sentence += ", and were banned from it";
    }
    if let Some(step) = about.and_then(|about| about.after.as_ref()) {
        sentence += &format!("; they entered at {}", date_time(step.at_ms));
    }
    sentence
}

/// The clause for a ban that ended the membership.
const BANNED: &str = ", because they were banned";

/// Returns the sanction that ended the user's membership, as a clause. The record keeps the
/// newest sanction of each kind only, which may be about another time.
fn put_out(about: Option<&UserContext>) -> &'static str {
    let left = about.and_then(|about| about.before.as_ref());
    let left = left.filter(|step| step.direction == Direction::Left);
    let (Some(about), Some(left)) = (about, left) else { return "" };
    let entered_ms = about.entered.as_ref().map_or(0, |step| step.at_ms);
    let made_them = |taken: &Option<Sanction>| {
        taken.as_ref().is_some_and(|taken| (entered_ms..=left.at_ms).contains(&taken.at_ms))
    };
    match &about.measures {
        Some(entry) if made_them(&entry.ban) => BANNED,
        Some(entry) if made_them(&entry.kick) => ", because they were shown out",
        _ => "",
    }
}

fn about_whisper(trace: &MessageTrace, user: UserId) -> String {
    if let Some(taken) = &trace.taken {
        let after = match trace.dispatches.iter().any(|d| d.because == SendCause::Message) {
            true => "",
            false => "; they were away when it was written, and it waited for them",
        };
        return format!(
            "Yes: user {user} acknowledged it on gateway {} at {}{after}",
            taken.gateway,
            date_time(taken.at_ms)
        );
    }
    let since = date_time(trace.stored_ms);
    if let Some(expiry) = trace.expiry {
        let (until, why) = (date_time(expiry.at_ms), why_forgotten(expiry));
        let sent = match trace.dispatches.len() {
            0 => "they did not log in while it waited".to_owned(),
            times => format!("it was sent {times} times and never acknowledged"),
        };
        return format!(
            "No: it waited for user {user} until {until}, when it was forgotten: {why}; {sent}"
        );
    }
    match trace.dispatches.last() {
        None => format!(
            "Not yet: it waits for user {user} since {since}; they have not logged in since then"
        ),
        Some(dispatch) => {
            let connection = dispatch.connections.first().map(|(connection, _)| *connection);
            let how = connection.map(|connection| {
                match end_of(trace, Some(dispatch), &dispatch.to, connection) {
                    ConnectionOutcome::GivenUp { .. } => {
                        "where it was sent as often as allowed".to_owned()
                    }
                    ConnectionOutcome::Left => "which ended before it acknowledged".to_owned(),
                    ConnectionOutcome::LeftBefore => {
                        "where they had gone before it arrived".to_owned()
                    }
                    ConnectionOutcome::Lagging => {
                        "where it was not acknowledged in time".to_owned()
                    }
                    ConnectionOutcome::Unclear | ConnectionOutcome::NotNamed { .. } => {
                        "whose outcome is not told apart from others'".to_owned()
                    }
                    ConnectionOutcome::GatewayDied { at_ms } => {
                        format!("which died at {} with that knowledge", date_time(at_ms))
                    }
                    ConnectionOutcome::Acknowledged { .. } => {
                        "which settled it; that it was read is not in the log yet".to_owned()
                    }
                    _ => "which has not reported an outcome".to_owned(),
                }
            });
            format!(
                "Not yet: it waits for user {user} since {since}; it was last sent at {} to \
                 gateway {}, {}",
                date_time(dispatch.at_ms),
                dispatch.to,
                how.unwrap_or_default()
            )
        }
    }
}

/// Determines the outcome at one connection of `dispatch`.
fn end_of(
    trace: &MessageTrace,
    dispatch: Option<&PlannedDelivery>,
    gateway: &Incarnation,
    connection: ConnId,
) -> ConnectionOutcome {
    let Some(dispatch) = dispatch else { return ConnectionOutcome::NotHandedOver };
    let left = trace.departure(gateway, connection);
    let first = dispatch.because == SendCause::Message;
    if first && left.and_then(|left| left.heard).is_some_and(|heard| heard < trace.msg_id) {
        return ConnectionOutcome::LeftBefore;
    }
    let main: Vec<&GatewayOutcome> =
        trace.outcomes.iter().filter(|s| s.answers(dispatch)).collect();
    let is_apart =
        |s: &&GatewayOutcome| first && s.gateway == *gateway && s.outcome.via == Via::Lagging;
    let apart: Vec<&GatewayOutcome> = trace.outcomes.iter().filter(is_apart).collect();
    if let Some(end) = main.iter().chain(&apart).find_map(|s| excepted(s, connection)) {
        return end;
    }
    let Some(settled) = main.iter().max_by_key(|s| s.outcome.resolved + s.outcome.lagging) else {
        return unreported(trace, gateway);
    };
    if main.len() < alike(trace, dispatch).count() {
        return unreported(trace, gateway); // outcomes do not say of which sending they are
    }
    let (lagging, named) = (count(settled.outcome.lagging), &settled.outcome.lagging_recipients);
    let may_lag = named.iter().any(|of| of.connection == connection) || named.len() < lagging;
    if may_lag && apart.is_empty() {
        return unreported(trace, gateway);
    }
    let all = || main.iter().chain(&apart);
    let unnamed: u64 = all().map(|settled| settled.unnamed()).sum();
    if 0 < unnamed {
        let not = |settled: &&GatewayOutcome| settled.outcome.given_up + settled.outcome.left;
        return ConnectionOutcome::NotNamed { unnamed, of: all().map(|s| u64::from(not(s))).sum() };
    }
    let told: usize = main.iter().map(|s| count(s.outcome.resolved)).sum();
    let told = told + lagging.max(apart.iter().map(|s| count(s.outcome.resolved)).sum());
    let was_there = first && left.and_then(|left| left.heard).is_some();
    let gone_before = match first {
        false => 0,
        // A connection that has not left is not among the departures without a last
        // message.
        true if left.is_none() => leavings(trace, gateway, |heard| heard < Some(trace.msg_id)),
        true => leavings(trace, gateway, |heard| heard.is_some_and(|heard| heard < trace.msg_id)),
    };
    if !was_there && told + gone_before < known(trace, dispatch) {
        return match told {
            0 => ConnectionOutcome::LeftBefore,
            _ => ConnectionOutcome::Unclear,
        };
    }
    let by_ms = if may_lag { apart.iter().map(|s| s.at_ms).max() } else { None };
    ConnectionOutcome::Acknowledged { by_ms: by_ms.unwrap_or(settled.at_ms) }
}

/// Returns the outcome of a connection that the ledger names.
fn excepted(settled: &GatewayOutcome, connection: ConnId) -> Option<ConnectionOutcome> {
    Some(match settled.exception(connection)?.reason {
        UnackedReason::Left => ConnectionOutcome::Left,
        UnackedReason::Lagging => ConnectionOutcome::Lagging,
        _ if settled.outcome.via == Via::Lagging => ConnectionOutcome::Lagging,
        _ => ConnectionOutcome::GivenUp { at_ms: settled.at_ms },
    })
}

/// Returns the state without a recorded outcome.
fn unreported(trace: &MessageTrace, gateway: &Incarnation) -> ConnectionOutcome {
    match (trace.gone(gateway), handed_over(trace, gateway)) {
        (Some(gone), _) => ConnectionOutcome::GatewayDied { at_ms: gone.at_ms },
        (None, true) => ConnectionOutcome::Open,
        (None, false) => ConnectionOutcome::NotHandedOver,
    }
}

/// Returns the number of connections it was for, as far as the log knows.
fn known(trace: &MessageTrace, dispatch: &PlannedDelivery) -> usize {
    let here = |member: &&AudienceMember| member.gateway == dispatch.to;
    match (trace.kind, dispatch.because) {
        (MessageKind::Room { .. } | MessageKind::Closing { .. }, SendCause::Message) => {
            trace.audience.iter().filter(here).count()
        }
        _ => alike(trace, dispatch).map(|d| d.connections.len()).sum(),
    }
}

/// Counts the departures at a gateway whose last handled message matches `wanted`.
fn leavings(
    trace: &MessageTrace,
    gateway: &Incarnation,
    wanted: impl Fn(Option<MsgId>) -> bool,
) -> usize {
    let departures = trace.departures.iter().filter(|left| left.gateway == *gateway);
    departures.filter(|left| wanted(left.heard)).count()
}

/// Returns the deliveries to the same gateway whose outcomes look alike.
fn alike<'a>(
    trace: &'a MessageTrace,
    dispatch: &'a PlannedDelivery,
) -> impl Iterator<Item = &'a PlannedDelivery> {
    let kind = |because| match because {
        SendCause::Message | SendCause::Login { .. } => 0,
        SendCause::Return { .. } => 1,
        SendCause::Late { .. } => 2,
    };
    let is = move |d: &&PlannedDelivery| {
        d.to == dispatch.to && kind(d.because) == kind(dispatch.because)
    };
    trace.dispatches.iter().filter(is)
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Whether the record shows that the message was dispatched to the gateway.
fn handed_over(trace: &MessageTrace, gateway: &Incarnation) -> bool {
    let to_it = trace.handovers.iter().filter(|handover| handover.to.as_ref() == Some(gateway));
    let mut to_it = to_it.peekable();
    to_it.peek().is_some() && to_it.any(|handover| handover.how != DispatchKind::Refused)
}

/// Facts after the first delivery.
struct Later {
    words: String,
    acknowledged: bool,
}

/// Describes later ways in which the user received the message.
fn later(trace: &MessageTrace, user: UserId) -> Later {
    let (mut words, mut acknowledged) = (String::new(), false);
    for dispatch in
        trace.dispatches.iter().filter(|d| matches!(d.because, SendCause::Return { .. }))
    {
        let Some((connection, _)) = dispatch.connections.iter().find(|(_, of)| *of == Some(user))
        else {
            continue;
        };
        let end = match end_of(trace, Some(dispatch), &dispatch.to, *connection) {
            ConnectionOutcome::Acknowledged { by_ms } => {
                acknowledged = true;
                format!("acknowledged there by {}", date_time(by_ms))
            }
            ConnectionOutcome::GivenUp { .. } => "not acknowledged there in time".to_owned(),
            ConnectionOutcome::Left | ConnectionOutcome::LeftBefore => {
                "which ended before it acknowledged".to_owned()
            }
            ConnectionOutcome::GatewayDied { .. } => "which died with that knowledge".to_owned(),
            ConnectionOutcome::Unclear => "whose outcome is not told apart from others'".to_owned(),
            _ => "with no outcome reported yet".to_owned(),
        };
        words += &format!(
            "; it was taken over and sent again at {} to their connection {connection} of gateway \
             {}, {end}",
            date_time(dispatch.at_ms),
            dispatch.to
        );
    }
    let resumed = trace.outcomes.iter().filter(|settled| {
        settled.outcome.via == Via::Resume && settled.outcome.to.is_some_and(|to| to.user == user)
    });
    for settled in resumed {
        let end = match (settled.outcome.acknowledged, settled.outcome.left) {
            (1.., _) => {
                acknowledged = true;
                "and acknowledged it"
            }
            (0, 1..) => "and left before acknowledging it",
            (0, 0) => "and did not acknowledge it",
        };
        words += &format!(
            "; coming back they resumed, which brought it on gateway {}, {end} by {}",
            settled.gateway,
            date_time(settled.at_ms)
        );
    }
    let readings = trace.readings.iter().filter(|reading| reading.user == user);
    if let Some(reading) = readings.into_iter().next() {
        let way = match reading.way {
            ReadPath::History => "the room's history",
            ReadPath::OfflinePull => "what waited for them",
        };
        words += &format!("; they read it in {way} at {}", date_time(reading.at_ms));
    }
    let measures = trace.about.as_ref().and_then(|about| about.measures.as_ref());
    if measures.is_some_and(|entry| entry.is_muted(trace.accepted_ms)) {
        words += "; they were muted, which keeps nobody from hearing";
    }
    Later { words, acknowledged }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use qiyu_schema::{
        ledger::{Exception, Outcome, Recipient},
        sanction::{SanctionEntry, SanctionKind},
    };

    use super::*;
    use crate::trace::message::{
        Departure, Expiry, GatewayEnd, MembershipStep, RecordedDispatch, SearchExtent, Submission,
    };

    fn user(n: u64) -> UserId {
        (100_000 + n).try_into().unwrap()
    }

    fn connection(n: u64) -> ConnId {
        ConnId(NonZeroU64::new(n).unwrap())
    }

    fn gateway() -> Incarnation {
        Incarnation { id: "g1".parse().unwrap(), epoch: 7 }
    }

    fn at(seq: u64) -> MsgId {
        MsgId::at(seq)
    }

    /// User 9 says something to users 1 and 2 on connections 1 and 2.
    fn said() -> MessageTrace {
        let member = |n| AudienceMember {
            user: user(n),
            gateway: gateway(),
            connection: connection(n),
            joined: Some(at(3)),
        };
        MessageTrace {
            msg_id: at(9),
            partition: "p07".into(),
            app: "10001".parse().unwrap(),
            kind: MessageKind::Room { room: "7".parse().unwrap(), biz_code: 5555 },
            sender: Some(Submission { user: Some(user(9)), through: None }),
            accepted_ms: 1000,
            stored_ms: 1000,
            decision: Decision::Delivered,
            audience: vec![member(1), member(2)],
            dispatches: vec![PlannedDelivery {
                to: gateway(),
                because: SendCause::Message,
                at_ms: 1000,
                connections: Vec::new(),
            }],
            handovers: vec![RecordedDispatch {
                worker: "w-1".parse().unwrap(),
                epoch: 1,
                at_ms: 1100,
                to: Some(gateway()),
                how: DispatchKind::Stored,
                because: None,
            }],
            outcomes: Vec::new(),
            departures: Vec::new(),
            gateways_gone: Vec::new(),
            left_behind: Vec::new(),
            taken: None,
            expiry: None,
            readings: Vec::new(),
            about: None,
            searched: SearchExtent::default(),
        }
    }

    fn settled(
        via: Via,
        [acknowledged, given_up, left]: [u32; 3],
        exceptions: &[Exception],
    ) -> GatewayOutcome {
        let resolved = acknowledged + given_up + left;
        GatewayOutcome {
            gateway: gateway(),
            at_ms: 2000,
            outcome: Outcome {
                app: "10001".parse().unwrap(),
                room: "7".parse().ok(),
                msg_id: at(9),
                via,
                resolved,
                written: resolved,
                acknowledged,
                resent: 0,
                given_up,
                left,
                exceptions: exceptions.to_vec(),
                to: None,
                lagging: 0,
                lagging_recipients: Vec::new(),
            },
        }
    }

    fn except(n: u64, reason: UnackedReason) -> Exception {
        Exception { user: user(n), connection: connection(n), reason }
    }

    fn told(trace: &MessageTrace, n: u64) -> String {
        of(trace, user(n))
    }

    #[test]
    fn who_is_not_among_the_exceptions_acknowledged() {
        let mut trace = said();
        assert!(told(&trace, 1).starts_with("Not known yet:"), "{}", told(&trace, 1));
        let silent = except(2, UnackedReason::NotAcknowledged);
        trace.outcomes.push(settled(Via::Envelope, [1, 1, 0], &[silent]));
        assert_eq!(
            told(&trace, 1),
            "Yes: user 100001 acknowledged it on connection 1 of gateway g1.7, by \
             1970-01-01 00:00:02.000."
        );
        assert!(told(&trace, 2).contains("as often as allowed and not acknowledged in time"));
        assert!(told(&trace, 9).starts_with("User 100009 said it"));
    }

    #[test]
    fn the_reasons_are_told_apart() {
        let cases = [
            (settled(Via::Envelope, [1, 0, 1], &[except(1, UnackedReason::Left)]), "left before"),
            (
                settled(Via::Envelope, [1, 1, 0], &[except(1, UnackedReason::Lagging)]),
                "Probably not",
            ),
            (
                settled(Via::Envelope, [0, 2, 0], &[except(2, UnackedReason::NotAcknowledged)]),
                "1 are not named",
            ),
        ];
        for (outcome, words) in cases {
            let mut trace = said();
            trace.outcomes.push(outcome);
            assert!(told(&trace, 1).contains(words), "{words}: {}", told(&trace, 1));
        }
    }

    #[test]
    fn what_died_with_a_gateway_is_not_guessed() {
        let mut trace = said();
        trace.gateways_gone.push(GatewayEnd { gateway: gateway(), at_ms: 1500 });
        assert!(told(&trace, 1).contains("cannot tell"));
        let to = Some(Recipient { user: user(1), connection: connection(8) });
        let mut resumed = settled(Via::Resume, [1, 0, 0], &[]);
        resumed.outcome.to = to;
        trace.outcomes.push(resumed);
        assert!(
            told(&trace, 1)
                .contains("they resumed, which brought it on gateway g1.7, and acknowledged it")
        );
        assert!(told(&trace, 1).starts_with("Yes, later: user 100001 was in the room"));
        assert!(!told(&trace, 2).contains("resumed"));
    }

    #[test]
    fn who_had_gone_without_the_log_knowing_is_told_from_who_acknowledged() {
        let mut trace = said();
        trace.outcomes.push(settled(Via::Envelope, [1, 0, 0], &[]));
        trace.departures.push(Departure {
            user: user(2),
            gateway: gateway(),
            connection: connection(2),
            at_ms: 1010,
            heard: None,
        });
        assert!(told(&trace, 1).starts_with("Yes:"));
        assert!(told(&trace, 2).starts_with("The record cannot tell:"), "{}", told(&trace, 2));
        trace.departures[0].heard = Some(at(8));
        assert!(told(&trace, 2).contains("before it arrived there"));
        assert!(told(&trace, 1).starts_with("Yes:"), "whoever goes home does not change that");
        let at_ms = 1500;
        trace.departures.push(Departure {
            user: user(1),
            connection: connection(1),
            at_ms,
            heard: Some(at(9)),
            ..trace.departures[0].clone()
        });
        assert!(told(&trace, 1).starts_with("Yes:"), "{}", told(&trace, 1));
    }

    #[test]
    fn whoever_had_ignored_several_is_judged_by_an_outcome_of_their_own() {
        let mut trace = said();
        let mut main = settled(Via::Envelope, [1, 0, 0], &[]);
        let laggard = Recipient { user: user(2), connection: connection(2) };
        (main.outcome.lagging, main.outcome.lagging_recipients) = (1, vec![laggard]);
        trace.outcomes.push(main);
        assert!(told(&trace, 1).starts_with("Yes:"), "{}", told(&trace, 1));
        assert!(told(&trace, 2).starts_with("Not known yet:"), "{}", told(&trace, 2));
        let mut died = trace.clone();
        died.gateways_gone.push(GatewayEnd { gateway: gateway(), at_ms: 1500 });
        assert!(told(&died, 2).contains("cannot tell"), "{}", told(&died, 2));
        assert!(told(&died, 1).starts_with("Yes:"), "{}", told(&died, 1));
        let mut deaf = trace.clone();
        let silent = except(2, UnackedReason::NotAcknowledged);
        deaf.outcomes.push(settled(Via::Lagging, [0, 1, 0], &[silent]));
        assert!(told(&deaf, 2).starts_with("Probably not:"), "{}", told(&deaf, 2));
        trace.outcomes.push(settled(Via::Lagging, [1, 0, 0], &[]));
        assert!(told(&trace, 2).starts_with("Yes:"), "{}", told(&trace, 2));
    }

    #[test]
    fn whose_leaving_never_reached_the_log_is_not_taken_to_have_it() {
        let mut trace = said();
        trace.outcomes.push(settled(Via::Envelope, [1, 0, 0], &[]));
        for n in [1, 2] {
            assert!(told(&trace, n).starts_with("The record cannot tell:"), "{}", told(&trace, n));
        }
    }

    #[test]
    fn a_login_is_not_answered_by_the_sending_before() {
        let mut trace = said();
        trace.kind = MessageKind::Direct { to: user(1), biz_code: 5555 };
        trace.audience = Vec::new();
        trace.dispatches[0].connections = vec![(connection(1), Some(user(1)))];
        let silent = except(1, UnackedReason::NotAcknowledged);
        trace.outcomes.push(settled(Via::Envelope, [0, 1, 0], &[silent]));
        assert!(told(&trace, 1).contains("where it was sent as often as allowed"));
        let login = PlannedDelivery {
            because: SendCause::Login { event: at(20) },
            at_ms: 3000,
            connections: vec![(connection(2), Some(user(1)))],
            ..trace.dispatches[0].clone()
        };
        trace.dispatches.push(login);
        assert!(
            told(&trace, 1).contains("which has not reported an outcome"),
            "{}",
            told(&trace, 1)
        );
        trace.outcomes.push(settled(Via::Envelope, [0, 0, 0], &[]));
        assert!(!told(&trace, 1).contains("which settled it"), "{}", told(&trace, 1));
    }

    #[test]
    fn a_repeat_is_not_taken_for_somebody_elses() {
        let mut trace = said();
        trace.gateways_gone.push(GatewayEnd { gateway: gateway(), at_ms: 1500 });
        let other = Incarnation { id: "g2".parse().unwrap(), epoch: 1 };
        for (n, seq) in [(1, 20), (2, 21)] {
            trace.dispatches.push(PlannedDelivery {
                to: other.clone(),
                because: SendCause::Return { event: at(seq) },
                at_ms: 2000 + seq,
                connections: vec![(connection(10 + n), Some(user(n)))],
            });
        }
        let repeated = |exceptions: &[Exception], sums| GatewayOutcome {
            gateway: other.clone(),
            ..settled(Via::Repeat, sums, exceptions)
        };
        trace.outcomes.push(repeated(&[], [1, 0, 0]));
        assert!(told(&trace, 1).contains("with no outcome reported yet"), "{}", told(&trace, 1));
        let silent = Exception {
            user: user(2),
            connection: connection(12),
            reason: UnackedReason::NotAcknowledged,
        };
        trace.outcomes.push(repeated(&[silent], [0, 1, 0]));
        assert!(told(&trace, 1).starts_with("Yes, later:"), "{}", told(&trace, 1));
        assert!(told(&trace, 2).contains("not acknowledged there in time"), "{}", told(&trace, 2));
    }

    #[test]
    fn being_shown_out_is_a_reason_only_for_the_leaving_it_caused() {
        let taken = |at_ms| Sanction {
            msg_id: at(2),
            at_ms,
            until_ms: None,
            reason: String::new(),
            by: None,
        };
        let step = |at_ms, direction| Some(MembershipStep { at_ms, direction });
        for (kicked, why) in [(300, false), (450, true), (600, false)] {
            let mut entry = SanctionEntry::default();
            entry.impose(SanctionKind::Kick, taken(kicked));
            let mut trace = said();
            trace.about = Some(UserContext {
                before: step(500, Direction::Left),
                entered: step(400, Direction::Entered),
                after: None,
                measures: Some(entry),
            });
            assert_eq!(told(&trace, 5).contains("shown out"), why, "{kicked}: {}", told(&trace, 5));
        }
    }

    #[test]
    fn a_whisper_that_newer_ones_pushed_out_waits_no_more() {
        let mut trace = said();
        trace.kind = MessageKind::Direct { to: user(1), biz_code: 5555 };
        (trace.audience, trace.dispatches, trace.decision) =
            (Vec::new(), Vec::new(), Decision::NoRecipient);
        trace.expiry = Some(Expiry { at_ms: 9000, because: Some(at(99)) });
        let told = told(&trace, 1);
        assert!(told.starts_with("No: it waited for user 100001 until"), "{told}");
        assert!(told.contains("did not log in while it waited"), "{told}");
    }

    #[test]
    fn who_was_not_there_is_told_where_they_were() {
        let mut trace = said();
        let step = MembershipStep { at_ms: 500, direction: Direction::Left };
        trace.about = Some(UserContext { before: Some(step), ..UserContext::default() });
        assert_eq!(
            told(&trace, 5),
            "No: user 100005 was not in the room at that moment; they had left it at \
             1970-01-01 00:00:00.500."
        );
        trace.about = None;
        assert!(told(&trace, 5).contains("never been"));
    }

    #[test]
    fn a_whisper_waits_until_it_is_acknowledged() {
        let mut trace = said();
        trace.kind = MessageKind::Direct { to: user(1), biz_code: 5555 };
        (trace.audience, trace.dispatches, trace.decision) =
            (Vec::new(), Vec::new(), Decision::NoRecipient);
        assert!(told(&trace, 1).starts_with("Not yet: it waits for user 100001"));
        assert!(told(&trace, 2).contains("to user 100001 alone"));
        trace.taken = Some(crate::trace::message::RecipientAck { gateway: gateway(), at_ms: 9000 });
        assert!(told(&trace, 1).contains("acknowledged it on gateway g1.7"));
        assert!(told(&trace, 1).contains("it waited for them"));
    }

    #[test]
    fn what_was_delivered_to_nobody_says_why() {
        let mut trace = said();
        trace.decision = Decision::Duplicate { first: at(4) };
        assert!(told(&trace, 1).contains("the same clientMsgId"));
        trace.decision = Decision::RoomClosed { closed: at(5) };
        assert!(told(&trace, 1).contains("closed before"));
    }
}
