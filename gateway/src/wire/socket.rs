//! A logged-in socket: one task that reads frames, writes frames and keeps the
//! deadlines.
//!
//! Reading goes through tungstenite for WebSockets, which is strict about the
//! protocol. Writing does not: tungstenite would frame and write each message
//! again for each recipient. Here, the queued bytes become one write per wakeup.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use qiyu_schema::{MsgId, event::DisconnectReason};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::Instant};
use tracing::debug;

use super::protocol::{Input, Protocol};
use crate::{
    close::CloseReason,
    delivery::connection::Connection,
    frame::{self, AckBody, Body, ClientFrame, RefusalCode, Reply, Transport, code},
    instance::GatewayInstance,
    send::queue::SendQueue,
};

/// Wakeups for writing in a row before the socket is read.
const WAKEUPS_BETWEEN_READS: u8 = 8;
/// Messages that one frame acknowledges at most. A well-behaved client has far
/// fewer unacknowledged.
const ACKS_PER_FRAME_MAX: usize = 1000;
/// Frames read before other tasks get a turn.
const FRAMES_PER_TURN_MAX: usize = 64;
/// How long a peer may take no byte of the output.
const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may take to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// An output buffer above this capacity is released once it is empty.
const IDLE_OUT_BYTES_MAX: usize = 4 * 1024;

/// A logged-in socket.
pub(crate) struct Socket {
    instance: Arc<GatewayInstance>,
    connection: Arc<Connection>,
    stream: TcpStream,
    protocol: Protocol,
    out: BytesMut,
    /// When the measured messages in `out` were accepted, ms since 1970.
    accepted_ms: Vec<u64>,
    sends: SendQueue,
    /// Acknowledgements that were read and not passed on yet.
    acks: Vec<MsgId>,
    last_input: Instant,
    /// Since when the peer has taken no byte.
    stalled_since: Option<Instant>,
    /// The deadline of the peer's answer, once our close frame is queued.
    close_deadline: Option<Instant>,
    /// Our side of the stream is shut down.
    shut_down: bool,
    /// Wakeups for writing since the socket was last read.
    wakeups: u8,
}

impl Socket {
    pub(crate) fn new(
        instance: Arc<GatewayInstance>,
        connection: Arc<Connection>,
        stream: TcpStream,
        protocol: Protocol,
        peer: SocketAddr,
    ) -> Self {
        let sends = SendQueue::new(instance.clone(), connection.clone(), peer.ip());
        Self {
            instance,
            connection,
            stream,
            protocol,
            out: BytesMut::new(),
            accepted_ms: Vec::new(),
            sends,
            acks: Vec::new(),
            last_input: Instant::now(),
            stalled_since: None,
            close_deadline: None,
            shut_down: false,
            wakeups: 0,
        }
    }

    /// Runs until the connection has ended, then appends its departure.
    pub(crate) async fn run(mut self) {
        // Input that followed the login is in a buffer, not in the socket.
        let mut ended = self.read().await.err();
        while ended.is_none() {
            ended = self.turn().await.err();
        }
        let close = self.connection.closing();
        let reason = close.as_ref().map(CloseReason::disconnect_reason).or(ended);
        let reason = reason.unwrap_or(DisconnectReason::Disconnect);
        let may_reconnect = close.is_none_or(|close| close.may_reconnect());
        let user = self.connection.identity.user;
        debug!(connection = %self.connection.id, %user, ?reason, may_reconnect, "connection ended");
        self.connection.abandon();
        self.instance.depart(&self.connection, reason);
    }

    /// Writes the output, then waits for one event.
    async fn turn(&mut self) -> Result<(), DisconnectReason> {
        self.write()?;
        if self.close_deadline.is_some() && self.out.is_empty() && !self.shut_down {
            self.shut_down().await?;
        }
        self.sends.start_next();
        let deadline = self.next_deadline();
        let reading = !self.sends.is_full();
        tokio::select! {
            biased;
            // Before input: output goes out before more input is taken. Not always:
            // a room that never falls silent must not keep the socket from being read.
            () = self.connection.wake.notified(), if self.wakeups < WAKEUPS_BETWEEN_READS => {
                self.wakeups += 1;
                return Ok(());
            }
            () = self.sends.finish_current() => {}
            ready = self.stream.writable(), if !self.out.is_empty() => {
                ready.map_err(|_| DisconnectReason::Disconnect)?;
            }
            ready = self.stream.readable(), if reading => {
                ready.map_err(|_| DisconnectReason::Disconnect)?;
                self.read().await?;
            }
            () = tokio::time::sleep_until(deadline) => self.check_deadlines()?,
            // Nothing else is ready, so the next wakeup is served again.
            () = std::future::ready(()), if self.wakeups >= WAKEUPS_BETWEEN_READS => {}
        }
        self.wakeups = 0;
        Ok(())
    }

    /// Ends our side of the stream. The peer's last bytes are still read.
    async fn shut_down(&mut self) -> Result<(), DisconnectReason> {
        self.shut_down = true;
        let protocol = std::mem::replace(&mut self.protocol, Protocol::Discard);
        if matches!(protocol, Protocol::Ws { .. }) {
            self.protocol = protocol; // the peer's close frame is still read
            return Ok(());
        }
        self.stream.shutdown().await.map_err(|_| DisconnectReason::Disconnect)
    }

