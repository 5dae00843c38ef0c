//! A crowd that talks without end, acknowledges, repeats what was not stored, comes back, and has
//! everything written down.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::checker::{Entry, To, What};
use crate::harness::{APP, Person, Room, Socket};

/// A 5000 must come within 10 s (architecture.md, "A receipt is a PubAck"); the rest is ours.
const ANSWER: Duration = Duration::from_secs(12);
/// After a 5000 or a 4008.
const SAY_AGAIN: Duration = Duration::from_millis(200);
/// A gateway that does not let one in within this is left for another.
const KNOCK: Duration = Duration::from_secs(2);
const KNOCK_AGAIN: Duration = Duration::from_millis(100);
/// Nobody is ever silent for as long as the idle timeout.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// What was seen, by everybody, in one order.
pub(crate) struct Record {
    began: Instant,
    entries: Mutex<Vec<Entry>>,
    next_line: AtomicU64,
    /// Something is on its way to be stored; something was just stored.
    pub(crate) said: Notify,
    pub(crate) stored: Notify,
}

impl Record {
    pub(crate) fn new() -> Arc<Self> {
        let (began, entries, next_line) = (Instant::now(), Mutex::default(), AtomicU64::new(1));
        Arc::new(Self { began, entries, next_line, said: Notify::new(), stored: Notify::new() })
    }

    pub(crate) fn keeps(&self, what: What) {
        let signal = match what {
            What::Said { .. } => Some(&self.said),
            What::Answered { outcome: Ok(_), .. } => Some(&self.stored),
            _ => None,
        };
        let mut entries = self.entries.lock().unwrap();
        entries.push(Entry { at: self.began.elapsed(), what });
        drop(entries);
        if let Some(signal) = signal {
            signal.notify_waiters();
        }
    }

    /// On the clock of the entries.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The highest one in a receipt.
    pub(crate) fn last_msg_id(&self) -> u64 {
        let ids = self.so_far().into_iter().filter_map(|entry| match entry.what {
            What::Answered { outcome, .. } => outcome.ok(),
            _ => None,
        });
        ids.max().unwrap_or(0)
    }

    pub(crate) fn so_far(&self) -> Vec<Entry> {
        self.entries.lock().unwrap().clone()
    }
}

/// How somebody behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Device {
    Browser,
    Phone,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Comeback {
    /// With the last msgId heard.
    WithCursor,
    /// As if for the first time.
    Bare,
    Never,
}

#[derive(Clone)]
pub(crate) struct Habits {
    pub(crate) room: Option<Room>,
    pub(crate) device: Device,
    pub(crate) comeback: Comeback,
    /// Between two things said, on average.
    pub(crate) pause: Duration,
}

/// What all of them share.
pub(crate) struct Crowd {
    pub(crate) record: Arc<Record>,
    /// While false, what is heard is acknowledged later.
    pub(crate) acks: watch::Sender<bool>,
    /// Nobody says anything new.
    quiet: CancellationToken,
    /// Everybody goes home.
    over: CancellationToken,
    members: JoinSet<()>,
    /// Whom one may whisper to.
    everybody: Arc<Mutex<Vec<u64>>>,
    seed: u64,
}

impl Crowd {
    pub(crate) fn new(seed: u64) -> Self {
        let (quiet, over) = (CancellationToken::new(), CancellationToken::new());
        let (record, acks) = (Record::new(), watch::Sender::new(true));
        let (members, everybody) = (JoinSet::new(), Arc::default());
        Self { record, acks, quiet, over, members, everybody, seed }
    }

    /// Somebody whom others whisper to and who never comes.
    pub(crate) fn knows(&self, person: &Person) {
        self.everybody.lock().unwrap().push(person.id);
    }

