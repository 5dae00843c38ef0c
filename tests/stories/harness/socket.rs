//! A connection and its person's ears: every frame is checked, sorted and kept until asked for.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use super::person::{APP, Person};
use super::wait::PATIENCE;
use super::{tcp, ws};

/// Chat in a living room.
const CHAT: i64 = 5555;

/// A clientMsgId nobody used before.
pub(crate) fn fresh_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("story-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A frame from the server, its body parsed.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) code: i64,
    pub(crate) body: Value,
    pub(crate) at: Instant,
}

/// A chat message that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) msg_id: u64,
    pub(crate) data: Value,
    pub(crate) at: Instant,
}

impl Heard {
    pub(crate) fn text(&self) -> &str {
        self.data["content"].as_str().unwrap_or_else(|| panic!("no content in {}", self.data))
    }
}

pub(crate) fn msg_ids(heard: &[Heard]) -> Vec<u64> {
    heard.iter().map(|heard| heard.msg_id).collect()
}

/// The server's answer to something said: the msgId it was stored under, or the reason why not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Receipt {
    pub(crate) client_msg_id: Option<String>,
    pub(crate) outcome: Result<u64, i64>,
}

/// How a connection ended. A phone never sees a code.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) code: Option<u16>,
    pub(crate) reason: String,
    pub(crate) at: Instant,
}

/// What a reader task reports.
pub(crate) enum Event {
    Frame(Frame),
    Pong(Bytes),
    Broken(String),
    Ended(Ending),
}

/// The way out: batches, each handed to the kernel in one write.
#[derive(Clone)]
pub(crate) enum Line {
    Ws(UnboundedSender<Vec<Message>>),
    Tcp(UnboundedSender<Vec<u8>>),
}

impl Line {
    /// Where the other side has ended the connection nothing is sent; the story sees the ending.
    pub(crate) fn put(&self, frames: &[(i64, String)]) {
        match self {
            Self::Ws(out) => {
                let texts = frames.iter().map(|(code, body)| Message::text(ws::text(*code, body)));
                out.send(texts.collect()).ok();
            }
            Self::Tcp(out) => {
                let bytes = frames.iter().flat_map(|(code, body)| tcp::frame(*code, body));
                out.send(bytes.collect()).ok();
            }
        }
    }
}

/// What a reader task needs: where to report, when to read, and how to acknowledge.
pub(crate) struct Ears {
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) reading: watch::Receiver<bool>,
    line: Line,
    acks: Option<Value>,
}

impl Ears {
    /// Reports a frame; a message is acknowledged first, as fast as a client can.
    pub(crate) fn take(&self, frame: Result<(i64, Value), String>) {
        let (code, body) = match frame {
            Ok(frame) => frame,
            Err(why) => return self.report(Event::Broken(why)),
        };
        if let (1003, Some(ack), Some(msg_id)) = (code, &self.acks, body.get("msgId")) {
            let mut ack = ack.clone();
            ack["msgId"] = msg_id.clone();
            self.line.put(&[(1005, ack.to_string())]);
        }
        self.report(Event::Frame(Frame { code, body, at: Instant::now() }));
    }

    pub(crate) fn report(&self, event: Event) {
        self.events.send(event).ok();
    }

    pub(crate) fn end(&self, code: Option<u16>, reason: String) {
        self.report(Event::Ended(Ending { code, reason, at: Instant::now() }));
    }
}

/// What arrived and was not asked for yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) chats: VecDeque<Heard>,
    pub(super) notices: VecDeque<Frame>,
    pub(super) receipts: VecDeque<Receipt>,
    /// Answers to 1001, 1002 and 1004.
    pub(super) replies: VecDeque<Frame>,
    pub(super) pongs: VecDeque<Bytes>,
    pub(super) ending: Option<Ending>,
}

/// One connection of one person.
pub(crate) struct Socket {
    pub(crate) person: Person,
    pub(super) line: Line,
    events: UnboundedReceiver<Event>,
    pub(super) reading: watch::Sender<bool>,
    pub(super) inbox: Inbox,
    /// What the upgrade selected.
    pub(crate) subprotocol: Option<String>,
    /// The 1001 reply, once it came.
    welcome: Option<Value>,
    /// Where it is connected to; empty where nobody asked.
    pub(crate) address: String,
    tasks: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a connection of {}", self.person.name)
    }
}

/// Waiting, and the facts of the connection.
impl Socket {
    /// A connection whose two tasks `start` spawns.
    pub(crate) fn over(
        person: &Person,
        line: Line,
        start: impl FnOnce(Ears) -> Vec<JoinHandle<()>>,
    ) -> Self {
        let (events, arriving) = unbounded_channel();
        let (reading, may_read) = watch::channel(true);
        let acks = person.does_ack().then(|| json!({ "appId": APP, "userId": person.id }));
        let tasks = start(Ears { events, reading: may_read, line: line.clone(), acks });
        let (inbox, person) = (Inbox::default(), person.clone());
        let (subprotocol, welcome, address) = (None, None, String::new());
        Self {
            person,
            line,
            events: arriving,
            reading,
            inbox,
            subprotocol,
            welcome,
            address,
            tasks,
        }
    }

