//! "Did they get it, and if not why not": one sentence about one user.

use qiyu_schema::{
    ConnId, Incarnation, MsgId, UserId,
    ledger::{How, Reason, Via},
    measure::Taken,
};

use super::{
    life::{About, Because, Direction, Dispatch, Fate, Hearer, Life, Settled, Way, What},
    print::{moment, why_forgotten},
};

/// What became of the message at one connection.
#[derive(Clone, Debug, PartialEq)]
enum End {
    /// At the latest then.
    Acknowledged {
        by_ms: u64,
    },
    GivenUp {
        at_ms: u64,
    },
    /// Written once; it had ignored several before.
    Lagging,
    /// The connection ended first.
    Left,
    /// It had ended before the message arrived.
    LeftBefore,
    /// The gateway died with that knowledge.
    GatewayDied {
        at_ms: u64,
    },
    /// More did not acknowledge than are named.
    NotNamed {
        unnamed: u64,
        of: u64,
    },
    /// Some of those it was for had gone before, and it is not written down who.
    Unclear,
    /// Handed over, and nothing reported since.
    Open,
    /// Not even handed over, as far as the record goes.
    NotHandedOver,
}

/// The sentence.
pub(super) fn of(life: &Life, user: UserId) -> String {
    let (first, later) = (main_clause(life, user), later(life, user));
    let first = match (later.acknowledged, first.split_once(": ")) {
        (true, Some((verdict, why))) if verdict != "Yes" => format!("Yes, later: {why}"),
        _ => first,
    };
    format!("{first}{}.", later.words)
}

fn main_clause(life: &Life, user: UserId) -> String {
    if let What::Whispered { to, .. } = life.what
        && to != user
    {
        return format!("No: it was written to user {to} alone, not to user {user}");
    }
    match life.fate {
        Fate::Repeated { first } => {
            return format!(
                "No: its sender had given the same clientMsgId to {first} before, which was \
                 delivered instead; ask about that one"
            );
        }
        Fate::RoomClosed { closed } => {
            return format!(
                "No: the room had been closed before (at {closed}); such a message is kept and \
                 delivered to nobody"
            );
        }
        Fate::Delivered | Fate::Unheard => {}
    }
    let by_them = life.sender.as_ref().is_some_and(|sender| sender.user == Some(user));
    if let (What::Said { .. }, true) = (life.what, by_them) {
        return format!("User {user} said it: who speaks hears a receipt and no copy");
    }
    if let What::Whispered { .. } = life.what {
        return about_whisper(life, user);
    }
    let theirs: Vec<&Hearer> = life.audience.iter().filter(|hearer| hearer.user == user).collect();
    if theirs.is_empty() {
        return absent(life, user);
    }
    let first = life.dispatches.iter().filter(|dispatch| dispatch.because == Because::Said);
    let first: Vec<&Dispatch> = first.collect();
    let ends = theirs.iter().map(|hearer| {
        let dispatch = first.iter().find(|dispatch| dispatch.to == hearer.gateway).copied();
        (*hearer, end_of(life, dispatch, &hearer.gateway, hearer.connection))
    });
    best(ends.collect(), user)
}