    fn next_deadline(&self) -> Instant {
        let idle = self.last_input + self.instance.config.idle_timeout;
        let stalled = self.stalled_since.map(|since| since + WRITE_STALL_TIMEOUT);
        [Some(idle), stalled, self.close_deadline].into_iter().flatten().min().unwrap_or(idle)
    }

    fn check_deadlines(&mut self) -> Result<(), DisconnectReason> {
        let now = Instant::now();
        if self.close_deadline.is_some_and(|deadline| now >= deadline) {
            return Err(DisconnectReason::Disconnect);
        }
        if self.stalled_since.is_some_and(|since| now >= since + WRITE_STALL_TIMEOUT) {
            self.connection.close(CloseReason::SlowReader);
            return Err(DisconnectReason::Slow); // the peer takes no byte, so no close frame either
        }
        if now >= self.last_input + self.instance.config.idle_timeout {
            self.connection.close(CloseReason::Idle);
            self.last_input = now; // the close has its own deadline
        }
        Ok(())
    }

    // === output ===

    fn write(&mut self) -> Result<(), DisconnectReason> {
        loop {
            if self.close_deadline.is_none() {
                self.connection.drain_into(&mut self.out, &mut self.accepted_ms);
                self.write_close();
            }
            if self.out.is_empty() {
                if self.out.capacity() > IDLE_OUT_BYTES_MAX {
                    self.out = BytesMut::new();
                }
                let metrics = &self.instance.metrics;
                for accepted_ms in self.accepted_ms.drain(..) {
                    let now_ms = qiyu_nats::now_ms();
                    metrics.delivery_duration_seconds.observe_since(accepted_ms, now_ms);
                }
                return Ok(());
            }
            match self.stream.try_write(&self.out) {
                Ok(0) => return Err(DisconnectReason::Disconnect),
                Ok(written) => {
                    self.out.advance(written);
                    if self.stalled_since.take().is_some() {
                        self.connection.note_stall(None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stalled_since.is_none() {
                        self.stalled_since = Some(Instant::now());
                        self.connection.note_stall(self.stalled_since);
                    }
                    return Ok(());
                }
                Err(_) => return Err(DisconnectReason::Disconnect),
            }
        }
    }

    /// Queues the close frame once the connection is closing and its queue is
    /// drained: answers that the client waits for precede it.
    fn write_close(&mut self) {
        let Some(close) = self.connection.closing() else { return };
        if !self.connection.is_drained() {
            return;
        }
        if self.connection.transport() == Transport::Ws {
            frame::write_ws_close(&mut self.out, close.code(), &close.text());
        }
        self.close_deadline = Some(Instant::now() + CLOSE_TIMEOUT);
    }

    // === input ===

    /// Reads the frames that have arrived, and passes on their acknowledgements:
    /// what was read counts, also if the connection ends with it.
    async fn read(&mut self) -> Result<(), DisconnectReason> {
        let read = self.read_frames();
        self.instance.delivery.acknowledge(self.connection.id, &mut self.acks).await;
        read
    }

    /// Reads the frames that have arrived, without waiting for more.
    fn read_frames(&mut self) -> Result<(), DisconnectReason> {
        for _ in 0..FRAMES_PER_TURN_MAX {
            if self.sends.is_full() {
                return Ok(()); // `turn` reads on when there is room
            }
            if self.acks.len() >= ACKS_PER_FRAME_MAX {
                break; // they are passed on before more are read
            }
            let body_bytes_max = self.instance.config.max_frame;
            let (closing, out_bytes) = (self.close_deadline.is_some(), self.out.len());
            let input = self.protocol.next(&self.stream, body_bytes_max, &mut self.out);
            if closing {
                self.out.truncate(out_bytes); // no pong may follow a close frame
            }
            match input {
                Input::Empty => return Ok(()),
                Input::Closed => {
                    // Sends the answer to the peer's close frame, if there was one.
                    self.stream.try_write(&self.out).ok();
                    return Err(DisconnectReason::Disconnect);
                }
                Input::KeepAlive => self.last_input = Instant::now(),
                Input::Frame(frame) => {
                    self.last_input = Instant::now();
                    if self.connection.closing().is_none() {
                        self.handle(frame);
                    }
                }
                Input::Violation(close) => {
                    self.connection.close(close);
                    self.protocol = Protocol::Discard;
                    return Ok(());
                }
            }
        }
        // There may be more: other tasks get a turn first.
        self.connection.wake.notify_one();
        Ok(())
    }

    fn handle(&mut self, frame: ClientFrame) {
        let (app, user) = (self.connection.identity.app, self.connection.identity.user);
        let text = |body: Body| match body {
            Body::Text(text) => Some(text),
            Body::Unreadable => None,
        };
        match i32::try_from(frame.code) {
            Ok(code::LOGIN) => {
                self.connection.reply(code::LOGIN, Reply::welcome(app, user, None, None));
            }
            Ok(code::HEARTBEAT) => {
                self.connection.reply(code::HEARTBEAT, Reply::to(app, user, "true"));
            }
            Ok(code::ACK) => {
                let text = text(frame.body).unwrap_or_default();
                self.acks.extend(AckBody::read(&text).into_iter().take(ACKS_PER_FRAME_MAX));
            }
            Ok(code::BUSINESS) => self.sends.push(text(frame.body)),
            Ok(code::LOGOUT) => self.sends.push_logout(),
            _ => {
                let reply = Reply::receipt(app, user, None, Err(RefusalCode::Unreadable));
                self.connection.reply(code::RECEIPT, reply);
                self.connection.close(CloseReason::UnknownCode);
            }
        }
    }
}
