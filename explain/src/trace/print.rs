//! A message's life as people read it.

use std::fmt::Write as _;

use qiyu_schema::ledger::{How, Reason, Via};
use time::{OffsetDateTime, macros::format_description};

use super::life::{Because, Dispatch, Fate, Forgotten, Life, Settled, Way, What};

/// Users named on one line; the JSON form has all.
const NAMES_MAX: usize = 10;

/// A time, in UTC.
pub(crate) fn moment(ms: u64) -> String {
    let form =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]");
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    at.ok().and_then(|at| at.format(form).ok()).unwrap_or_else(|| format!("{ms} ms"))
}

/// Everything, a line for each step.
pub(super) fn pretty(life: &Life) -> String {
    let mut text = String::new();
    let mut line = |label: &str, rest: &str| {
        writeln!(text, "  {label:<13}{rest}").ok(); // writing to a String does not fail
    };
    line("accepted", &accepted(life));
    let (stored, partition, msg_id) = (moment(life.stored_ms), &life.partition, life.msg_id);
    line("stored", &format!("{stored}  at {} of partition {partition}", msg_id.seq()));
    line("for", &audience(life));
    for handover in &life.handovers {
        let to = match &handover.to {
            Some(gateway) => format!("to gateway {gateway}"),
            None => "to nobody".to_owned(),
        };
        let how = match handover.how {
            How::Stored | How::Nobody => "",
            How::Full => ", whose queue was full: it reads the log",
            How::Refused => ", which can never take it",
            How::Other => ", in a way this build does not know",
        };
        let again = handover.because.map_or(String::new(), |event| format!(", because of {event}"));
        let by = format!("by worker {} (epoch {})", handover.worker, handover.epoch);
        line("fanned out", &format!("{}  {to}{how}{again} {by}", moment(handover.at_ms)));
    }
    if life.handovers.is_empty() {
        line("fanned out", "nothing is recorded: it may be under way, or its worker died at once");
    }
    for settled in life.outcomes.iter().filter(|s| s.outcome.via != Via::Resume) {
        line("settled", &outcome(settled));
        for reason in exceptions(settled) {
            line("", &reason);
        }
    }
    for gone in &life.gateways_gone {
        let had = "and with it what it alone knew of this message";
        line("ended", &format!("{}  gateway {}, {had}", moment(gone.at_ms), gone.gateway));
    }
    for left in &life.left_behind {
        let whose = match &left.users {
            Some(users) => listed("users", users.iter().map(ToString::to_string)),
            None => "everybody it then had in the room".to_owned(),
        };
        line(
            "left behind",
            &format!("{}  unacknowledged at gateway {}: {whose}", moment(left.at_ms), left.gateway),
        );
    }
    for dispatch in &life.dispatches {
        if let Some(why) = again(dispatch) {
            line("sent again", &why);
        }
    }
    for dispatch in life.dispatches.iter().filter(|dispatch| is_open(life, dispatch)) {
        line("in flight", &format!("gateway {} has not reported an outcome", dispatch.to));
    }
    for settled in life.outcomes.iter().filter(|s| s.outcome.via == Via::Resume) {
        line("resumed", &outcome(settled));
    }
    if let Some(taken) = &life.taken {
        let (at, gateway) = (moment(taken.at_ms), &taken.gateway);
        line("acknowledged", &format!("{at}  by its recipient on gateway {gateway}"));
    } else if let Some(forgotten) = life.forgotten {
        line("forgotten", &format!("{}  {}", moment(forgotten.at_ms), why_forgotten(forgotten)));
    } else if let What::Whispered { to, .. } = life.what {
        line("waiting", &format!("for user {to}, whose acknowledgement is not in the log"));
    }
    for reading in &life.readings {
        let way = match reading.way {
            Way::History => "in the room's history",
            Way::OfflinePull => "among what waited for them",
        };
        line("read", &format!("{}  by user {} {way}", moment(reading.at_ms), reading.user));
    }
    line(
        "searched",
        &format!(
            "the log to {}, outcomes to {}, resumes and readings to now",
            moment(life.searched.log_until_ms),
            moment(life.searched.ledger_until_ms)
        ),
    );
    format!("{}\n{text}", title(life))
}