/// Of several connections the one with the best news.
fn best(ends: Vec<(&Hearer, End)>, user: UserId) -> String {
    let rank = |end: &End| match end {
        End::Acknowledged { .. } => 0,
        End::Open => 1,
        End::GatewayDied { .. } => 2,
        End::NotNamed { .. } | End::Unclear => 3,
        End::Lagging => 4,
        End::GivenUp { .. } => 5,
        End::Left => 6,
        End::LeftBefore => 7,
        End::NotHandedOver => 8,
    };
    let devices = ends.len();
    let Some((hearer, end)) = ends.into_iter().min_by_key(|(_, end)| rank(end)) else {
        return format!("The record knows no connection of user {user} it was for");
    };
    let (gateway, connection) = (&hearer.gateway, hearer.connection);
    let on = format!("on connection {connection} of gateway {gateway}");
    let of_several = match devices {
        1 => String::new(),
        devices => format!(" (the best of their {devices} connections)"),
    };
    match end {
        End::Acknowledged { by_ms } => {
            format!("Yes: user {user} acknowledged it {on}{of_several}, by {}", moment(by_ms))
        }
        End::GivenUp { at_ms } => format!(
            "No: it was sent to user {user} {on}{of_several} as often as allowed and not \
             acknowledged in time; given up by {}",
            moment(at_ms)
        ),
        End::Lagging => format!(
            "Probably not: it was written to user {user} {on}{of_several}, which had ignored \
             several messages in a row and was not counted on; it was not acknowledged in time"
        ),
        End::Left => format!(
            "Not on that connection: user {user} left before acknowledging it {on}{of_several}"
        ),
        End::LeftBefore => format!(
            "No: user {user} had gone from connection {connection} of gateway \
             {gateway}{of_several} before it arrived there"
        ),
        End::GatewayDied { at_ms } => format!(
            "The record cannot tell: user {user} was in the room {on}{of_several}, and that \
             gateway died at {} with the knowledge of who had acknowledged what",
            moment(at_ms)
        ),
        End::NotNamed { unnamed, of } => format!(
            "The record cannot tell: user {user} was in the room {on}{of_several}, where {of} \
             did not acknowledge it, of whom {unnamed} are not named"
        ),
        End::Unclear => format!(
            "The record cannot tell: user {user} was in the room {on}{of_several}, and it is not \
             written down whether they still were when it arrived there"
        ),
        End::Open => format!(
            "Not known yet: it was handed to user {user} {on}{of_several}, and the gateway has \
             reported no outcome"
        ),
        End::NotHandedOver => format!(
            "Not as far as the record goes: user {user} was in the room {on}{of_several}, and \
             nothing tells that the message was handed to that gateway"
        ),
    }
}

fn absent(life: &Life, user: UserId) -> String {
    let mut sentence = format!("No: user {user} was not in the room at that moment");
    let about = life.about.as_ref();
    let measures = about.and_then(|about| about.measures.as_ref());
    match about.and_then(|about| about.before.as_ref()) {
        Some(step) => {
            let how = match step.direction {
                Direction::Left => "they had left it at",
                Direction::Lost => "they had been there until their gateway was declared gone at",
                Direction::Entered => "they had last entered it at",
            };
            sentence += &format!("; {how} {}", moment(step.at_ms));
        }
        None => sentence += "; as far as the log reaches they had never been",
    }
    let why = put_out(about);
    sentence += why;
    let banned = measures.is_some_and(|entry| entry.is_banned(life.accepted_ms));
    if banned && why != BANNED {
        sentence += ", and were banned from it";
    }
    if let Some(step) = about.and_then(|about| about.after.as_ref()) {
        sentence += &format!("; they entered at {}", moment(step.at_ms));
    }
    sentence
}

/// How a ban is told as what made somebody leave.
const BANNED: &str = ", because they were banned";

/// Whether they had not left of their own accord. What is remembered is the newest
/// measure of each kind: it may be about another time.
fn put_out(about: Option<&About>) -> &'static str {
    let left = about.and_then(|about| about.before.as_ref());
    let left = left.filter(|step| step.direction == Direction::Left);
    let (Some(about), Some(left)) = (about, left) else { return "" };
    let entered_ms = about.entered.as_ref().map_or(0, |step| step.at_ms);
    let made_them = |taken: &Option<Taken>| {
        taken.as_ref().is_some_and(|taken| (entered_ms..=left.at_ms).contains(&taken.at_ms))
    };
    match &about.measures {
        Some(entry) if made_them(&entry.ban) => BANNED,
        Some(entry) if made_them(&entry.kick) => ", because they were shown out",
        _ => "",
    }
}

