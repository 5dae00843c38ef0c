//! Judges a record of who said and heard what: pure, and knows nothing of the system.
//!
//! The rules are `docs/PROTOCOL.md` §4 and §5. What cannot be told apart from outside counts for
//! the system: a repeat is fine as long as it carries the same msgId, and nobody is owed anything
//! for the time they were away, unless they came back with a cursor or a dead gateway owed it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A dead gateway's people still belong to their rooms for at least this long: its lease lasts
/// 7 s and is renewed every 2 s (architecture.md, "Presence"); half a second for our own delays.
const STILL_A_MEMBER: Duration = Duration::from_millis(4500);

/// What a resume brings at most (`docs/PROTOCOL.md` §5).
const RESUMED_MAX: usize = 500;

/// Whom something was said to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum To {
    Room(u64),
    User(u64),
}

/// Something that was seen from outside.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// The 1001 of a connection. `position` is in a room only, `recovered` with a cursor only.
    Entered {
        line: u64,
        user: u64,
        address: String,
        room: Option<u64>,
        position: u64,
        cursor: Option<u64>,
        recovered: Option<bool>,
    },
    /// It ended, and the server asked to wait this long.
    Cut { line: u64, code: Option<u16>, retry: Duration },
    /// A gateway was killed or frozen.
    Struck { addresses: Vec<String> },
    /// It is about to be started again under its id: that ends the life before at once.
    Restarted { addresses: Vec<String> },
    /// The text is the clientMsgId.
    Said { user: u64, text: String, to: To },
    /// A 1006: the msgId, or the reason.
    Answered { user: u64, text: String, outcome: Result<u64, i64> },
    /// No 1006 came in the time in which one must.
    Unanswered,
    /// A 1003; `to` as the frame tells it.
    Heard { line: u64, to: To, msg_id: u64, text: String },
    /// A 1005.
    Acked { line: u64, msg_id: u64 },
    /// What /im/history of a room says in the end.
    History { room: u64, list: Vec<(u64, String)> },
    /// What /im/offline/pull of a user says in the end.
    Waiting { user: u64, list: Vec<(u64, String)> },
}

/// When, since the beginning.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) at: Duration,
    pub(crate) what: What,
}

/// What went wrong, and what was counted.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Kind and evidence. The kinds are fixed words, so that a test can ask for one.
    pub(crate) wrongs: Vec<(&'static str, String)>,
    pub(crate) receipted: usize,
    pub(crate) first_hearings: usize,
    pub(crate) repeats: usize,
    pub(crate) resumes: usize,
    /// Messages that came only because a dead gateway's queue was taken over.
    pub(crate) taken_over: usize,
    pub(crate) refused: BTreeMap<i64, usize>,
    pub(crate) unanswered: usize,
    /// From the receipt to the ears of somebody who was there all the time.
    pub(crate) slowest: Duration,
    /// When that message was receipted.
    pub(crate) slowest_at: Duration,
    /// From the end of a connection to the next one, without what the server asked to wait.
    pub(crate) longest_away: Duration,
}

impl Verdict {
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.wrongs.iter().filter(|(one, _)| *one == kind).count()
    }

    fn wrong(&mut self, kind: &'static str, evidence: String) {
        self.wrongs.push((kind, evidence));
    }
}

/// One connection's life.
#[derive(Debug, Default)]
struct Line {
    user: u64,
    address: String,
    room: Option<u64>,
    /// It must hear what is above.
    start: u64,
    position: u64,
    cursor: Option<u64>,
    recovered: Option<bool>,
    entered: Duration,
    cut: Option<Duration>,
    retry: Duration,
    /// First hearings, in the order they came.
    heard: Vec<(u64, Duration, To)>,
    ids: BTreeSet<u64>,
    acked: BTreeSet<u64>,
}

/// A message that was receipted.
#[derive(Clone, Debug)]
struct Stored {
    user: u64,
    to: To,
    text: String,
    at: Duration,
}

/// The whole record, sorted.
#[derive(Default)]
struct Facts {
    lines: BTreeMap<u64, Line>,
    said: BTreeMap<String, (u64, To)>,
    stored: BTreeMap<u64, Stored>,
    /// The msgId each text was seen under first.
    known: BTreeMap<String, u64>,
    struck: Vec<(Duration, String)>,
    restarted: Vec<(Duration, String)>,
    histories: BTreeMap<u64, Vec<(u64, String)>>,
    waiting: BTreeMap<u64, Vec<(u64, String)>>,
}

