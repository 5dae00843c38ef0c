//! A look at the bus itself, in NATS's own text protocol: what an operator
//! would see with the `nats` tool. Nothing of the system's code is used.

use std::path::Path;
use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// How long a leader may take to answer.
const ELECTION_LOOK: Duration = Duration::from_millis(500);

/// A connection to the running system's NATS.
pub(crate) struct Nats(BufReader<TcpStream>);

impl Nats {
    /// Connects as other commands with the same data directory would.
    pub(crate) async fn of(data_dir: &Path) -> Self {
        let url = std::fs::read_to_string(data_dir.join("nats.url")).expect("nats.url is there");
        Self::open(url.trim()).await
    }

    /// Connects as the user of this URL, if it names one, and listens for answers.
    pub(crate) async fn open(url: &str) -> Self {
        let mut nats = Self::at(url).await;
        nats.says("SUB _INBOX.story 1\r\n").await;
        nats
    }

    /// Connects as the user of this URL, if it names one.
    pub(crate) async fn at(url: &str) -> Self {
        let rest = url.strip_prefix("nats://").expect("nats://…");
        let mut hello = json!({ "verbose": false, "pedantic": false, "headers": true });
        let host = match rest.split_once('@') {
            Some((login, host)) => {
                let (user, pass) = login.split_once(':').expect("user:password");
                (hello["user"], hello["pass"]) = (user.into(), pass.into());
                host
            }
            None => rest,
        };
        let stream = TcpStream::connect(host).await.expect("NATS listens");
        stream.set_nodelay(true).expect("a fresh socket takes options");
        let mut nats = Self(BufReader::new(stream));
        nats.line().await; // INFO
        nats.says(&format!("CONNECT {hello}\r\n")).await;
        nats
    }

    /// Whether the server takes a message under this subject, which may then be there.
    pub(crate) async fn may_publish(&mut self, subject: &str) -> bool {
        self.says(&format!("PUB {subject} 0\r\n\r\n")).await;
        self.is_allowed(subject).await
    }

    /// Whether the server lets one listen to this subject.
    pub(crate) async fn may_listen(&mut self, subject: &str) -> bool {
        self.says(&format!("SUB {subject} 9\r\n")).await;
        let allowed = self.is_allowed(subject).await;
        self.says("UNSUB 9\r\n").await;
        allowed
    }

    /// A server answers in order: what it refuses it says before it answers PING.
    async fn is_allowed(&mut self, subject: &str) -> bool {
        self.says("PING\r\n").await;
        let mut allowed = true;
        loop {
            let line = self.line().await;
            assert!(!line.is_empty(), "NATS has hung up over {subject}");
            if line.starts_with("-ERR 'Permissions Violation") {
                assert!(line.contains(&format!("{subject:?}")), "{line}");
                allowed = false;
            } else {
                assert!(!line.starts_with("-ERR"), "{subject}: {line}");
            }
            if line.starts_with("PONG") {
                return allowed;
            }
        }
    }

    /// The server that leads a stream of a cluster. Only a leader answers, so there may be none.
    pub(crate) async fn leader_of(&mut self, stream: &str) -> Option<String> {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        let info = timeout(ELECTION_LOOK, self.asks(&subject, "")).await.ok()?;
        let info: Value = serde_json::from_slice(&info).ok()?; // nothing: nobody answers
        Some(info["cluster"]["leader"].as_str()?.to_owned())
    }

    /// What a stream holds, as its server counts it.
    pub(crate) async fn messages_in(&mut self, stream: &str) -> u64 {
        let info = self.asks(&format!("$JS.API.STREAM.INFO.{stream}"), "").await;
        let info: Value = serde_json::from_slice(&info).expect("an answer in JSON");
        info["state"]["messages"].as_u64().unwrap_or_else(|| panic!("{info}"))
    }