fn about_whisper(life: &Life, user: UserId) -> String {
    if let Some(taken) = &life.taken {
        let after = match life.dispatches.iter().any(|d| d.because == Because::Said) {
            true => "",
            false => "; they were away when it was written, and it waited for them",
        };
        return format!(
            "Yes: user {user} acknowledged it on gateway {} at {}{after}",
            taken.gateway,
            moment(taken.at_ms)
        );
    }
    let since = moment(life.stored_ms);
    if let Some(forgotten) = life.forgotten {
        let (until, why) = (moment(forgotten.at_ms), why_forgotten(forgotten));
        let sent = match life.dispatches.len() {
            0 => "they did not log in while it waited".to_owned(),
            times => format!("it was sent {times} times and never acknowledged"),
        };
        return format!(
            "No: it waited for user {user} until {until}, when it was forgotten: {why}; {sent}"
        );
    }
    match life.dispatches.last() {
        None => format!(
            "Not yet: it waits for user {user} since {since}; they have not logged in since then"
        ),
        Some(dispatch) => {
            let connection = dispatch.connections.first().map(|(connection, _)| *connection);
            let how = connection.map(|connection| {
                match end_of(life, Some(dispatch), &dispatch.to, connection) {
                    End::GivenUp { .. } => "where it was sent as often as allowed".to_owned(),
                    End::Left => "which ended before it acknowledged".to_owned(),
                    End::LeftBefore => "where they had gone before it arrived".to_owned(),
                    End::Lagging => "where it was not acknowledged in time".to_owned(),
                    End::Unclear | End::NotNamed { .. } => {
                        "whose outcome is not told apart from others'".to_owned()
                    }
                    End::GatewayDied { at_ms } => {
                        format!("which died at {} with that knowledge", moment(at_ms))
                    }
                    End::Acknowledged { .. } => {
                        "which settled it; that it was read is not in the log yet".to_owned()
                    }
                    _ => "which has not reported an outcome".to_owned(),
                }
            });
            format!(
                "Not yet: it waits for user {user} since {since}; it was last sent at {} to \
                 gateway {}, {}",
                moment(dispatch.at_ms),
                dispatch.to,
                how.unwrap_or_default()
            )
        }
    }
}

/// How it ended for one connection that `dispatch` was for.
fn end_of(
    life: &Life,
    dispatch: Option<&Dispatch>,
    gateway: &Incarnation,
    connection: ConnId,
) -> End {
    let Some(dispatch) = dispatch else { return End::NotHandedOver };
    let left = life.departure(gateway, connection);
    let first = dispatch.because == Because::Said;
    if first && left.and_then(|left| left.heard).is_some_and(|heard| heard < life.msg_id) {
        return End::LeftBefore;
    }
    let main: Vec<&Settled> = life.outcomes.iter().filter(|s| s.answers(dispatch)).collect();
    let is_apart = |s: &&Settled| first && s.gateway == *gateway && s.outcome.via == Via::Lagging;
    let apart: Vec<&Settled> = life.outcomes.iter().filter(is_apart).collect();
    if let Some(end) = main.iter().chain(&apart).find_map(|s| excepted(s, connection)) {
        return end;
    }
    let Some(settled) = main.iter().max_by_key(|s| s.outcome.resolved + s.outcome.lagging) else {
        return unreported(life, gateway);
    };
    if main.len() < alike(life, dispatch).count() {
        return unreported(life, gateway); // outcomes do not say of which sending they are
    }
    let (lagging, named) = (count(settled.outcome.lagging), &settled.outcome.laggards);
    let may_lag = named.iter().any(|of| of.connection == connection) || named.len() < lagging;
    if may_lag && apart.is_empty() {
        return unreported(life, gateway);
    }
    let all = || main.iter().chain(&apart);
    let unnamed: u64 = all().map(|settled| settled.unnamed()).sum();
    if 0 < unnamed {
        let not = |settled: &&Settled| settled.outcome.given_up + settled.outcome.left;
        return End::NotNamed { unnamed, of: all().map(|s| u64::from(not(s))).sum() };
    }
    let told: usize = main.iter().map(|s| count(s.outcome.resolved)).sum();
    let told = told + lagging.max(apart.iter().map(|s| count(s.outcome.resolved)).sum());
    let was_there = first && left.and_then(|left| left.heard).is_some();
    let gone_before = match first {
        false => 0,
        // Who has not left is not among those of whom it is not said.
        true if left.is_none() => leavings(life, gateway, |heard| heard < Some(life.msg_id)),
        true => leavings(life, gateway, |heard| heard.is_some_and(|heard| heard < life.msg_id)),
    };
    if !was_there && told + gone_before < known(life, dispatch) {
        return match told {
            0 => End::LeftBefore,
            _ => End::Unclear,
        };
    }
    let by_ms = if may_lag { apart.iter().map(|s| s.at_ms).max() } else { None };
    End::Acknowledged { by_ms: by_ms.unwrap_or(settled.at_ms) }
}