/// Judges the whole record.
pub(crate) fn judge(record: &[Entry]) -> Verdict {
    let mut verdict = Verdict::default();
    let facts = Facts::of(record, &mut verdict);
    facts.receipts(record, &mut verdict);
    facts.rooms(&mut verdict);
    facts.order(&mut verdict);
    facts.whispers(&mut verdict);
    facts.comebacks(&mut verdict);
    facts.histories(&mut verdict);
    verdict.receipted = facts.stored.len();
    verdict
}

impl Facts {
    fn of(record: &[Entry], verdict: &mut Verdict) -> Self {
        let mut facts = Self::default();
        // First what was said and stored: a delivery may overtake its receipt.
        for Entry { at, what } in record {
            match what {
                What::Said { user, text, to } => {
                    facts.said.entry(text.clone()).or_insert((*user, *to));
                }
                What::Answered { user, text, outcome: Ok(msg_id) } => {
                    let Some((_, to)) = facts.said.get(text) else {
                        verdict.wrong("phantom", format!("a receipt for {text}, never said"));
                        continue;
                    };
                    let (user, to, text, at) = (*user, *to, text.clone(), *at);
                    facts.stored.entry(*msg_id).or_insert(Stored { user, to, text, at });
                }
                _ => {}
            }
        }
        for Entry { at, what } in record {
            facts.take(*at, what, verdict);
        }
        facts
    }

    fn take(&mut self, at: Duration, what: &What, verdict: &mut Verdict) {
        match what.clone() {
            What::Entered { line, user, address, room, position, cursor, recovered } => {
                let start = match (cursor, recovered) {
                    (Some(cursor), Some(true)) => cursor,
                    _ => position,
                };
                let (entered, rest) = (at, Line::default());
                let new = Line {
                    user,
                    address,
                    room,
                    start,
                    position,
                    cursor,
                    recovered,
                    entered,
                    ..rest
                };
                self.lines.insert(line, new);
            }
            What::Cut { line, retry, .. } => {
                let line = self.lines.get_mut(&line).expect("it entered");
                (line.cut, line.retry) = (Some(at), retry);
            }
            What::Heard { line, to, msg_id, text } => {
                self.hear(at, line, to, msg_id, text, verdict)
            }
            What::Acked { line, msg_id } => {
                self.lines.get_mut(&line).expect("it entered").acked.insert(msg_id);
            }
            What::Struck { addresses } => {
                self.struck.extend(addresses.into_iter().map(|address| (at, address)));
            }
            What::Restarted { addresses } => {
                self.restarted.extend(addresses.into_iter().map(|address| (at, address)));
            }
            What::History { room, list } => drop(self.histories.insert(room, list)),
            What::Waiting { user, list } => drop(self.waiting.insert(user, list)),
            What::Said { .. } | What::Answered { .. } | What::Unanswered => {}
        }
    }

    fn hear(
        &mut self,
        at: Duration,
        number: u64,
        to: To,
        msg_id: u64,
        text: String,
        verdict: &mut Verdict,
    ) {
        let line = self.lines.get_mut(&number).expect("it entered");
        let user = line.user;
        let here = format!("{msg_id} {text:?} at user {user} (line {number}, {at:?})");
        match self.said.get(&text) {
            None => return verdict.wrong("phantom", here),
            Some((_, meant)) if *meant != to => {
                verdict.wrong("misled", format!("{here}: meant for {meant:?}, came as {to:?}"));
            }
            Some((_, To::User(meant))) if *meant != user => verdict.wrong("misled", here.clone()),
            Some((_, To::Room(room))) if Some(*room) != line.room => {
                verdict.wrong("misled", format!("{here}: the line is in {:?}", line.room));
            }
            Some((by, To::Room(_))) if *by == user => verdict.wrong("echo", here.clone()),
            Some(_) => {}
        }
        let known = *self.known.entry(text.clone()).or_insert(msg_id);
        if known != msg_id {
            verdict.wrong("doubled", format!("{here}: known as {known}"));
        }
        if !line.ids.insert(msg_id) {
            verdict.repeats += 1;
            return;
        }
        verdict.first_hearings += 1;
        line.heard.push((msg_id, at, to));
        let fresh = line.position < msg_id && matches!(to, To::Room(_));
        if let (true, Some(stored)) = (fresh, self.stored.get(&msg_id)) {
            let took = at.saturating_sub(stored.at.max(line.entered));
            if verdict.slowest < took {
                (verdict.slowest, verdict.slowest_at) = (took, stored.at);
            }
        }
    }