    /// How many of a stream's messages lie under subjects that match `filter`.
    pub(crate) async fn messages_under(&mut self, stream: &str, filter: &str) -> u64 {
        let wanted = json!({ "subjects_filter": filter }).to_string();
        let info = self.asks(&format!("$JS.API.STREAM.INFO.{stream}"), &wanted).await;
        let info: Value = serde_json::from_slice(&info).expect("an answer in JSON");
        let subjects = info["state"]["subjects"].as_object().into_iter().flatten();
        subjects.filter_map(|(_, count)| count.as_u64()).sum()
    }

    /// The newest message of a stream under `subject`, as it lies there.
    pub(crate) async fn last_of(&mut self, stream: &str, subject: &str) -> Vec<u8> {
        let wanted = json!({ "last_by_subj": subject }).to_string();
        self.asks(&format!("$JS.API.DIRECT.GET.{stream}"), &wanted).await
    }

    /// How many readers a stream has.
    pub(crate) async fn readers_of(&mut self, stream: &str) -> u64 {
        let info = self.asks(&format!("$JS.API.STREAM.INFO.{stream}"), "").await;
        let info: Value = serde_json::from_slice(&info).expect("an answer in JSON");
        info["state"]["consumer_count"].as_u64().unwrap_or_else(|| panic!("{info}"))
    }

    /// Calls a micro service: its answer in JSON, or the code it refuses with.
    pub(crate) async fn calls(&mut self, subject: &str, body: &Value) -> Result<Value, String> {
        let (headers, answer) = self.exchange(subject, &body.to_string()).await;
        let refusal =
            headers.lines().find_map(|line| line.strip_prefix("Nats-Service-Error-Code:"));
        match refusal {
            Some(code) => Err(code.trim().to_owned()),
            None => Ok(serde_json::from_slice(&answer).expect("an answer in JSON")),
        }
    }

    /// The newest message of a stream that matches `filter`: its subject, and what it says.
    pub(crate) async fn last_under(&mut self, stream: &str, filter: &str) -> (String, Vec<u8>) {
        let wanted = json!({ "last_by_subj": filter }).to_string();
        let answer = self.asks(&format!("$JS.API.STREAM.MSG.GET.{stream}"), &wanted).await;
        let answer: Value = serde_json::from_slice(&answer).expect("an answer in JSON");
        let message = &answer["message"];
        let text = |key: &str| message[key].as_str().unwrap_or_else(|| panic!("{answer}"));
        let payload = BASE64_STANDARD.decode(text("data")).expect("base64");
        (text("subject").to_owned(), payload)
    }

    /// A stream's message at this place is deleted.
    pub(crate) async fn loses(&mut self, stream: &str, seq: u64) {
        let wanted = json!({ "seq": seq, "no_erase": true }).to_string();
        let answer = self.asks(&format!("$JS.API.STREAM.MSG.DELETE.{stream}"), &wanted).await;
        let answer: Value = serde_json::from_slice(&answer).expect("an answer in JSON");
        assert_eq!(answer["success"], true, "{answer}");
    }

    /// Throws away everything in a stream.
    pub(crate) async fn empties(&mut self, stream: &str) {
        let answer = self.asks(&format!("$JS.API.STREAM.PURGE.{stream}"), "").await;
        let answer: Value = serde_json::from_slice(&answer).expect("an answer in JSON");
        assert_eq!(answer["success"], true, "{answer}");
    }

    /// From now on a stream knows the ids of what it stored for so long only.
    pub(crate) async fn remembers_for(&mut self, stream: &str, window: Duration) {
        let info = self.asks(&format!("$JS.API.STREAM.INFO.{stream}"), "").await;
        let mut info: Value = serde_json::from_slice(&info).expect("an answer in JSON");
        let mut config = info["config"].take();
        config["duplicate_window"] = json!(window.as_nanos());
        let update = format!("$JS.API.STREAM.UPDATE.{stream}");
        let answer = self.asks(&update, &config.to_string()).await;
        let answer: Value = serde_json::from_slice(&answer).expect("an answer in JSON");
        assert!(answer["error"].is_null(), "{answer}");
    }