    /// Enters through `person`'s door, and from then on goes where getImConfig says.
    pub(crate) async fn joined_by(&mut self, person: &Person, through: &Person, habits: Habits) {
        let mut member = Member {
            person: person.clone(),
            habits,
            record: Arc::clone(&self.record),
            acks: self.acks.subscribe(),
            quiet: self.quiet.clone(),
            over: self.over.clone(),
            everybody: Arc::clone(&self.everybody),
            rng: StdRng::seed_from_u64(self.seed ^ person.id),
            saying: None,
            said: 0,
            cursor: None,
        };
        let socket = member.knocks(through, 0).await;
        let socket = socket.unwrap_or_else(|error| panic!("{}: {error:#}", person.name));
        self.knows(person);
        self.members.spawn(async move { member.lives(socket).await });
    }

    /// Nobody says anything new; who waits for a receipt goes on asking.
    pub(crate) fn falls_silent(&self) {
        self.quiet.cancel();
    }

    /// Everybody leaves.
    pub(crate) async fn goes_home(&mut self) {
        self.over.cancel();
        while let Some(ended) = self.members.join_next().await {
            ended.expect("a member fails loudly");
        }
    }

    /// A member that failed, fails the story now rather than at its end.
    pub(crate) fn is_well(&mut self) {
        while let Some(ended) = self.members.try_join_next() {
            ended.expect("a member fails loudly");
        }
    }

    /// Reads the histories and what waits, into the record.
    pub(crate) async fn reads_up(&self, rooms: &[Room], people: &[Person]) {
        let reader = &people[0];
        join_all(rooms.iter().map(|room| async {
            let id = room.to_string();
            let (mut list, mut before) = (Vec::new(), String::new());
            loop {
                let mut params = vec![("roomId", id.as_str()), ("limit", "100")];
                if !before.is_empty() {
                    params.push(("before", &before));
                }
                let data = reader.gets("/im/history", &params).await;
                let mut page = page(&data);
                page.append(&mut list);
                list = page;
                if data["hasNext"] == false {
                    break;
                }
                before = list[0].0.to_string();
            }
            self.record.keeps(What::History { room: room.0, list });
        }))
        .await;
        for person in people {
            let (mut list, mut after) = (Vec::new(), "0".to_owned());
            loop {
                let params = [("after", after.as_str()), ("limit", "100")];
                let data = person.gets("/im/offline/pull", &params).await;
                list.append(&mut page(&data));
                if data["hasNext"] == false {
                    break;
                }
                after = list.last().expect("a page before a next one").0.to_string();
            }
            self.record.keeps(What::Waiting { user: person.id, list });
        }
    }
}

fn page(data: &Value) -> Vec<(u64, String)> {
    let list = data["list"].as_array().unwrap_or_else(|| panic!("no list in {data}"));
    list.iter().map(|body| (msg_id(body), content(body).1)).collect()
}

/// Somebody, over all their connections.
struct Member {
    person: Person,
    habits: Habits,
    record: Arc<Record>,
    acks: watch::Receiver<bool>,
    quiet: CancellationToken,
    over: CancellationToken,
    everybody: Arc<Mutex<Vec<u64>>>,
    rng: StdRng,
    /// What waits for its receipt, and when to give up waiting or to say it again.
    saying: Option<Saying>,
    said: u64,
    cursor: Option<u64>,
}

struct Saying {
    text: String,
    to: To,
    /// None: it is to be said again at `due`. Else the answer is due then.
    asked: bool,
    due: Instant,
}

impl Member {
    async fn knocks(&mut self, through: &Person, attempt: usize) -> anyhow::Result<Socket> {
        let (room, silent) = (self.habits.room, through.never_acks()); // it acks by hand
        let cursor = self.cursor.filter(|_| self.habits.comeback == Comeback::WithCursor);
        let cursor = cursor.filter(|_| room.is_some());
        let coming = async {
            match self.habits.device {
                Device::Browser => silent.may_browse(room.as_ref(), cursor, attempt).await,
                Device::Phone => silent.may_phone(room.as_ref(), cursor, attempt).await,
            }
        };
        timeout(KNOCK, coming).await?
    }