    /// One msgId for one clientMsgId, everywhere; and every send is answered in the end.
    fn receipts(&self, record: &[Entry], verdict: &mut Verdict) {
        let mut ids = self.known.clone();
        let mut answered = BTreeSet::new();
        for Entry { at, what } in record {
            match what {
                What::Answered { text, outcome: Ok(msg_id), .. } => {
                    answered.insert(text);
                    let known = *ids.entry(text.clone()).or_insert(*msg_id);
                    if known != *msg_id {
                        let wrong = format!("{text:?} is {known} and {msg_id} ({at:?})");
                        verdict.wrong("doubled", wrong);
                    }
                    let other = self.stored.get(msg_id).map(|stored| &stored.text);
                    if other.is_some_and(|other| other != text) {
                        verdict.wrong("doubled", format!("{msg_id} is {text:?} and {other:?}"));
                    }
                }
                What::Answered { user, text, outcome: Err(reason) } => {
                    *verdict.refused.entry(*reason).or_default() += 1;
                    if !matches!(reason, 5000 | 4008) {
                        let wrong = format!("{text:?} of {user}: {reason} ({at:?})");
                        verdict.wrong("refused", wrong);
                    }
                }
                What::Unanswered => verdict.unanswered += 1,
                _ => {}
            }
        }
        let mut last: BTreeMap<u64, &Line> = BTreeMap::new();
        last.extend(self.lines.values().map(|line| (line.user, line)));
        for (text, (user, _)) in &self.said {
            // Who was cut off for good cannot ask again.
            let gone = last.get(user).is_some_and(|line| line.cut.is_some());
            if !gone && !answered.contains(text) {
                verdict.wrong("unstored", format!("{text:?} of {user} was never receipted"));
            }
        }
    }

