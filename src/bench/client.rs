//! One client: a TCP connection that acknowledges what it hears, and may speak.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BytesMut};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Mutex,
    time::{interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    site::{Person, Site},
    tally::{Ear, Sound, Tally, Window},
};

/// docs/PROTOCOL.md, section 2.
const MAGIC: i16 = 18673;
const HEADER: usize = 10;
const LOGIN: i32 = 1001;
const BUSINESS: i32 = 1003;
const HEARTBEAT: i32 = 1004;
const ACK: i32 = 1005;
const RECEIPT: i32 = 1006;
/// The tenant that exists by default.
const APP: u64 = 10001;
/// What chat is.
const CHAT: i32 = 5555;
/// How long a login may take.
const LOGIN_PATIENCE: Duration = Duration::from_secs(30);
/// Half of what the server waits for a sign of life.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(25);
/// In front of what a bench says: its number and when it was due.
const MARK: &str = "bench ";

/// To whom something is said.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To {
    Room(u64),
    User(u64),
}

/// What a client does with what it hears.
#[derive(Clone)]
pub(crate) struct Hall {
    pub(crate) tally: Arc<Tally>,
    /// `None`: nobody waits for it to be heard.
    pub(crate) window: Option<Arc<Window>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// A logged-in client that can speak.
pub(crate) struct Client {
    write: Arc<Mutex<OwnedWriteHalf>>,
    user: u64,
}

impl Hall {
    pub(crate) fn new(window: Option<Arc<Window>>) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Self { tally: Tally::new(), window, tasks, stop }
    }

    /// Brings somebody in, who listens from here on.
    pub(crate) async fn enter(
        &self,
        site: &Site,
        person: &Person,
        room: Option<u64>,
    ) -> anyhow::Result<Client> {
        let (token, address) = site.ticket(person).await?;
        let stream = TcpStream::connect(&address).await;
        let stream = stream.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (mut read, mut write) = stream.into_split();
        let mut body = json!({ "appId": APP, "userId": person.user, "token": token });
        if let Some(room) = room {
            body["roomId"] = json!(room);
        }
        write.write_all(&frame(LOGIN, &body.to_string())).await?;
        let mut input = BytesMut::new();
        let welcome = async {
            loop {
                if let Some((code, body)) = next(&mut input)? {
                    ensure!(code == LOGIN, "the first answer is {code}");
                    ensure!(find(&body, r#""data":"true""#).is_some(), "not let in");
                    return Ok(());
                }
                if read.read_buf(&mut input).await? == 0 {
                    bail!("the connection ended before it was let in");
                }
            }
        };
        timeout(LOGIN_PATIENCE, welcome).await.context("wait to be let in")??;
        let write = Arc::new(Mutex::new(write));
        let (hall, line) = (self.clone(), Arc::clone(&write));
        self.tasks.spawn(async move {
            let listening = hall.listen(read, input, &line);
            let ended = hall.stop.run_until_cancelled(listening).await;
            if ended.is_some() {
                hall.tally.broken.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Client { write, user: person.user })
    }

    /// Until the connection ends.
    async fn listen(
        &self,
        mut read: OwnedReadHalf,
        mut input: BytesMut,
        write: &Mutex<OwnedWriteHalf>,
    ) -> anyhow::Result<()> {
        let (mut ear, mut sent_us) = (Ear::default(), Vec::new());
        let mut heartbeat = interval(HEARTBEAT_EVERY);
        loop {
            let mut acks = String::new();
            sent_us.clear();
            while let Some((code, body)) = next(&mut input)? {
                match code {
                    BUSINESS => self.hear(&body, &mut ear, &mut acks, &mut sent_us),
                    RECEIPT => self.read_receipt(&body),
                    _ => {}
                }
            }
            if !sent_us.is_empty() {
                self.tally.arrived(&sent_us);
            }
            if !acks.is_empty() {
                let body = format!(r#"{{"msgIds":[{}]}}"#, acks.trim_end_matches(','));
                write.lock().await.write_all(&frame(ACK, &body)).await?;
            }
            tokio::select! {
                biased; // a sign of life must not wait for silence
                _ = heartbeat.tick() => {
                    write.lock().await.write_all(&frame(HEARTBEAT, "{}")).await?;
                }
                read = read.read_buf(&mut input) => if read? == 0 { return Ok(()) },
            }
        }
    }

    fn hear(&self, body: &[u8], ear: &mut Ear, acks: &mut String, sent_us: &mut Vec<u64>) {
        let Some(id) = digits_after(body, r#""msgId":""#) else { return }; // a notice
        *acks += &format!(r#""{id}","#);
        let Some(at) = find(body, MARK) else { return };
        let said = &body[at + MARK.len()..];
        let mut numbers = said.split(|byte| !byte.is_ascii_digit()).map(number);
        let (Some(Some(said)), Some(Some(due_us))) = (numbers.next(), numbers.next()) else {
            return;
        };
        match ear.hear(said) {
            Sound::Again => {
                self.tally.doubled.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Sound::OutOfOrder => drop(self.tally.reordered.fetch_add(1, Ordering::Relaxed)),
            Sound::New => {}
        }
        sent_us.push(due_us);
        if let Some(window) = &self.window {
            window.heard(said);
        }
    }

    fn read_receipt(&self, body: &[u8]) {
        let due_us = digits_after(body, r#""clientMsgId":"b"#);
        match (due_us, find(body, r#""data":"true""#)) {
            (Some(due_us), Some(_)) => self.tally.receipted(due_us),
            _ => drop(self.tally.refused.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

impl Client {
    /// Says `number`, which was due then.
    pub(crate) async fn say(&self, to: To, number: u64, due_us: u64) -> anyhow::Result<()> {
        let content = format!("{MARK}{number} {due_us} and as many words as a person says at once");
        let data = match to {
            To::Room(room) => json!({ "roomId": room, "content": content }),
            To::User(user) => json!({ "objectId": user, "content": content }),
        };
        let body = json!({
            "appId": APP, "userId": self.user, "bizCode": CHAT, "data": data.to_string(),
            "clientMsgId": format!("b{due_us}-{number}"),
        });
        let frame = frame(BUSINESS, &body.to_string());
        self.write.lock().await.write_all(&frame).await.context("speak")
    }
}

fn frame(code: i32, body: &str) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend_from_slice(&MAGIC.to_be_bytes());
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(body.as_bytes());
    frame
}

/// The next whole frame, if there is one.
fn next(input: &mut BytesMut) -> anyhow::Result<Option<(i32, BytesMut)>> {
    if input.len() < HEADER {
        return Ok(None);
    }
    let mut header = &input[..HEADER];
    ensure!(header.get_i16() == MAGIC, "a frame begins with something else");
    let (code, bytes) = (header.get_i32(), header.get_u32() as usize);
    if input.len() < HEADER + bytes {
        return Ok(None);
    }
    input.advance(HEADER);
    Ok(Some((code, input.split_to(bytes))))
}

fn find(body: &[u8], word: &str) -> Option<usize> {
    let first = word.as_bytes()[0];
    let mut from = 0;
    while let Some(at) = body[from..].iter().position(|byte| *byte == first) {
        let at = from + at;
        if body[at..].starts_with(word.as_bytes()) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

fn digits_after(body: &[u8], word: &str) -> Option<u64> {
    let rest = &body[find(body, word)? + word.len()..];
    number(rest.split(|byte| !byte.is_ascii_digit()).next()?)
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
