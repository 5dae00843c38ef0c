//! A socket's life after its login: frames in, frames out, one task.
//!
//! Reading goes through tungstenite for WebSockets, which is strict about the
//! protocol; writing does not, because there every recipient of a message would
//! frame and write it again. Here what is queued becomes one write per wakeup.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, BytesMut};
use qiyu_schema::{
    ClientMsgId, MsgId,
    event::{Ending, SessionChange},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::Instant};
use tokio_tungstenite::tungstenite::{
    self, Message as WsMessage,
    error::{CapacityError, ProtocolError},
    protocol::{Role, WebSocketConfig, WebSocketContext},
};
use tracing::debug;

use crate::{
    delivery::connection::{Close, Connection},
    frame::{self, AckBody, BadFrame, Body, InFrame, Reason, Reply, Wire, code},
    metrics::Limit,
    rate_limit::{Bucket, Rate},
    send::ingest::store,
    send::request::{self, Ask},
    session::registry::Serving,
};

/// The codes of the upgrade path.
pub(crate) mod ws_code {
    /// Enter the room that follows.
    pub(crate) const ENTER_ROOM: i32 = 1001;
}

/// A WebSocket message may hold this much, whatever its body: escaping can double it.
const WS_MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// Small: tungstenite's default of 128 KiB is what a connection would cost.
const READ_BYTES: usize = 1024;
/// Business frames waiting for the one being stored. Beyond it the socket is
/// not read, so the sender feels it and nothing is lost.
const PENDING_FRAMES_MAX: usize = 64;
/// Wakes to write served in a row before the socket is looked at.
const WAKES_BETWEEN_READS: u8 = 8;
/// Messages acknowledged by one frame at most; a well-behaved client has far fewer open.
const ACKS_PER_FRAME: usize = 1000;
/// Frames taken in before others get a turn.
const FRAMES_PER_TURN: usize = 64;
/// How long a peer may take nothing of what is written to it.
const WRITE_STALL_MAX: Duration = Duration::from_secs(10);
/// How long a peer may take to answer a close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// An output buffer larger than this is given back once it is empty.
const KEPT_OUT_BYTES: usize = 4 * 1024;

/// What a connection speaks.
pub(crate) enum Protocol {
    Tcp {
        input: BytesMut,
    },
    Ws {
        context: Box<WebSocketContext>,
    },
    /// Whatever comes is thrown away until the peer closes.
    Deaf,
}

impl Protocol {
    /// TCP, with what has been read already.
    pub(crate) fn tcp(input: BytesMut) -> Self {
        Self::Tcp { input }
    }

    /// WebSocket, with what was sent behind the upgrade request.
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
}

/// A logged-in socket.
pub(crate) struct Socket {
    serving: Arc<Serving>,
    connection: Arc<Connection>,
    stream: TcpStream,
    peer: SocketAddr,
    protocol: Protocol,
    out: BytesMut,
    /// When messages in `out` were accepted, of those that are measured here.
    accepted_ms: Vec<u64>,
    /// Answers to business frames, in the order of the frames.
    pending: VecDeque<Pending>,
    working: Option<Working>,
    sends: Bucket,
    send_rate: Rate,
    sent: u64,
    heard: Instant,
    /// Since when the peer has taken nothing.
    stalled: Option<Instant>,
    /// Our last word is said: when to stop waiting for the peer's.
    closing_until: Option<Instant>,
    /// Nothing more will be written.
    shut: bool,
    /// Wakes since anything else was looked at.
    woken: u8,
}

/// A business frame that has not been answered.
enum Pending {
    Store { client_msg_id: Option<ClientMsgId>, ask: Ask, arrived: Instant },
    Refuse { client_msg_id: Option<ClientMsgId>, reason: Reason },
    Logout,
}

/// What is being done about the oldest pending frame.
type Working = Pin<Box<dyn Future<Output = Done> + Send>>;

