//! The smallest HTTP/1.1 client that tells the truth: one request, one connection.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::wait::PATIENCE;

/// How parameters travel. The contract allows all three on every route.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Query,
    Form,
    Json,
}

/// A request; headers that every request has are added when it is sent.
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// The envelope every route of the seed answers in.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i64,
    pub(crate) msg: String,
    pub(crate) data: Value,
}

impl Request {
    pub(crate) fn get(path: &str) -> Self {
        Self { method: "GET", path: path.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    /// A POST that carries `params` in the way `how` says.
    pub(crate) fn post(path: &str, params: &[(&str, &str)], how: How) -> Self {
        let (path, kind, body) = match how {
            How::Query if params.is_empty() => (path.to_owned(), None, String::new()),
            How::Query => (format!("{path}?{}", form(params)), None, String::new()),
            How::Form => (path.to_owned(), Some("application/x-www-form-urlencoded"), form(params)),
            How::Json => (path.to_owned(), Some("application/json"), object(params).to_string()),
        };
        let headers = kind.map(|kind| ("content-type".to_owned(), kind.to_owned()));
        let headers = headers.into_iter().collect();
        Self { method: "POST", path, headers, body: body.into_bytes() }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends it to `host` (`address:port`) on a connection of its own.
    pub(crate) async fn send(self, host: &str) -> Reply {
        let what = format!("{} {}", self.method, self.path);
        let Ok(reply) = timeout(PATIENCE, self.exchange(host)).await else {
            panic!("{what} was not answered within {PATIENCE:?}");
        };
        reply.unwrap_or_else(|error| panic!("{what}: {error:#}"))
    }

    /// Like [`Request::send`], to a host that may be gone.
    pub(crate) async fn may_send(self, host: &str) -> anyhow::Result<Reply> {
        timeout(PATIENCE, self.exchange(host)).await?
    }

    async fn exchange(self, host: &str) -> anyhow::Result<Reply> {
        let mut line = TcpStream::connect(host).await?;
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("connection: close\r\ncontent-length: {}\r\n\r\n", self.body.len());
        line.write_all(&[head.as_bytes(), &self.body].concat()).await?;
        let mut raw = Vec::new();
        line.read_to_end(&mut raw).await?;
        Reply::parse(&raw)
    }
}

impl Reply {
    fn parse(raw: &[u8]) -> anyhow::Result<Self> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(start) = head.parse(raw)? else {
            anyhow::bail!("the head was cut short: {:?}", String::from_utf8_lossy(raw));
        };
        let status = head.code.unwrap_or_default();
        let headers = head.headers.iter().map(|header| {
            (header.name.to_lowercase(), String::from_utf8_lossy(header.value).into_owned())
        });
        let mut reply = Self { status, headers: headers.collect(), body: raw[start..].to_vec() };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = unchunk(&reply.body)?;
        } else if let Some(length) = reply.header("content-length") {
            anyhow::ensure!(length.parse() == Ok(reply.body.len()), "the body was cut short");
        }
        Ok(reply)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// The envelope, which travels under status 200 whatever its code.
    pub(crate) fn answer(&self) -> Answer {
        assert_eq!(self.status, 200, "{}", self.text());
        let mut body = self.json();
        let code = body["code"].as_i64().unwrap_or_else(|| panic!("no code in {body}"));
        let msg = body["msg"].as_str().unwrap_or_else(|| panic!("no msg in {body}")).to_owned();
        Answer { code, msg, data: body["data"].take() }
    }
}

impl Answer {
    /// The data of an answer that must be a success.
    pub(crate) fn success(self) -> Value {
        assert_eq!((self.code, self.msg.as_str()), (200, "success"), "{}", self.data);
        self.data
    }
}

/// Percent-encodes every byte of `text` that is not a letter or a digit.
pub(crate) fn percent(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn form(params: &[(&str, &str)]) -> String {
    let pairs = params.iter().map(|(key, value)| format!("{}={}", percent(key), percent(value)));
    pairs.collect::<Vec<_>>().join("&")
}

/// Parameters as a client would write them in JSON: numbers and booleans bare.
fn object(params: &[(&str, &str)]) -> Value {
    let bare = |value: &str| match serde_json::from_str(value) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::from(value),
    };
    params.iter().map(|(key, value)| ((*key).to_owned(), bare(value))).collect()
}

fn unchunk(mut rest: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let httparse::Status::Complete((start, len)) =
            httparse::parse_chunk_size(rest).map_err(|_| anyhow::anyhow!("bad chunk size"))?
        else {
            anyhow::bail!("the last chunk is missing");
        };
        let end = start + usize::try_from(len)?;
        if len == 0 {
            return Ok(whole);
        }
        anyhow::ensure!(end + 2 <= rest.len(), "a chunk was cut short");
        whole.extend_from_slice(&rest[start..end]);
        rest = &rest[end + 2..];
    }
}