    async fn lives(mut self, mut socket: Socket) {
        loop {
            let line = self.enters(&socket);
            let Some((code, reason)) = self.converses(&mut socket, line).await else { return };
            let number = reason.split_once("retry_ms=").map(|(_, number)| number);
            let number = number.and_then(|n| n.split(|c: char| !c.is_ascii_digit()).next());
            let retry = number.and_then(|n| n.parse().ok()).map(Duration::from_millis);
            let retry = retry.unwrap_or_default();
            self.record.keeps(What::Cut { line, code, retry });
            let stays = code.is_none_or(|code| code == 1012 || (3000..3500).contains(&code));
            assert!(stays, "{} was shown out: {code:?} {reason:?}", self.person.name);
            if self.habits.comeback == Comeback::Never {
                return;
            }
            drop(socket);
            sleep(retry).await; // as asked
            let Some(back) = self.comes_back().await else { return };
            socket = back;
        }
    }

    async fn comes_back(&mut self) -> Option<Socket> {
        let person = self.person.clone();
        for attempt in 0.. {
            if self.over.is_cancelled() {
                return None;
            }
            match self.knocks(&person, attempt).await {
                Ok(socket) => return Some(socket),
                Err(_) => sleep(KNOCK_AGAIN).await,
            }
        }
        None
    }

    /// Writes the entry down.
    fn enters(&mut self, socket: &Socket) -> u64 {
        let line = self.record.next_line.fetch_add(1, Ordering::Relaxed);
        let (user, address) = (self.person.id, socket.address.clone());
        let (welcome, room) = (socket.welcome(), self.habits.room.map(|room| room.0));
        let position = room.map_or(0, |_| msg_id(welcome));
        let with_cursor = self.habits.comeback == Comeback::WithCursor && room.is_some();
        let cursor = self.cursor.filter(|_| with_cursor);
        let recovered = welcome["recovered"].as_bool();
        if room.is_some() && !(cursor.is_some() && recovered == Some(true)) {
            self.cursor = Some(position);
        }
        let entered = What::Entered { line, user, address, room, position, cursor, recovered };
        self.record.keeps(entered);
        line
    }

    /// Until the connection ends, or everything is over.
    async fn converses(&mut self, socket: &mut Socket, line: u64) -> Option<(Option<u16>, String)> {
        if let Some(saying) = &mut self.saying {
            (saying.asked, saying.due) = (false, Instant::now()); // nobody answers on a dead line
        }
        let mut next = Instant::now() + self.a_while();
        let mut beat = Instant::now() + HEARTBEAT;
        let mut owed = Vec::new();
        loop {
            let due = self.saying.as_ref().map_or(next, |saying| saying.due);
            let speaks = self.saying.is_some() || !self.quiet.is_cancelled();
            let (quiet, over) = (self.quiet.clone(), self.over.clone());
            tokio::select! {
                biased; // what has arrived comes before what is said next
                frame = socket.next_frame() => match frame {
                    Ok((code, body)) => self.takes(socket, line, code, &body, &mut owed),
                    Err(ending) => return Some(ending),
                },
                Ok(()) = self.acks.changed() => self.acks_owed(socket, line, &mut owed),
                () = over.cancelled() => return None,
                () = quiet.cancelled(), if speaks && self.saying.is_none() => {}
                () = sleep_until(due), if speaks => {
                    self.speaks(socket);
                    next = Instant::now() + self.a_while();
                }
                () = sleep_until(beat) => {
                    socket.sends(1004, json!({ "appId": APP, "userId": self.person.id }));
                    beat = Instant::now() + HEARTBEAT;
                }
            }
        }
    }

    fn a_while(&mut self) -> Duration {
        self.habits.pause.mul_f64(self.rng.random_range(0.5..1.5))
    }

