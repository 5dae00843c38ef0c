//! The input side of a socket: bytes of TCP or WebSocket become frames, without
//! waiting for more.

use std::io::{self, Read, Write};

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{
    self, Message as WsMessage,
    error::{CapacityError, ProtocolError},
    protocol::{Role, WebSocketConfig, WebSocketContext},
};
use tracing::debug;

use crate::{
    close::CloseReason,
    frame::{self, ClientFrame, FrameError},
};

/// Bytes of a WebSocket message at most: escaping can double a body's bytes.
const WS_MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// Bytes of input buffer. Tungstenite's default of 128 KiB would be the cost of
/// an idle connection.
const READ_BYTES: usize = 1024;

/// The input protocol of a socket.
pub(crate) enum Protocol {
    Tcp {
        input: BytesMut,
    },
    Ws {
        context: Box<WebSocketContext>,
    },
    /// All input is dropped until the peer closes.
    Discard,
}

/// The result of one read.
pub(crate) enum Input {
    /// No complete frame is there at the moment.
    Empty,
    Frame(ClientFrame),
    /// A sign of life without meaning: a ping, a pong.
    KeepAlive,
    /// The peer is gone, or has closed.
    Closed,
    /// The peer violated the protocol.
    Violation(CloseReason),
}

impl Protocol {
    /// Creates the TCP protocol, with the input that was read already.
    pub(crate) fn tcp(input: BytesMut) -> Self {
        Self::Tcp { input }
    }

    /// Creates the WebSocket protocol, with the input that followed the upgrade
    /// request.
    pub(crate) fn ws(rest: &BytesMut) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(WS_MESSAGE_BYTES_MAX))
            .max_frame_size(Some(WS_MESSAGE_BYTES_MAX));
        let context =
            WebSocketContext::from_partially_read(rest.to_vec(), Role::Server, Some(config));
        Self::Ws { context: Box::new(context) }
    }

    /// Reads the next complete input. Pongs are appended to `out`.
    pub(crate) fn next(
        &mut self,
        stream: &TcpStream,
        body_bytes_max: usize,
        out: &mut BytesMut,
    ) -> Input {
        match self {
            Self::Tcp { input } => next_tcp(input, stream, body_bytes_max),
            Self::Ws { context } => next_ws(context, stream, body_bytes_max, out),
            Self::Discard => discard(stream),
        }
    }
}

/// Drops input. Unread input would make the kernel answer with a reset, and a
/// reset overtakes the close frame.
fn discard(stream: &TcpStream) -> Input {
    match stream.try_read(&mut [0; 4096]) {
        Ok(0) => Input::Closed,
        Ok(_) => Input::KeepAlive,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Input::Empty,
        Err(_) => Input::Closed,
    }
}

fn next_tcp(input: &mut BytesMut, stream: &TcpStream, body_bytes_max: usize) -> Input {
    loop {
        match frame::parse_tcp(input, body_bytes_max) {
            Ok(Some(frame)) => return Input::Frame(frame),
            Ok(None) => {}
            Err(_) => return Input::Violation(CloseReason::BadFraming("bad framing".into())),
        }
        input.reserve(READ_BYTES);
        match stream.try_read_buf(input) {
            Ok(0) => return Input::Closed,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if input.is_empty() {
                    *input = BytesMut::new(); // an idle connection holds no buffer
                }
                return Input::Empty;
            }
            Err(_) => return Input::Closed,
        }
    }
}

fn next_ws(
    context: &mut WebSocketContext,
    stream: &TcpStream,
    body_bytes_max: usize,
    out: &mut BytesMut,
) -> Input {
    let mut pipe = Pipe { stream, out };
    let input = match context.read(&mut pipe) {
        Ok(WsMessage::Text(text)) => match frame::parse_ws(&text, body_bytes_max) {
            Ok(frame) => Input::Frame(frame),
            Err(FrameError::TooLarge) => Input::Violation(CloseReason::BodyTooLarge),
            Err(error) => bad_framing(&error),
        },
        Ok(WsMessage::Binary(_)) => Input::Violation(CloseReason::BinaryFrame),
        Ok(WsMessage::Close(_)) => Input::Closed,
        Ok(_) => Input::KeepAlive,
        Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Input::Empty
        }
        Err(tungstenite::Error::Utf8(_)) => Input::Violation(CloseReason::NotUtf8),
        Err(tungstenite::Error::Capacity(CapacityError::MessageTooLong { .. })) => {
            Input::Violation(CloseReason::MessageTooLarge)
        }
        Err(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
            Input::Closed
        }
        Err(tungstenite::Error::Protocol(error)) => bad_framing(&error),
        Err(_) => Input::Closed,
    };
    // Pongs and answers to a close are ready now, not at the next read.
    if context.flush(&mut pipe).is_err() {
        debug!("nothing more to flush");
    }
    input
}

fn bad_framing(error: &dyn std::error::Error) -> Input {
    Input::Violation(CloseReason::BadFraming(error.to_string().into()))
}

/// The stream that tungstenite uses: it reads from the socket and writes to the
/// output buffer.
struct Pipe<'a> {
    stream: &'a TcpStream,
    out: &'a mut BytesMut,
}

impl Read for Pipe<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.try_read(into)
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
