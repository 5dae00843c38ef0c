//! Prints a trace, one line for each step.

use std::fmt::Write as _;

use qiyu_schema::ledger::{DispatchKind, UnackedReason, Via};

use crate::{text::plural, timestamp::date_time};

use super::message::{
    Decision, Expiry, GatewayOutcome, MessageKind, MessageTrace, PlannedDelivery, ReadPath,
    SendCause,
};

/// Users named on one line. The JSON form names all.
const NAMES_MAX: usize = 10;

/// Formats the whole trace, one line for each step.
pub(super) fn pretty(trace: &MessageTrace) -> String {
    let mut text = String::new();
    let mut line = |label: &str, rest: &str| {
        writeln!(text, "  {label:<13}{rest}").ok(); // writing to a String does not fail
    };
    line("accepted", &accepted(trace));
    let (stored, partition, msg_id) = (date_time(trace.stored_ms), &trace.partition, trace.msg_id);
    line("stored", &format!("{stored}  at {} of partition {partition}", msg_id.seq()));
    line("for", &audience(trace));
    for handover in &trace.handovers {
        let to = match &handover.to {
            Some(gateway) => format!("to gateway {gateway}"),
            None => "to nobody".to_owned(),
        };
        let how = match handover.how {
            DispatchKind::Stored | DispatchKind::NoRecipient => "",
            DispatchKind::Full => ", whose queue was full: it reads the log",
            DispatchKind::Refused => ", which can never take it",
            DispatchKind::Other => ", in a way this build does not know",
        };
        let again = handover.because.map_or(String::new(), |event| format!(", because of {event}"));
        let by = format!("by worker {} (epoch {})", handover.worker, handover.epoch);
        line("fanned out", &format!("{}  {to}{how}{again} {by}", date_time(handover.at_ms)));
    }
    if trace.handovers.is_empty() {
        line("fanned out", "nothing is recorded: it may be under way, or its worker died at once");
    }
    for settled in trace.outcomes.iter().filter(|s| s.outcome.via != Via::Resume) {
        line("settled", &outcome(settled));
        for reason in exceptions(settled) {
            line("", &reason);
        }
    }
    for gone in &trace.gateways_gone {
        let had = "and with it what it alone knew of this message";
        line("ended", &format!("{}  gateway {}, {had}", date_time(gone.at_ms), gone.gateway));
    }
    for left in &trace.left_behind {
        let whose = match &left.users {
            Some(users) => listed("users", users.iter().map(ToString::to_string)),
            None => "everybody it then had in the room".to_owned(),
        };
        line(
            "left behind",
            &format!(
                "{}  unacknowledged at gateway {}: {whose}",
                date_time(left.at_ms),
                left.gateway
            ),
        );
    }
    for dispatch in &trace.dispatches {
        if let Some(why) = again(dispatch) {
            line("sent again", &why);
        }
    }
    for dispatch in trace.dispatches.iter().filter(|dispatch| is_open(trace, dispatch)) {
        line("in flight", &format!("gateway {} has not reported an outcome", dispatch.to));
    }
    for settled in trace.outcomes.iter().filter(|s| s.outcome.via == Via::Resume) {
        line("resumed", &outcome(settled));
    }
    if let Some(taken) = &trace.taken {
        let (at, gateway) = (date_time(taken.at_ms), &taken.gateway);
        line("acknowledged", &format!("{at}  by its recipient on gateway {gateway}"));
    } else if let Some(expiry) = trace.expiry {
        line("forgotten", &format!("{}  {}", date_time(expiry.at_ms), why_forgotten(expiry)));
    } else if let MessageKind::Direct { to, .. } = trace.kind {
        line("waiting", &format!("for user {to}, whose acknowledgement is not in the log"));
    }
    for reading in &trace.readings {
        let way = match reading.way {
            ReadPath::History => "in the room's history",
            ReadPath::OfflinePull => "among what waited for them",
        };
        line("read", &format!("{}  by user {} {way}", date_time(reading.at_ms), reading.user));
    }
    line(
        "searched",
        &format!(
            "the log to {}, outcomes to {}, resumes and readings to now",
            date_time(trace.searched.log_until_ms),
            date_time(trace.searched.ledger_until_ms)
        ),
    );
    format!("{}\n{text}", title(trace))
}

/// Explains the expiry of a direct message.
pub(super) fn why_forgotten(expiry: Expiry) -> String {
    match expiry.because {
        Some(newer) => format!("newer ones took its place, {newer} the last of them"),
        None => "it had waited for seven days".to_owned(),
    }
}

fn title(trace: &MessageTrace) -> String {
    let (msg_id, app) = (trace.msg_id, trace.app);
    match trace.kind {
        MessageKind::Room { room, biz_code } => {
            format!("message {msg_id} in room {room} of app {app} (bizCode {biz_code}), UTC")
        }
        MessageKind::Direct { to, biz_code } => {
            format!("message {msg_id} to user {to} of app {app} (bizCode {biz_code}), UTC")
        }
        MessageKind::Closing { room } => {
            format!("message {msg_id}, the closing of room {room}, UTC")
        }
    }
}

