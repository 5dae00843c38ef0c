//! The browser's side: one JSON object a text frame.

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::person::Person;
use super::socket::{Ears, Event, Line, Socket};
use super::wait::PATIENCE;

type Stream = WebSocketStream<TcpStream>;

/// The text of one frame.
pub(crate) fn text(code: i64, body: &str) -> String {
    json!({ "magic": 18673, "code": code, "len": body.len(), "body": body }).to_string()
}

/// Asks for the upgrade; a refusal is the HTTP status.
pub(crate) async fn open(
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    person: &Person,
) -> Result<Socket, u16> {
    match may_open(address, path, headers, person).await {
        Ok(socket) => Ok(socket),
        Err(Refusal::Status(status)) => Err(status),
        Err(Refusal::Broken(why)) => panic!("the upgrade to {path}: {why}"),
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Refusal {
    Status(u16),
    Broken(String),
}

/// Like [`open`], where nobody may be listening.
pub(crate) async fn may_open(
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    person: &Person,
) -> Result<Socket, Refusal> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| Refusal::Broken(format!("{address}: {error}")))?;
    stream.set_nodelay(true).expect("a fresh socket takes options");
    let url = format!("ws://{address}{path}");
    let mut request = url.into_client_request().expect("the path can be asked for");
    for (name, value) in headers {
        let name: HeaderName = name.parse().expect("a header's name");
        request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a header"));
    }
    let Ok(upgrade) = timeout(PATIENCE, client_async(request, stream)).await else {
        return Err(Refusal::Broken(format!("not answered within {PATIENCE:?}")));
    };
    let (stream, response) = match upgrade {
        Ok(upgraded) => upgraded,
        Err(Error::Http(response)) => return Err(Refusal::Status(response.status().as_u16())),
        Err(error) => return Err(Refusal::Broken(error.to_string())),
    };
    let (sink, stream) = stream.split();
    let (out, leaving) = unbounded_channel();
    let mut socket = Socket::over(person, Line::Ws(out), |ears| {
        vec![tokio::spawn(writes(sink, leaving)), tokio::spawn(reads(stream, ears))]
    });
    let selected = response.headers().get("sec-websocket-protocol");
    socket.subprotocol = selected.and_then(|name| name.to_str().ok()).map(str::to_owned);
    Ok(socket)
}

async fn writes(
    mut sink: SplitSink<Stream, Message>,
    mut leaving: UnboundedReceiver<Vec<Message>>,
) {
    while let Some(batch) = leaving.recv().await {
        for message in batch {
            if sink.feed(message).await.is_err() {
                return; // the reader reports the ending
            }
        }
        if sink.flush().await.is_err() {
            return;
        }
    }
}

async fn reads(mut stream: SplitStream<Stream>, ears: Ears) {
    let mut reading = ears.reading.clone();
    let mut closed = None;
    loop {
        if reading.wait_for(|reading| *reading).await.is_err() {
            return;
        }
        match stream.next().await {
            Some(Ok(Message::Text(text))) => ears.take(parse(&text)),
            Some(Ok(Message::Pong(payload))) => ears.report(Event::Pong(payload)),
            Some(Ok(Message::Close(frame))) => closed = frame,
            Some(Ok(Message::Ping(_))) => {} // the library answers
            Some(Ok(other)) => ears.report(Event::Broken(format!("{other:?}"))),
            Some(Err(error)) if closed.is_none() => return ears.end(None, error.to_string()),
            Some(Err(_)) | None => {
                let (code, reason) = closed.map(|frame| (frame.code, frame.reason)).unzip();
                let reason = reason.map(|reason| reason.to_string()).unwrap_or_default();
                return ears.end(code.map(u16::from), reason);
            }
        }
    }
}

fn parse(text: &str) -> Result<(i64, Value), String> {
    let frame: Value = serde_json::from_str(text).map_err(|error| format!("{error} in {text}"))?;
    let body = frame["body"].as_str().ok_or_else(|| format!("the body is no string: {text}"))?;
    let right = frame["magic"] == 18673 && frame["len"] == body.len();
    match (right, frame["code"].as_i64(), serde_json::from_str(body)) {
        (true, Some(code), Ok(body @ Value::Object(_))) => Ok((code, body)),
        _ => Err(format!("magic, len, code or body is wrong: {text}")),
    }
}