/// What an outcome says by name.
fn excepted(settled: &Settled, connection: ConnId) -> Option<End> {
    Some(match settled.exception(connection)?.reason {
        Reason::Left => End::Left,
        Reason::Lagging => End::Lagging,
        _ if settled.outcome.via == Via::Lagging => End::Lagging,
        _ => End::GivenUp { at_ms: settled.at_ms },
    })
}

/// How it stands where there is no outcome.
fn unreported(life: &Life, gateway: &Incarnation) -> End {
    match (life.gone(gateway), handed_over(life, gateway)) {
        (Some(gone), _) => End::GatewayDied { at_ms: gone.at_ms },
        (None, true) => End::Open,
        (None, false) => End::NotHandedOver,
    }
}

/// Connections it was for, as far as the log knows.
fn known(life: &Life, dispatch: &Dispatch) -> usize {
    let here = |hearer: &&Hearer| hearer.gateway == dispatch.to;
    match (life.what, dispatch.because) {
        (What::Said { .. } | What::Closing { .. }, Because::Said) => {
            life.audience.iter().filter(here).count()
        }
        _ => alike(life, dispatch).map(|d| d.connections.len()).sum(),
    }
}

/// Of those it was for at a gateway, how many have left, having last heard what is `wanted`.
fn leavings(life: &Life, gateway: &Incarnation, wanted: impl Fn(Option<MsgId>) -> bool) -> usize {
    let departures = life.departures.iter().filter(|left| left.gateway == *gateway);
    departures.filter(|left| wanted(left.heard)).count()
}