fn accepted(trace: &MessageTrace) -> String {
    let at = date_time(trace.accepted_ms);
    let Some(sender) = &trace.sender else { return format!("{at}  from the system itself") };
    let from = sender.user.map_or("a server".to_owned(), |user| format!("user {user}"));
    let Some(through) = &sender.through else { return format!("{at}  from {from}") };
    let named = through.client_msg_id.as_ref().map(|id| format!(", clientMsgId {id}"));
    format!(
        "{at}  from {from} on connection {} of gateway {}{}",
        through.connection,
        through.gateway,
        named.unwrap_or_default()
    )
}

fn audience(trace: &MessageTrace) -> String {
    match trace.decision {
        Decision::RoomClosed { closed } => format!("nobody: the room had been closed by {closed}"),
        Decision::Duplicate { first } => {
            format!("nobody: the same clientMsgId was given to {first} before")
        }
        Decision::NoRecipient => match trace.kind {
            MessageKind::Direct { to, .. } => format!("user {to}, who was away"),
            _ => "nobody: nobody else was in the room".to_owned(),
        },
        Decision::Delivered => {
            let mut gateways: Vec<_> = trace.audience.iter().map(|h| &h.gateway).collect();
            gateways.sort_unstable();
            gateways.dedup();
            let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
            let (here, there) = (count(trace.audience.len()), count(gateways.len()));
            format!("{}, {}", plural(here, "connection"), plural(there, "gateway"))
        }
    }
}

fn outcome(settled: &GatewayOutcome) -> String {
    let outcome = &settled.outcome;
    let way = match outcome.via {
        Via::Envelope => "",
        Via::Log => ", read from the log because its envelope was lost",
        Via::Resume => ", by a resume",
        Via::Lagging => ", for those who had ignored several in a row",
        Via::Repeat => ", taken over for those who came back",
        Via::Late => ", for those who came too late",
        Via::Other => ", in a way this build does not know",
    };
    let to = outcome.to.map(|to| format!(" for user {}", to.user)).unwrap_or_default();
    let mut counts = vec![format!("{} acknowledged", outcome.acknowledged)];
    let further = [
        (outcome.resent, "sent again"),
        (outcome.given_up, "given up"),
        (outcome.left, "left before acknowledging"),
        (outcome.lagging, "more that had ignored several in a row, told apart"),
    ];
    let further = further.into_iter().filter(|(count, _)| 0 < *count);
    counts.extend(further.map(|(count, kind)| format!("{count} {kind}")));
    format!(
        "{}  gateway {}{to}: {} resolved, {} written, {}{way}",
        date_time(settled.at_ms),
        settled.gateway,
        outcome.resolved,
        outcome.written,
        counts.join(", ")
    )
}

fn exceptions(settled: &GatewayOutcome) -> Vec<String> {
    let reasons = [
        (UnackedReason::NotAcknowledged, "sent as often as allowed, not acknowledged in time"),
        (UnackedReason::Lagging, "written once, had ignored several in a row"),
        (UnackedReason::Left, "left before acknowledging"),
        (UnackedReason::RoomClosed, "the room was closed before"),
        (UnackedReason::Other, "for a reason this build does not know"),
    ];
    let mut lines = Vec::new();
    for (reason, words) in reasons {
        let of_it = settled.outcome.exceptions.iter().filter(|e| e.reason == reason);
        let users: Vec<String> =
            of_it.map(|e| format!("{} (connection {})", e.user, e.connection)).collect();
        if !users.is_empty() {
            lines.push(format!("{words}: {}", listed("users", users.into_iter())));
        }
    }
    let unnamed = settled.unnamed();
    if 0 < unnamed {
        lines.push(format!("and {unnamed} more, whose names the ledger did not keep"));
    }
    lines
}

fn listed(kind: &str, names: impl ExactSizeIterator<Item = String>) -> String {
    let all = names.len();
    let mut names: Vec<String> = names.take(NAMES_MAX).collect();
    if names.len() < all {
        names.push(format!("and {} more", all - names.len()));
    }
    let kind = if all == 1 { kind.trim_end_matches('s') } else { kind };
    format!("{kind} {}", names.join(", "))
}

/// Explains a further delivery; `None` for the first.
fn again(dispatch: &PlannedDelivery) -> Option<String> {
    let (why, event) = match dispatch.because {
        SendCause::Message => return None,
        SendCause::Login { event } => ("its recipient logged in", event),
        SendCause::Return { event } => ("taken over for those who are back", event),
        SendCause::Late { event } => ("somebody entered the closed room", event),
    };
    let to = dispatch.connections.iter().map(|(connection, user)| match user {
        Some(user) => format!("{connection} (user {user})"),
        None => connection.to_string(),
    });
    Some(format!(
        "{}  {why} ({event}): gateway {}, {}",
        date_time(dispatch.at_ms),
        dispatch.to,
        listed("connections", to.collect::<Vec<_>>().into_iter())
    ))
}

fn is_open(trace: &MessageTrace, dispatch: &PlannedDelivery) -> bool {
    trace.gone(&dispatch.to).is_none() && !trace.outcomes.iter().any(|s| s.answers(dispatch))
}