enum Done {
    Stored(Answered),
    LoggedOut,
}

struct Answered {
    client_msg_id: Option<ClientMsgId>,
    /// `None`: taken, and nothing to say about it.
    outcome: Result<Option<MsgId>, Reason>,
}

/// Why reading stopped.
enum Input {
    /// Nothing more at the moment.
    Dry,
    /// A frame.
    Frame(InFrame),
    /// A sign of life without meaning: a ping, a pong.
    Sign,
    /// The peer is gone, or has said goodbye.
    Gone,
    /// The peer broke the rules.
    Broken(Close),
}

impl Socket {
    pub(crate) fn new(
        serving: Arc<Serving>,
        connection: Arc<Connection>,
        stream: TcpStream,
        protocol: Protocol,
        peer: SocketAddr,
    ) -> Self {
        let config = &serving.config;
        let send_rate = Rate { per_second: config.send_rate, burst: config.send_burst };
        Self {
            serving,
            connection,
            stream,
            peer,
            protocol,
            out: BytesMut::new(),
            accepted_ms: Vec::new(),
            pending: VecDeque::new(),
            working: None,
            sends: Bucket::full(send_rate),
            send_rate,
            sent: 0,
            heard: Instant::now(),
            stalled: None,
            closing_until: None,
            shut: false,
            woken: 0,
        }
    }

    /// Until the connection has ended; then says so everywhere.
    pub(crate) async fn run(mut self) {
        // What came behind the handshake waits in a buffer, not in the socket.
        let mut ending = self.read().err();
        while ending.is_none() {
            ending = self.turn().await.err();
        }
        let reason = self
            .connection
            .closing()
            .map(|close| close.ending)
            .or(ending)
            .unwrap_or(Ending::Disconnect);
        debug!(connection = %self.connection.id, user = %self.connection.who.user, ?reason, "ended");
        self.connection.abandon();
        self.serving.leave(&self.connection, reason);
    }

    /// Writes what there is, then waits for one thing to happen.
    async fn turn(&mut self) -> Result<(), Ending> {
        self.write()?;
        if self.closing_until.is_some() && self.out.is_empty() && !self.shut {
            // The end of our side; the peer's last bytes are waited for, then it is over.
            self.shut = true;
            self.protocol = match (
                self.connection.wire(),
                std::mem::replace(&mut self.protocol, Protocol::Deaf),
            ) {
                (Wire::Ws, ws @ Protocol::Ws { .. }) => ws, // its close frame is worth reading
                _ => {
                    self.stream.shutdown().await.map_err(|_| Ending::Disconnect)?;
                    Protocol::Deaf
                }
            };
        }
        self.start_working();
        let wait_until = self.next_deadline();
        let reading = self.pending.len() < PENDING_FRAMES_MAX;
        tokio::select! {
            biased;
            // Before input: what is owed goes out before more is taken in. Not
            // always: a room that never falls silent must not keep us from listening.
            () = self.connection.wake.notified(), if self.woken < WAKES_BETWEEN_READS => {
                self.woken += 1;
                return Ok(());
            }
            done = worked(&mut self.working) => match done {
                Done::Stored(answered) => self.answer(answered),
                Done::LoggedOut => {
                    self.pending.clear(); // whatever was said after goodbye
                    let close = Close::new(Ending::Logout, 1000, "logout");
                    self.connection.close(close.saying("true"));
                }
            },
            ready = self.stream.writable(), if !self.out.is_empty() => {
                ready.map_err(|_| Ending::Disconnect)?;
            }
            ready = self.stream.readable(), if reading => {
                ready.map_err(|_| Ending::Disconnect)?;
                self.read()?;
            }
            () = tokio::time::sleep_until(wait_until) => self.check_deadlines()?,
            // Nothing else is ready, so whoever wakes us is served again.
            () = std::future::ready(()), if WAKES_BETWEEN_READS <= self.woken => {}
        }
        self.woken = 0;
        Ok(())
    }