    /// Stores a message under an id; whether the stream knew it.
    pub(crate) async fn knows(&mut self, subject: &str, id: &str, payload: &[u8]) -> bool {
        let headers = format!("NATS/1.0\r\nNats-Msg-Id: {id}\r\n\r\n");
        let (length, total) = (headers.len(), headers.len() + payload.len());
        let head = format!("HPUB {subject} _INBOX.story {length} {total}\r\n{headers}");
        let message = [head.as_bytes(), payload, b"\r\n"].concat();
        self.0.get_mut().write_all(&message).await.expect("NATS hears");
        let (_, answer) = self.answer().await;
        let answer: Value = serde_json::from_slice(&answer).expect("an answer in JSON");
        assert!(answer["error"].is_null(), "{answer}");
        answer["duplicate"] == true
    }

    /// Publishes bytes and waits for the answer: a stream's, or a service's.
    pub(crate) async fn commands(&mut self, subject: &str, payload: &[u8]) -> Vec<u8> {
        self.exchange_bytes(subject, payload).await.1
    }

    async fn asks(&mut self, subject: &str, payload: &str) -> Vec<u8> {
        self.exchange(subject, payload).await.1
    }

    /// The headers and the body of the answer.
    async fn exchange(&mut self, subject: &str, payload: &str) -> (String, Vec<u8>) {
        self.exchange_bytes(subject, payload.as_bytes()).await
    }

    async fn exchange_bytes(&mut self, subject: &str, payload: &[u8]) -> (String, Vec<u8>) {
        let head = format!("PUB {subject} _INBOX.story {}\r\n", payload.len());
        let frame = [head.as_bytes(), payload, b"\r\n"].concat();
        self.0.get_mut().write_all(&frame).await.expect("NATS hears");
        self.answer().await
    }

    async fn answer(&mut self) -> (String, Vec<u8>) {
        loop {
            let line = self.line().await;
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |word: &str| word.parse::<usize>().expect("a length");
            let (headers, total) = match words.as_slice() {
                ["PING"] => {
                    self.says("PONG\r\n").await;
                    continue;
                }
                ["MSG", .., total] => (0, number(total)),
                ["HMSG", .., headers, total] => (number(headers), number(total)),
                _ => continue, // INFO comes again now and then
            };
            let mut message = vec![0; total + 2];
            self.0.read_exact(&mut message).await.expect("the message is there");
            let text = String::from_utf8_lossy(&message[..headers]).into_owned();
            return (text, message[headers..total].to_vec());
        }
    }

    async fn says(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).await.expect("NATS hears");
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.expect("NATS answers");
        line
    }
}

/// A value in MessagePack, as services and buckets speak it. Written out here,
/// because nothing of the system's own code may be used.
pub(crate) fn packed(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    pack(value, &mut out);
    out
}

fn pack(value: &Value, out: &mut Vec<u8>) {
    let length = |n: usize| u16::try_from(n).expect("short").to_be_bytes();
    match value {
        Value::Null => out.push(0xc0),
        Value::Bool(yes) => out.push(if *yes { 0xc3 } else { 0xc2 }),
        Value::Number(number) => {
            out.push(0xcf);
            out.extend(number.as_u64().expect("a whole number").to_be_bytes());
        }
        Value::String(text) => {
            out.push(0xda);
            out.extend(length(text.len()));
            out.extend(text.as_bytes());
        }
        Value::Array(items) => {
            out.push(0xdc);
            out.extend(length(items.len()));
            items.iter().for_each(|item| pack(item, out));
        }
        Value::Object(fields) => {
            out.push(0xde);
            out.extend(length(fields.len()));
            for (name, field) in fields {
                pack(&Value::String(name.clone()), out);
                pack(field, out);
            }
        }
    }
}