    /// Receipted messages of a room that somebody else said, above `start`.
    fn owed<'a>(&'a self, line: &'a Line) -> impl Iterator<Item = (u64, &'a Stored)> {
        let room = line.room.map(To::Room);
        let above = self.stored.range(line.start + 1..);
        above
            .filter(move |(_, stored)| Some(stored.to) == room && stored.user != line.user)
            .map(|(id, stored)| (*id, stored))
    }

    /// Who is in a room hears everything in it. Who was cut off has no hole below the last
    /// thing heard.
    fn rooms(&self, verdict: &mut Verdict) {
        for (number, line) in &self.lines {
            let last = line.heard.iter().filter(|(_, _, to)| matches!(to, To::Room(_)));
            let last = last.map(|(id, ..)| *id).max().unwrap_or(0);
            for (id, stored) in self.owed(line) {
                let must = line.cut.is_none() || id < last;
                if must && !line.ids.contains(&id) {
                    let Stored { text, at, .. } = stored;
                    let (user, start, cut) = (line.user, line.start, line.cut);
                    verdict.wrong(
                        "lost",
                        format!(
                            "{id} {text:?} (receipt {at:?}) never reached user {user} on line \
                             {number} (in {:?} above {start}, cursor {:?}, cut {cut:?}, last {last})",
                            line.room, line.cursor
                        ),
                    );
                }
            }
        }
    }

    /// First hearings come in the order of the log.
    fn order(&self, verdict: &mut Verdict) {
        let mut ever: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (number, line) in &self.lines {
            let ever = ever.entry(line.user).or_default();
            let (mut in_room, mut to_me) = (line.start, 0);
            for (id, at, to) in &line.heard {
                let last = match to {
                    To::Room(_) if *id <= line.start => {
                        // A repeat of what another connection was owed, or what it never was.
                        if line.cursor.is_none() && !self.was_inside_before(line, *id) {
                            let wrong = format!("{id} on line {number} from before its join");
                            verdict.wrong("too early", wrong);
                        }
                        continue;
                    }
                    To::User(_) if !ever.insert(*id) => continue,
                    To::Room(_) => &mut in_room,
                    To::User(_) => &mut to_me,
                };
                if *id < *last {
                    let user = line.user;
                    let wrong = format!("{id} after {last} at {user} (line {number}, {at:?})");
                    verdict.wrong("disordered", wrong);
                }
                *last = (*last).max(*id);
            }
        }
    }

    fn was_inside_before(&self, line: &Line, id: u64) -> bool {
        self.lines.values().any(|other| {
            (other.user, other.room) == (line.user, line.room)
                && other.entered < line.entered
                && other.start < id
        })
    }

    /// 1:1 messages were heard, or wait.
    fn whispers(&self, verdict: &mut Verdict) {
        let mut heard: BTreeSet<(u64, u64)> = BTreeSet::new();
        for line in self.lines.values() {
            heard.extend(line.ids.iter().map(|id| (line.user, *id)));
        }
        for (id, stored) in &self.stored {
            let To::User(user) = stored.to else { continue };
            let waiting = self.waiting.get(&user).is_some_and(|list| {
                list.iter().any(|(one, text)| one == id && *text == stored.text)
            });
            if !heard.contains(&(user, *id)) && !waiting {
                let Stored { text, at, .. } = stored;
                let wrong = format!("1:1 {id} {text:?} (receipt {at:?}) for user {user}");
                verdict.wrong("whisper lost", wrong);
            }
        }
        for (user, list) in &self.waiting {
            for (id, text) in list {
                if self.said.get(text).is_none_or(|(_, to)| *to != To::User(*user)) {
                    verdict.wrong("phantom", format!("{id} {text:?} waits for user {user}"));
                }
            }
            if !list.is_sorted() {
                verdict.wrong("disordered", format!("what waits for {user}: {list:?}"));
            }
        }
    }

    /// Who comes back gets what the way of coming back promises.
    fn comebacks(&self, verdict: &mut Verdict) {
        let mut before: BTreeMap<u64, &Line> = BTreeMap::new();
        for (number, line) in &self.lines {
            let Some(last) = before.insert(line.user, line) else { continue };
            let Some(cut) = last.cut else { continue };
            let away = line.entered.saturating_sub(cut).saturating_sub(last.retry);
            verdict.longest_away = verdict.longest_away.max(away);
            match (line.cursor, line.recovered) {
                (Some(_), Some(true)) => verdict.resumes += 1,
                (Some(cursor), recovered) => {
                    let missed =
                        self.stored.range(cursor + 1..).take_while(|m| *m.0 <= line.position);
                    let missed = missed.filter(|m| Some(m.1.to) == line.room.map(To::Room)).count();
                    if recovered.is_none() || (missed <= RESUMED_MAX && cursor <= line.position) {
                        let user = line.user;
                        let wrong = format!(
                            "user {user} came with {cursor}, {missed} behind: {recovered:?} (line \
                             {number}, position {})",
                            line.position
                        );
                        verdict.wrong("not recovered", wrong);
                    }
                }
                (None, _) => self.inherits(last, *number, line, verdict),
            }
        }
    }

    /// Without a cursor, but from a gateway that died: what it had not got acknowledged.
    fn inherits(&self, last: &Line, number: u64, line: &Line, verdict: &mut Verdict) {
        let cut = last.cut.unwrap_or_default();
        let mut deaths = self
            .struck
            .iter()
            .filter(|(at, address)| *address == last.address && last.entered < *at && *at <= cut);
        let Some((died, _)) = deaths.next() else { return };
        let again = self.restarted.iter().find(|(at, to)| *to == last.address && died <= at);
        let until = again.map_or(*died + STILL_A_MEMBER, |(at, _)| *at);
        let until = until.min(*died + STILL_A_MEMBER);
        for (id, stored) in self.owed(last) {
            let owed = id <= line.position && stored.at <= until;
            if !owed || last.acked.contains(&id) {
                continue;
            }
            if line.ids.contains(&id) {
                verdict.taken_over += 1;
            } else if line.cut.is_none() {
                let Stored { text, at, .. } = stored;
                let (user, heard) = (line.user, last.ids.contains(&id));
                let wrong = format!(
                    "{id} {text:?} (receipt {at:?}) was owed to user {user} by a gateway that died \
                     at {died:?} (heard there: {heard}), and never came on line {number}"
                );
                verdict.wrong(if heard { "not repeated" } else { "lost" }, wrong);
            }
        }
    }

    /// The history holds every receipted message once, in order, and nothing nobody said.
    fn histories(&self, verdict: &mut Verdict) {
        for (room, list) in &self.histories {
            let ids: BTreeSet<u64> = list.iter().map(|(id, _)| *id).collect();
            let mut texts = BTreeSet::new();
            for (id, text) in list {
                match self.said.get(text) {
                    None => verdict.wrong("phantom", format!("{id} {text:?} in the history")),
                    Some((_, to)) if *to != To::Room(*room) => {
                        verdict.wrong("misled", format!("{id} {text:?} in the history of {room}"));
                    }
                    Some(_) => {}
                }
                if !texts.insert(text) {
                    verdict.wrong("doubled", format!("{text:?} in the history of {room}"));
                }
            }
            if ids.len() != list.len() || !list.is_sorted() {
                verdict.wrong("disordered", format!("the history of {room}"));
            }
            for (id, stored) in &self.stored {
                if stored.to == To::Room(*room) && !ids.contains(id) {
                    let Stored { text, at, .. } = stored;
                    let wrong = format!("{id} {text:?} (receipt {at:?}) in the history of {room}");
                    verdict.wrong("lost", wrong);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