/// The sendings to the same gateway whose outcomes look the same.
fn alike<'a>(life: &'a Life, dispatch: &'a Dispatch) -> impl Iterator<Item = &'a Dispatch> {
    let kind = |because| match because {
        Because::Said | Because::Login { .. } => 0,
        Because::Return { .. } => 1,
        Because::Late { .. } => 2,
    };
    let is = move |d: &&Dispatch| d.to == dispatch.to && kind(d.because) == kind(dispatch.because);
    life.dispatches.iter().filter(is)
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Whether the record says, or the fold's word has to do, that the gateway was handed it.
fn handed_over(life: &Life, gateway: &Incarnation) -> bool {
    let to_it = life.handovers.iter().filter(|handover| handover.to.as_ref() == Some(gateway));
    let mut to_it = to_it.peekable();
    to_it.peek().is_some() && to_it.any(|handover| handover.how != How::Refused)
}

/// What came after the first sending.
struct Later {
    words: String,
    acknowledged: bool,
}

/// What they came by later, by other ways.
fn later(life: &Life, user: UserId) -> Later {
    let (mut words, mut acknowledged) = (String::new(), false);
    for dispatch in life.dispatches.iter().filter(|d| matches!(d.because, Because::Return { .. })) {
        let Some((connection, _)) = dispatch.connections.iter().find(|(_, of)| *of == Some(user))
        else {
            continue;
        };
        let end = match end_of(life, Some(dispatch), &dispatch.to, *connection) {
            End::Acknowledged { by_ms } => {
                acknowledged = true;
                format!("acknowledged there by {}", moment(by_ms))
            }
            End::GivenUp { .. } => "not acknowledged there in time".to_owned(),
            End::Left | End::LeftBefore => "which ended before it acknowledged".to_owned(),
            End::GatewayDied { .. } => "which died with that knowledge".to_owned(),
            End::Unclear => "whose outcome is not told apart from others'".to_owned(),
            _ => "with no outcome reported yet".to_owned(),
        };
        words += &format!(
            "; it was taken over and sent again at {} to their connection {connection} of gateway \
             {}, {end}",
            moment(dispatch.at_ms),
            dispatch.to
        );
    }
    let resumed = life.outcomes.iter().filter(|settled| {
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
            moment(settled.at_ms)
        );
    }
    let readings = life.readings.iter().filter(|reading| reading.user == user);
    if let Some(reading) = readings.into_iter().next() {
        let way = match reading.way {
            Way::History => "the room's history",
            Way::OfflinePull => "what waited for them",
        };
        words += &format!("; they read it in {way} at {}", moment(reading.at_ms));
    }
    let measures = life.about.as_ref().and_then(|about| about.measures.as_ref());
    if measures.is_some_and(|entry| entry.is_muted(life.accepted_ms)) {
        words += "; they were muted, which keeps nobody from hearing";
    }
    Later { words, acknowledged }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use qiyu_schema::{
        ledger::{Exception, Outcome, Recipient},
        measure::{Measure, MeasureEntry},
    };

    use super::*;
    use crate::trace::life::{Accepted, Departure, Forgotten, Gone, HandedOver, Searched, Step};

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
    fn said() -> Life {
        let hearer = |n| Hearer {
            user: user(n),
            gateway: gateway(),
            connection: connection(n),
            joined: Some(at(3)),
        };
        Life {
            msg_id: at(9),
            partition: "p07".into(),
            app: "10001".parse().unwrap(),
            what: What::Said { room: "7".parse().unwrap(), biz_code: 5555 },
            sender: Some(Accepted { user: Some(user(9)), through: None }),
            accepted_ms: 1000,
            stored_ms: 1000,
            fate: Fate::Delivered,
            audience: vec![hearer(1), hearer(2)],
            dispatches: vec![Dispatch {
                to: gateway(),
                because: Because::Said,
                at_ms: 1000,
                connections: Vec::new(),
            }],
            handovers: vec![HandedOver {
                worker: "w-1".parse().unwrap(),
                epoch: 1,
                at_ms: 1100,
                to: Some(gateway()),
                how: How::Stored,
                because: None,
            }],
            outcomes: Vec::new(),
            departures: Vec::new(),
            gateways_gone: Vec::new(),
            left_behind: Vec::new(),
            taken: None,
            forgotten: None,
            readings: Vec::new(),
            about: None,
            searched: Searched::default(),
        }
    }

    fn settled(
        via: Via,
        [acknowledged, given_up, left]: [u32; 3],
        exceptions: &[Exception],
    ) -> Settled {
        let resolved = acknowledged + given_up + left;
        Settled {
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
                laggards: Vec::new(),
            },
        }
    }

    fn except(n: u64, reason: Reason) -> Exception {
        Exception { user: user(n), connection: connection(n), reason }
    }

    fn told(life: &Life, n: u64) -> String {
        of(life, user(n))
    }

    #[test]
    fn who_is_not_among_the_exceptions_acknowledged() {
        let mut life = said();
        assert!(told(&life, 1).starts_with("Not known yet:"), "{}", told(&life, 1));
        let silent = except(2, Reason::NotAcknowledged);
        life.outcomes.push(settled(Via::Envelope, [1, 1, 0], &[silent]));
        assert_eq!(
            told(&life, 1),
            "Yes: user 100001 acknowledged it on connection 1 of gateway g1.7, by \
             1970-01-01 00:00:02.000."
        );
        assert!(told(&life, 2).contains("as often as allowed and not acknowledged in time"));
        assert!(told(&life, 9).starts_with("User 100009 said it"));
    }

    #[test]
    fn the_reasons_are_told_apart() {
        let cases = [
            (settled(Via::Envelope, [1, 0, 1], &[except(1, Reason::Left)]), "left before"),
            (settled(Via::Envelope, [1, 1, 0], &[except(1, Reason::Lagging)]), "Probably not"),
            (
                settled(Via::Envelope, [0, 2, 0], &[except(2, Reason::NotAcknowledged)]),
                "1 are not named",
            ),
        ];
        for (outcome, words) in cases {
            let mut life = said();
            life.outcomes.push(outcome);
            assert!(told(&life, 1).contains(words), "{words}: {}", told(&life, 1));
        }
    }

    #[test]
    fn what_died_with_a_gateway_is_not_guessed() {
        let mut life = said();
        life.gateways_gone.push(Gone { gateway: gateway(), at_ms: 1500 });
        assert!(told(&life, 1).contains("cannot tell"));
        let to = Some(Recipient { user: user(1), connection: connection(8) });
        let mut resumed = settled(Via::Resume, [1, 0, 0], &[]);
        resumed.outcome.to = to;
        life.outcomes.push(resumed);
        assert!(
            told(&life, 1)
                .contains("they resumed, which brought it on gateway g1.7, and acknowledged it")
        );
        assert!(told(&life, 1).starts_with("Yes, later: user 100001 was in the room"));
        assert!(!told(&life, 2).contains("resumed"));
    }

    #[test]
    fn who_had_gone_without_the_log_knowing_is_told_from_who_acknowledged() {
        let mut life = said();
        life.outcomes.push(settled(Via::Envelope, [1, 0, 0], &[]));
        life.departures.push(Departure {
            user: user(2),
            gateway: gateway(),
            connection: connection(2),
            at_ms: 1010,
            heard: None,
        });
        assert!(told(&life, 1).starts_with("Yes:"));
        assert!(told(&life, 2).starts_with("The record cannot tell:"), "{}", told(&life, 2));
        life.departures[0].heard = Some(at(8));
        assert!(told(&life, 2).contains("before it arrived there"));
        assert!(told(&life, 1).starts_with("Yes:"), "whoever goes home does not change that");
        let at_ms = 1500;
        life.departures.push(Departure {
            user: user(1),
            connection: connection(1),
            at_ms,
            heard: Some(at(9)),
            ..life.departures[0].clone()
        });
        assert!(told(&life, 1).starts_with("Yes:"), "{}", told(&life, 1));
    }

    #[test]
    fn whoever_had_ignored_several_is_judged_by_an_outcome_of_their_own() {
        let mut life = said();
        let mut main = settled(Via::Envelope, [1, 0, 0], &[]);
        let laggard = Recipient { user: user(2), connection: connection(2) };
        (main.outcome.lagging, main.outcome.laggards) = (1, vec![laggard]);
        life.outcomes.push(main);
        assert!(told(&life, 1).starts_with("Yes:"), "{}", told(&life, 1));
        assert!(told(&life, 2).starts_with("Not known yet:"), "{}", told(&life, 2));
        let mut died = life.clone();
        died.gateways_gone.push(Gone { gateway: gateway(), at_ms: 1500 });
        assert!(told(&died, 2).contains("cannot tell"), "{}", told(&died, 2));
        assert!(told(&died, 1).starts_with("Yes:"), "{}", told(&died, 1));
        let mut deaf = life.clone();
        let silent = except(2, Reason::NotAcknowledged);
        deaf.outcomes.push(settled(Via::Lagging, [0, 1, 0], &[silent]));
        assert!(told(&deaf, 2).starts_with("Probably not:"), "{}", told(&deaf, 2));
        life.outcomes.push(settled(Via::Lagging, [1, 0, 0], &[]));
        assert!(told(&life, 2).starts_with("Yes:"), "{}", told(&life, 2));
    }

    #[test]
    fn whose_leaving_never_reached_the_log_is_not_taken_to_have_it() {
        let mut life = said();
        life.outcomes.push(settled(Via::Envelope, [1, 0, 0], &[]));
        for n in [1, 2] {
            assert!(told(&life, n).starts_with("The record cannot tell:"), "{}", told(&life, n));
        }
    }

    #[test]
    fn a_login_is_not_answered_by_the_sending_before() {
        let mut life = said();
        life.what = What::Whispered { to: user(1), biz_code: 5555 };
        life.audience = Vec::new();
        life.dispatches[0].connections = vec![(connection(1), Some(user(1)))];
        let silent = except(1, Reason::NotAcknowledged);
        life.outcomes.push(settled(Via::Envelope, [0, 1, 0], &[silent]));
        assert!(told(&life, 1).contains("where it was sent as often as allowed"));
        let login = Dispatch {
            because: Because::Login { event: at(20) },
            at_ms: 3000,
            connections: vec![(connection(2), Some(user(1)))],
            ..life.dispatches[0].clone()
        };
        life.dispatches.push(login);
        assert!(told(&life, 1).contains("which has not reported an outcome"), "{}", told(&life, 1));
        life.outcomes.push(settled(Via::Envelope, [0, 0, 0], &[]));
        assert!(!told(&life, 1).contains("which settled it"), "{}", told(&life, 1));
    }

    #[test]
    fn a_repeat_is_not_taken_for_somebody_elses() {
        let mut life = said();
        life.gateways_gone.push(Gone { gateway: gateway(), at_ms: 1500 });
        let other = Incarnation { id: "g2".parse().unwrap(), epoch: 1 };
        for (n, seq) in [(1, 20), (2, 21)] {
            life.dispatches.push(Dispatch {
                to: other.clone(),
                because: Because::Return { event: at(seq) },
                at_ms: 2000 + seq,
                connections: vec![(connection(10 + n), Some(user(n)))],
            });
        }
        let repeated = |exceptions: &[Exception], sums| Settled {
            gateway: other.clone(),
            ..settled(Via::Repeat, sums, exceptions)
        };
        life.outcomes.push(repeated(&[], [1, 0, 0]));
        assert!(told(&life, 1).contains("with no outcome reported yet"), "{}", told(&life, 1));
        let silent = Exception {
            user: user(2),
            connection: connection(12),
            reason: Reason::NotAcknowledged,
        };
        life.outcomes.push(repeated(&[silent], [0, 1, 0]));
        assert!(told(&life, 1).starts_with("Yes, later:"), "{}", told(&life, 1));
        assert!(told(&life, 2).contains("not acknowledged there in time"), "{}", told(&life, 2));
    }

    #[test]
    fn being_shown_out_is_a_reason_only_for_the_leaving_it_caused() {
        let taken =
            |at_ms| Taken { msg_id: at(2), at_ms, until_ms: None, reason: String::new(), by: None };
        let step = |at_ms, direction| Some(Step { at_ms, direction });
        for (kicked, why) in [(300, false), (450, true), (600, false)] {
            let mut entry = MeasureEntry::default();
            entry.take(Measure::Kick, taken(kicked));
            let mut life = said();
            life.about = Some(About {
                before: step(500, Direction::Left),
                entered: step(400, Direction::Entered),
                after: None,
                measures: Some(entry),
            });
            assert_eq!(told(&life, 5).contains("shown out"), why, "{kicked}: {}", told(&life, 5));
        }
    }

    #[test]
    fn a_whisper_that_newer_ones_pushed_out_waits_no_more() {
        let mut life = said();
        life.what = What::Whispered { to: user(1), biz_code: 5555 };
        (life.audience, life.dispatches, life.fate) = (Vec::new(), Vec::new(), Fate::Unheard);
        life.forgotten = Some(Forgotten { at_ms: 9000, because: Some(at(99)) });
        let told = told(&life, 1);
        assert!(told.starts_with("No: it waited for user 100001 until"), "{told}");
        assert!(told.contains("did not log in while it waited"), "{told}");
    }

    #[test]
    fn who_was_not_there_is_told_where_they_were() {
        let mut life = said();
        let step = Step { at_ms: 500, direction: Direction::Left };
        life.about = Some(About { before: Some(step), ..About::default() });
        assert_eq!(
            told(&life, 5),
            "No: user 100005 was not in the room at that moment; they had left it at \
             1970-01-01 00:00:00.500."
        );
        life.about = None;
        assert!(told(&life, 5).contains("never been"));
    }

    #[test]
    fn a_whisper_waits_until_it_is_acknowledged() {
        let mut life = said();
        life.what = What::Whispered { to: user(1), biz_code: 5555 };
        (life.audience, life.dispatches, life.fate) = (Vec::new(), Vec::new(), Fate::Unheard);
        assert!(told(&life, 1).starts_with("Not yet: it waits for user 100001"));
        assert!(told(&life, 2).contains("to user 100001 alone"));
        life.taken = Some(crate::trace::life::Taken { gateway: gateway(), at_ms: 9000 });
        assert!(told(&life, 1).contains("acknowledged it on gateway g1.7"));
        assert!(told(&life, 1).contains("it waited for them"));
    }

    #[test]
    fn what_was_delivered_to_nobody_says_why() {
        let mut life = said();
        life.fate = Fate::Repeated { first: at(4) };
        assert!(told(&life, 1).contains("the same clientMsgId"));
        life.fate = Fate::RoomClosed { closed: at(5) };
        assert!(told(&life, 1).contains("closed before"));
    }
}