/// Why a 1:1 message waits for nobody any more.
pub(super) fn why_forgotten(forgotten: Forgotten) -> String {
    match forgotten.because {
        Some(newer) => format!("newer ones took its place, {newer} the last of them"),
        None => "it had waited for seven days".to_owned(),
    }
}

fn title(life: &Life) -> String {
    let (msg_id, app) = (life.msg_id, life.app);
    match life.what {
        What::Said { room, biz_code } => {
            format!("message {msg_id} in room {room} of app {app} (bizCode {biz_code}), UTC")
        }
        What::Whispered { to, biz_code } => {
            format!("message {msg_id} to user {to} of app {app} (bizCode {biz_code}), UTC")
        }
        What::Closing { room } => format!("message {msg_id}, the closing of room {room}, UTC"),
    }
}

fn accepted(life: &Life) -> String {
    let at = moment(life.accepted_ms);
    let Some(sender) = &life.sender else { return format!("{at}  from the system itself") };
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

fn audience(life: &Life) -> String {
    match life.fate {
        Fate::RoomClosed { closed } => format!("nobody: the room had been closed by {closed}"),
        Fate::Repeated { first } => {
            format!("nobody: the same clientMsgId was given to {first} before")
        }
        Fate::Unheard => match life.what {
            What::Whispered { to, .. } => format!("user {to}, who was away"),
            _ => "nobody: nobody else was in the room".to_owned(),
        },
        Fate::Delivered => {
            let mut gateways: Vec<_> = life.audience.iter().map(|h| &h.gateway).collect();
            gateways.sort_unstable();
            gateways.dedup();
            let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
            let (here, there) = (count(life.audience.len()), count(gateways.len()));
            format!("{}, {}", plural(here, "connection"), plural(there, "gateway"))
        }
    }
}

/// So many of something.
pub(crate) fn plural(number: u64, thing: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{ending}")
}

fn outcome(settled: &Settled) -> String {
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
    counts.extend(further.map(|(count, what)| format!("{count} {what}")));
    format!(
        "{}  gateway {}{to}: {} resolved, {} written, {}{way}",
        moment(settled.at_ms),
        settled.gateway,
        outcome.resolved,
        outcome.written,
        counts.join(", ")
    )
}

fn exceptions(settled: &Settled) -> Vec<String> {
    let reasons = [
        (Reason::NotAcknowledged, "sent as often as allowed, not acknowledged in time"),
        (Reason::Lagging, "written once, had ignored several in a row"),
        (Reason::Left, "left before acknowledging"),
        (Reason::RoomClosed, "the room was closed before"),
        (Reason::Other, "for a reason this build does not know"),
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

fn listed(what: &str, names: impl ExactSizeIterator<Item = String>) -> String {
    let all = names.len();
    let mut names: Vec<String> = names.take(NAMES_MAX).collect();
    if names.len() < all {
        names.push(format!("and {} more", all - names.len()));
    }
    let what = if all == 1 { what.trim_end_matches('s') } else { what };
    format!("{what} {}", names.join(", "))
}

/// What a further sending was for; `None` for the first.
fn again(dispatch: &Dispatch) -> Option<String> {
    let (why, event) = match dispatch.because {
        Because::Said => return None,
        Because::Login { event } => ("its recipient logged in", event),
        Because::Return { event } => ("taken over for those who are back", event),
        Because::Late { event } => ("somebody entered the closed room", event),
    };
    let to = dispatch.connections.iter().map(|(connection, user)| match user {
        Some(user) => format!("{connection} (user {user})"),
        None => connection.to_string(),
    });
    Some(format!(
        "{}  {why} ({event}): gateway {}, {}",
        moment(dispatch.at_ms),
        dispatch.to,
        listed("connections", to.collect::<Vec<_>>().into_iter())
    ))
}

fn is_open(life: &Life, dispatch: &Dispatch) -> bool {
    life.gone(&dispatch.to).is_none() && !life.outcomes.iter().any(|s| s.answers(dispatch))
}

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn a_moment_is_written_to_the_millisecond() {
        assert_eq!(moment(1_700_000_000_123), "2023-11-14 22:13:20.123");
    }
}