    /// Waits until `pick` finds what it looks for among what has arrived.
    pub(super) async fn waits<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = pick(&mut self.inbox) {
                return found;
            }
            let name = &self.person.name;
            assert!(self.inbox.ending.is_none(), "{name} waits {what}, but: {:?}", self.inbox);
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) => self.sorts(event),
                Ok(None) => panic!("{name} waits {what}, but the connection's reader died"),
                Err(_) => panic!("{name} waited {PATIENCE:?} {what}: {:?}", self.inbox),
            }
        }
    }

    /// Checks what every frame must satisfy and puts it where its verb looks for it.
    fn sorts(&mut self, event: Event) {
        let frame = match event {
            Event::Frame(frame) => frame,
            Event::Pong(payload) => return self.inbox.pongs.push_back(payload),
            Event::Ended(ending) => return self.inbox.ending = Some(ending),
            Event::Broken(why) => panic!("{} was sent a broken frame: {why}", self.person.name),
        };
        let body = &frame.body;
        let refused_login = frame.code == 1001 && body["data"] == "false";
        if matches!(frame.code, 1001..=1004) && !refused_login {
            assert_eq!(body["userId"], self.person.id, "not the recipient: {body}");
        }
        if matches!(frame.code, 1001 | 1002 | 1004) && !refused_login {
            assert_eq!(body["appId"], APP, "{body}");
        }
        match frame.code {
            1003 => {
                assert!(body["bizCode"].is_i64() && body["data"].is_string(), "{body}");
                if body["bizCode"] == CHAT {
                    self.inbox.chats.push_back(heard(&frame));
                } else {
                    self.inbox.notices.push_back(frame);
                }
            }
            1006 => self.inbox.receipts.push_back(receipt(body)),
            1001 | 1002 | 1004 => self.inbox.replies.push_back(frame),
            code => panic!("the server never sends {code}: {body}"),
        }
    }

    /// The server's 1001, which must say yes.
    pub(crate) async fn enters(mut self) -> Self {
        let welcome = self.is_answered(1001, "true").await;
        self.welcome = Some(welcome);
        self
    }

    /// The position in the log at which this connection entered its room.
    pub(crate) fn entered_at(&self) -> u64 {
        msg_id(self.welcome.as_ref().expect("it logged in"))
    }

    /// The whole 1001 reply.
    pub(crate) fn welcome(&self) -> &Value {
        self.welcome.as_ref().expect("it logged in")
    }
}

/// For who goes on whatever happens to the connection.
impl Socket {
    /// The next frame, code and body, or how the connection ended: close code and reason. Cancel
    /// safe. Frames taken here are seen by no other verb.
    pub(crate) async fn next_frame(&mut self) -> Result<(i64, Value), (Option<u16>, String)> {
        loop {
            match self.events.recv().await {
                Some(Event::Frame(frame)) => return Ok((frame.code, frame.body)),
                Some(Event::Pong(_)) => {}
                Some(Event::Ended(ending)) => return Err((ending.code, ending.reason)),
                Some(Event::Broken(why)) => {
                    panic!("{} was sent a broken frame: {why}", self.person.name)
                }
                None => return Err((None, "the reader died".to_owned())),
            }
        }
    }

    /// Like [`Socket::enters`], where the server may say no or nothing.
    pub(crate) async fn may_enter(mut self) -> anyhow::Result<Self> {
        match self.next_frame().await {
            Ok((1001, body)) if body["data"] == "true" => self.welcome = Some(body),
            Ok((code, body)) => anyhow::bail!("not let in: {code} {body}"),
            Err((code, reason)) => anyhow::bail!("closed: {code:?} {reason:?}"),
        }
        Ok(self)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A msgId, which is a string of digits on the wire.
fn msg_id(body: &Value) -> u64 {
    let digits = body["msgId"].as_str().unwrap_or_else(|| panic!("no msgId in {body}"));
    digits.parse().unwrap_or_else(|_| panic!("the msgId is not digits: {body}"))
}

fn heard(frame: &Frame) -> Heard {
    let data = frame.body["data"].as_str().unwrap_or_default();
    let data = serde_json::from_str(data).unwrap_or_else(|_| panic!("not JSON: {}", frame.body));
    Heard { msg_id: msg_id(&frame.body), data, at: frame.at }
}

fn receipt(body: &Value) -> Receipt {
    let client_msg_id = body["clientMsgId"].as_str().map(str::to_owned);
    let outcome = match body["data"].as_str() {
        Some("true") => Ok(msg_id(body)),
        Some("false") => Err(body["bizCode"].as_i64().unwrap_or_else(|| panic!("{body}"))),
        _ => panic!("neither yes nor no: {body}"),
    };
    assert!(outcome.is_err() || client_msg_id.is_some(), "a success nobody asked for: {body}");
    Receipt { client_msg_id, outcome }
}