    /// Says something new, or the same again, under the same id.
    fn speaks(&mut self, socket: &Socket) {
        let saying = match self.saying.take() {
            Some(saying) if saying.asked => {
                self.record.keeps(What::Unanswered);
                saying
            }
            Some(saying) => saying,
            None => {
                self.said += 1;
                let text = format!("f-{}-{}", self.person.id, self.said);
                let (to, due) = (self.chooses(), Instant::now());
                let (user, said) = (self.person.id, text.clone());
                self.record.keeps(What::Said { user, text: said, to });
                Saying { text, to, asked: false, due }
            }
        };
        let data = match saying.to {
            To::Room(room) => json!({ "roomId": room, "type": 1, "content": saying.text }),
            To::User(user) => json!({ "objectId": user, "content": saying.text }),
        };
        socket.sends(1003, socket.chat(&data, Some(&saying.text)));
        self.saying = Some(Saying { asked: true, due: Instant::now() + ANSWER, ..saying });
    }

    /// Mostly the room; one in five is a whisper to anybody else.
    fn chooses(&mut self) -> To {
        let others = self.everybody.lock().unwrap();
        let other = others[self.rng.random_range(0..others.len())];
        match self.habits.room {
            Some(room) if self.rng.random_ratio(4, 5) || other == self.person.id => {
                To::Room(room.0)
            }
            _ => To::User(other),
        }
    }

    fn takes(&mut self, socket: &Socket, line: u64, code: i64, body: &Value, owed: &mut Vec<u64>) {
        match code {
            1006 => self.is_answered(body),
            1003 if body["bizCode"] == 5555 => {
                assert_eq!(body["userId"], self.person.id, "not the recipient: {body}");
                let (msg_id, (to, text)) = (msg_id(body), content(body));
                let to = to.unwrap_or(To::User(self.person.id));
                if let (To::Room(_), Some(cursor)) = (to, self.cursor) {
                    self.cursor = Some(cursor.max(msg_id));
                }
                self.record.keeps(What::Heard { line, to, msg_id, text });
                owed.push(msg_id);
                self.acks_owed(socket, line, owed);
            }
            _ => {} // notices without a msgId, 1002 before the close, 1004
        }
    }

    fn acks_owed(&self, socket: &Socket, line: u64, owed: &mut Vec<u64>) {
        if *self.acks.borrow() && !owed.is_empty() {
            socket.acks(owed);
            for msg_id in owed.drain(..) {
                self.record.keeps(What::Acked { line, msg_id });
            }
        }
    }

    fn is_answered(&mut self, body: &Value) {
        let text = body["clientMsgId"].as_str();
        let text = text.unwrap_or_else(|| panic!("an answer to nothing: {body}")).to_owned();
        let outcome = match body["data"].as_str() {
            Some("true") => Ok(msg_id(body)),
            _ => Err(body["bizCode"].as_i64().unwrap_or_else(|| panic!("{body}"))),
        };
        let mine = self.saying.as_ref().is_some_and(|saying| saying.text == text);
        match (&outcome, &mut self.saying) {
            (Ok(_), saying) if mine => *saying = None,
            (Err(_), Some(saying)) if mine => {
                (saying.asked, saying.due) = (false, Instant::now() + SAY_AGAIN);
            }
            _ => {} // the second answer to what was said twice
        }
        let user = self.person.id;
        self.record.keeps(What::Answered { user, text, outcome });
    }
}

fn msg_id(body: &Value) -> u64 {
    let digits = body["msgId"].as_str().and_then(|digits| digits.parse().ok());
    digits.unwrap_or_else(|| panic!("no msgId in {body}"))
}

/// The room, where it was said to one, and the text.
fn content(body: &Value) -> (Option<To>, String) {
    let data = body["data"].as_str().unwrap_or_default();
    let data: Value = serde_json::from_str(data).unwrap_or_else(|_| panic!("not JSON: {body}"));
    let text = data["content"].as_str().unwrap_or_else(|| panic!("no content in {body}"));
    (data["roomId"].as_u64().map(To::Room), text.to_owned())
}
