//! The seed's TCP client: frames built and taken apart by hand.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::person::Person;
use super::socket::{Ears, Line, Socket};

const MAGIC: i16 = 18673;
const HEADER: usize = 10;

/// magic i16, code i32, len i32, body; big-endian.
pub(crate) fn frame(code: i64, body: &str) -> Vec<u8> {
    let code = i32::try_from(code).expect("a code is an i32");
    let len = i32::try_from(body.len()).expect("a length is an i32");
    frame_claiming(MAGIC, code, len, body.as_bytes())
}

/// A frame whose header may lie.
pub(crate) fn frame_claiming(magic: i16, code: i32, len: i32, body: &[u8]) -> Vec<u8> {
    let header = [&magic.to_be_bytes()[..], &code.to_be_bytes(), &len.to_be_bytes()].concat();
    [&header, body].concat()
}

/// Connects and says nothing yet.
pub(crate) async fn open(address: &str, person: &Person) -> Socket {
    let socket = may_open(address, person).await;
    socket.unwrap_or_else(|error| panic!("connect to {address}: {error}"))
}

/// Like [`open`], where nobody may be listening.
pub(crate) async fn may_open(address: &str, person: &Person) -> std::io::Result<Socket> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true).expect("a fresh socket takes options");
    let (read, write) = stream.into_split();
    let (out, leaving) = unbounded_channel();
    Ok(Socket::over(person, Line::Tcp(out), |ears| {
        vec![tokio::spawn(writes(write, leaving)), tokio::spawn(reads(read, ears))]
    }))
}

async fn writes(mut line: OwnedWriteHalf, mut leaving: UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = leaving.recv().await {
        if line.write_all(&bytes).await.is_err() {
            return; // the reader reports the ending
        }
    }
}

async fn reads(mut line: OwnedReadHalf, ears: Ears) {
    let mut reading = ears.reading.clone();
    let mut unread = Vec::new();
    loop {
        if reading.wait_for(|reading| *reading).await.is_err() {
            return;
        }
        match line.read_buf(&mut unread).await {
            Ok(0) => return ears.end(None, format!("end, {} bytes left over", unread.len())),
            Err(error) => return ears.end(None, error.to_string()),
            Ok(_) => {}
        }
        while let Some(body_end) = whole_frame(&unread) {
            ears.take(parse(&unread[..body_end]));
            unread.drain(..body_end);
        }
    }
}

/// Where the first frame ends, once all of it is there.
fn whole_frame(unread: &[u8]) -> Option<usize> {
    let len = i32::from_be_bytes(unread.get(6..HEADER)?.try_into().ok()?);
    let end = HEADER + usize::try_from(len).ok()?;
    (end <= unread.len()).then_some(end)
}

fn parse(frame: &[u8]) -> Result<(i64, Value), String> {
    if frame[..2] != MAGIC.to_be_bytes() {
        return Err(format!("bad magic: {frame:?}"));
    }
    let code = i32::from_be_bytes([frame[2], frame[3], frame[4], frame[5]]);
    match serde_json::from_slice(&frame[HEADER..]) {
        Ok(body @ Value::Object(_)) => Ok((code.into(), body)),
        _ => Err(format!("the body of {code} is not a JSON object: {frame:?}")),
    }
}