    fn next_deadline(&self) -> Instant {
        let idle = self.heard + self.serving.config.idle_timeout;
        let stalled = self.stalled.map(|since| since + WRITE_STALL_MAX);
        [Some(idle), stalled, self.closing_until].into_iter().flatten().min().unwrap_or(idle)
    }

    fn check_deadlines(&mut self) -> Result<(), Ending> {
        let now = Instant::now();
        if self.closing_until.is_some_and(|until| until <= now) {
            return Err(Ending::Disconnect); // it got its time to answer
        }
        if self.stalled.is_some_and(|since| since + WRITE_STALL_MAX <= now) {
            self.connection.close(Close::new(Ending::Slow, 3008, "slow reader"));
            return Err(Ending::Slow); // it takes nothing: a last word would not reach it either
        }
        if self.heard + self.serving.config.idle_timeout <= now {
            self.connection.close(Close::new(Ending::Idle, 3010, "idle"));
            self.heard = now; // the close has its own deadline
        }
        Ok(())
    }

    // === out ===

    fn write(&mut self) -> Result<(), Ending> {
        loop {
            if self.closing_until.is_none() {
                self.connection.drain_into(&mut self.out, &mut self.accepted_ms);
                self.say_goodbye();
            }
            if self.out.is_empty() {
                if KEPT_OUT_BYTES < self.out.capacity() {
                    self.out = BytesMut::new();
                }
                for accepted_ms in self.accepted_ms.drain(..) {
                    self.serving.metrics.delivery.observe_since(accepted_ms);
                }
                return Ok(());
            }
            match self.stream.try_write(&self.out) {
                Ok(0) => return Err(Ending::Disconnect),
                Ok(written) => {
                    self.out.advance(written);
                    if self.stalled.take().is_some() {
                        self.connection.note_stall(None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stalled.is_none() {
                        self.stalled = Some(Instant::now());
                        self.connection.note_stall(self.stalled);
                    }
                    return Ok(());
                }
                Err(_) => return Err(Ending::Disconnect),
            }
        }
    }

    /// Once all that is queued is on its way and an end is wanted, says the last word.
    fn say_goodbye(&mut self) {
        // Answers that are being waited for come before it, unless the peer broke the rules.
        let Some(close) = self.connection.closing() else { return };
        if !self.connection.is_drained() {
            return;
        }
        if self.connection.wire() == Wire::Ws {
            frame::write_ws_close(&mut self.out, close.code, &close.reason);
        }
        self.closing_until = Some(Instant::now() + CLOSE_PATIENCE);
    }

    // === in ===

    /// Takes in what has arrived, without waiting for more.
    fn read(&mut self) -> Result<(), Ending> {
        for _ in 0..FRAMES_PER_TURN {
            if PENDING_FRAMES_MAX <= self.pending.len() {
                return Ok(()); // `turn` reads on when there is room
            }
            let body_bytes_max = self.serving.config.max_frame;
            let saying_goodbye = self.closing_until.is_some();
            let said = self.out.len();
            let input = self.protocol.next(&self.stream, body_bytes_max, &mut self.out);
            if saying_goodbye {
                self.out.truncate(said); // a close frame is the last; nothing answers after it
            }
            match input {
                Input::Dry => return Ok(()),
                Input::Gone => {
                    // The answer to its goodbye, if it said one.
                    self.stream.try_write(&self.out).ok();
                    return Err(Ending::Disconnect);
                }
                Input::Sign => self.heard = Instant::now(),
                Input::Frame(frame) => {
                    self.heard = Instant::now();
                    if self.connection.closing().is_none() {
                        self.take(frame);
                    }
                }
                Input::Broken(close) => {
                    self.connection.close(close);
                    self.protocol = Protocol::Deaf;
                    return Ok(());
                }
            }
        }
        // Not all is read: come back after everybody else had a turn.
        self.connection.wake.notify_one();
        Ok(())
    }

    fn take(&mut self, frame: InFrame) {
        let who = &self.connection.who;
        let plain = || Reply::to(who.app, who.user, "true");
        let text = |body: &Body| match body {
            Body::Text(text) => Some(text.clone()),
            Body::Unreadable => None,
        };
        match i32::try_from(frame.code) {
            Ok(code::LOGIN) => {
                let reply = Reply::welcome(who.app, who.user, None, None);
                self.connection.reply(code::LOGIN, reply);
            }
            Ok(code::HEARTBEAT) => self.connection.reply(code::HEARTBEAT, plain()),
            Ok(code::ACK) => {
                let acked = text(&frame.body).map(|text| AckBody::read(&text)).unwrap_or_default();
                for msg_id in acked.into_iter().take(ACKS_PER_FRAME) {
                    self.acknowledge(msg_id);
                }
            }
            Ok(code::BUSINESS) => self.hear(text(&frame.body)),
            Ok(code::LOGOUT) => {
                // After the answers to what was said before it.
                self.pending.push_back(Pending::Logout);
                self.start_working();
            }
            _ => {
                let (app, user) = (who.app, who.user);
                let reply = Reply::receipt(app, user, None, Err(Reason::Unreadable));
                self.connection.reply(code::RECEIPT, reply);
                let close = Close::new(Ending::Abuse, 3505, "unknown code");
                self.connection.close(close);
            }
        }
    }

    fn acknowledge(&self, msg_id: MsgId) {
        let Some(entry) = self.connection.acknowledge(msg_id) else { return };
        if entry.room.is_none() {
            // Read by one connection is read: it waits for the user no more. The
            // answer is not waited for: unstored, it merely comes again at a login.
            let who = &self.connection.who;
            let change = SessionChange::Read { user: who.user, msg_ids: vec![msg_id] };
            drop(self.serving.membership.session(who.app, who.user, change));
        }
    }

    fn hear(&mut self, body: Option<String>) {
        let arrived = Instant::now();
        let pending = if !self.may_send() {
            let client_msg_id = body.and_then(|body| request::read(&body).0);
            Pending::Refuse { client_msg_id, reason: Reason::TooFast }
        } else {
            match body.as_deref().map(request::read) {
                Some((client_msg_id, Ok(ask))) => Pending::Store { client_msg_id, ask, arrived },
                Some((client_msg_id, Err(reason))) => Pending::Refuse { client_msg_id, reason },
                None => Pending::Refuse { client_msg_id: None, reason: Reason::Unreadable },
            }
        };
        self.pending.push_back(pending);
        self.start_working();
    }

    /// Whether one frame more is not too fast, for this connection or for what it shares.
    fn may_send(&mut self) -> bool {
        if !self.sends.take(self.send_rate) {
            self.serving.metrics.too_fast(Limit::SendConnection);
            return false;
        }
        let who = &self.connection.who;
        self.serving.limits.may_send(who.app, who.user, self.peer.ip())
    }

    /// Works the pending frames off, one at a time: a sender's order is the log's.
    fn start_working(&mut self) {
        while self.working.is_none() {
            match self.pending.pop_front() {
                None => return,
                Some(Pending::Logout) => {
                    let (serving, connection) = (self.serving.clone(), self.connection.clone());
                    self.working = Some(Box::pin(async move {
                        serving.end_session(&connection).await;
                        Done::LoggedOut
                    }));
                }
                Some(Pending::Refuse { client_msg_id, reason }) => {
                    self.answer(Answered { client_msg_id, outcome: Err(reason) });
                }
                Some(Pending::Store { client_msg_id, ask, arrived }) => {
                    self.sent += 1;
                    let (serving, connection) = (self.serving.clone(), self.connection.clone());
                    let number = self.sent;
                    self.working = Some(Box::pin(async move {
                        let outcome =
                            store(&serving, &connection, &client_msg_id, ask, arrived, number)
                                .await;
                        Done::Stored(Answered { client_msg_id, outcome })
                    }));
                }
            }
        }
    }

    fn answer(&mut self, answered: Answered) {
        let Answered { client_msg_id, outcome } = answered;
        match &outcome {
            Ok(_) => drop(self.serving.metrics.accepted.inc()),
            Err(reason) => self.serving.metrics.refuse(*reason),
        };
        let said = match outcome {
            Ok(None) => return,
            // Only who gave it an id of their own is told of a success.
            Ok(Some(_)) if client_msg_id.is_none() => return,
            Ok(Some(msg_id)) => Ok(msg_id),
            Err(reason) => Err(reason),
        };
        let who = &self.connection.who;
        let reply = Reply::receipt(who.app, who.user, client_msg_id, said);
        self.connection.reply(code::RECEIPT, reply);
    }
}

/// What is being worked on, if anything is.
async fn worked(working: &mut Option<Working>) -> Done {
    match working {
        Some(future) => {
            let done = future.await;
            *working = None;
            done
        }
        None => std::future::pending().await,
    }
}

impl Protocol {
    /// The next thing that has arrived whole.
    fn next(&mut self, stream: &TcpStream, body_bytes_max: usize, out: &mut BytesMut) -> Input {
        match self {
            Self::Tcp { input } => next_tcp(input, stream, body_bytes_max),
            Self::Ws { context } => next_ws(context, stream, body_bytes_max, out),
            Self::Deaf => throw_away(stream),
        }
    }
}

/// An unread input would make the kernel answer with a reset, and a reset
/// overtakes the last word.
fn throw_away(stream: &TcpStream) -> Input {
    match stream.try_read(&mut [0; 4096]) {
        Ok(0) => Input::Gone,
        Ok(_) => Input::Sign,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Input::Dry,
        Err(_) => Input::Gone,
    }
}

fn next_tcp(input: &mut BytesMut, stream: &TcpStream, body_bytes_max: usize) -> Input {
    loop {
        match frame::parse_tcp(input, body_bytes_max) {
            Ok(Some(frame)) => return Input::Frame(frame),
            Ok(None) => {}
            Err(_) => return Input::Broken(Close::new(Ending::Abuse, 1002, "bad framing")),
        }
        input.reserve(READ_BYTES);
        match stream.try_read_buf(input) {
            Ok(0) => return Input::Gone,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if input.is_empty() {
                    *input = BytesMut::new(); // an idle connection holds no buffer
                }
                return Input::Dry;
            }
            Err(_) => return Input::Gone,
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
            Err(BadFrame::TooLarge) => {
                Input::Broken(Close::new(Ending::Abuse, 1009, "body too large"))
            }
            Err(error) => Input::Broken(Close::new(Ending::Abuse, 1002, error.to_string())),
        },
        Ok(WsMessage::Binary(_)) => {
            Input::Broken(Close::new(Ending::Abuse, 1003, "text frames only"))
        }
        Ok(WsMessage::Close(_)) => Input::Gone,
        Ok(_) => Input::Sign,
        Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            Input::Dry
        }
        Err(tungstenite::Error::Utf8(_)) => {
            Input::Broken(Close::new(Ending::Abuse, 1007, "not UTF-8"))
        }
        Err(tungstenite::Error::Capacity(CapacityError::MessageTooLong { .. })) => {
            Input::Broken(Close::new(Ending::Abuse, 1009, "message too large"))
        }
        Err(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
            Input::Gone
        }
        Err(tungstenite::Error::Protocol(error)) => {
            Input::Broken(Close::new(Ending::Abuse, 1002, error.to_string()))
        }
        Err(_) => Input::Gone,
    };
    // Pongs and answers to a close are ready now, not at the next read.
    if context.flush(&mut pipe).is_err() {
        debug!("nothing more to flush");
    }
    input
}

/// What tungstenite reads from and writes to: the socket's input, our output.
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
