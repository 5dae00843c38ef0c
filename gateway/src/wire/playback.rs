//! The playback server's sockets: the ordinary WebSocket protocol over a
//! recording instead of a bus. No login is checked and nothing is stored.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use qiyu_schema::{AppId, MsgId, RoomId, UserId};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message as WsMessage,
        http::StatusCode,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::upgrade::{self, UpgradeError};
use crate::{
    close::CloseReason,
    frame::{self, Body, BusinessBody, ClientFrame, EncodedMessage, RefusalCode, Reply, biz, code},
};

/// Viewers at once at most: each has a playback of its own.
const VIEWERS_MAX: usize = 100;
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the write of one frame may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a frame from a viewer at most. Viewers only send heartbeats and acks.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// The pause after a failed accept.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// An event that a playback shows to its viewer.
#[derive(Clone, Debug, PartialEq)]
pub enum PlaybackEvent {
    Message {
        msg_id: MsgId,
        biz_code: i32,
        /// The data as the recipients received it.
        data: String,
    },
    /// The number of viewers has changed.
    Viewers(u64),
    /// The number of likes has changed.
    Likes(u64),
    Closed {
        /// The event that closed the room.
        msg_id: MsgId,
    },
}

/// A recording that is played for one viewer.
#[derive(Debug)]
pub struct Playback {
    /// The position after which it starts.
    pub position: MsgId,
    /// Receives each event when it is due, and ends with the recording.
    pub events: mpsc::Receiver<PlaybackEvent>,
}

/// A source of recorded rooms.
pub trait Recording: Send + Sync + 'static {
    /// Opens a playback of `room` after the message `after`, or from its
    /// beginning. It ends early when the receiver is dropped. Returns `None` if
    /// there is no such room.
    fn open(
        &self,
        room: RoomId,
        after: Option<MsgId>,
    ) -> impl Future<Output = Option<Playback>> + Send;
}

/// Plays `recording` of `app` to each client of `listener`, until `stop`.
pub async fn serve<R: Recording>(
    listener: TcpListener,
    origins: Vec<String>,
    app: AppId,
    recording: Arc<R>,
    stop: CancellationToken,
) {
    let (tasks, viewers) = (TaskTracker::new(), Arc::new(Semaphore::new(VIEWERS_MAX)));
    let origins: Arc<[String]> = origins.into();
    while let Ok(permit) = Arc::clone(&viewers).acquire_owned().await {
        let (stream, peer) = match stop.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                warn!(%error, "viewer not accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let (origins, recording, stop) = (origins.clone(), recording.clone(), stop.clone());
        tasks.spawn(async move {
            let _permit = permit;
            serve_viewer(stream, peer, &origins, app, &*recording, stop).await;
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn serve_viewer<R: Recording>(
    mut stream: TcpStream,
    peer: SocketAddr,
    origins: &[String],
    app: AppId,
    recording: &R,
    stop: CancellationToken,
) {
    stream.set_nodelay(true).ok();
    let request = match timeout(LOGIN_TIMEOUT, upgrade::read(&mut stream, origins)).await {
        Ok(Ok(request)) => request,
        Ok(Err(UpgradeError::Status(status))) => return upgrade::refuse(&mut stream, status).await,
        Ok(Err(UpgradeError::Gone)) | Err(_) => return,
    };
    // Any ticket is accepted; only the room must be one of the recording.
    let Some(room) = request.room else {
        return upgrade::refuse(&mut stream, StatusCode::NOT_FOUND).await;
    };
    let Some(playback) = recording.open(room, request.last_msg_id).await else {
        return upgrade::refuse(&mut stream, StatusCode::NOT_FOUND).await;
    };
    if upgrade::accept(&mut stream, &request).await.is_err() {
        return;
    }
    let limits = WebSocketConfig::default()
        .max_message_size(Some(2 * FRAME_BYTES_MAX))
        .max_frame_size(Some(2 * FRAME_BYTES_MAX));
    let rest = request.rest.to_vec();
    let socket =
        WebSocketStream::from_partially_read(stream, rest, Role::Server, Some(limits)).await;
    let viewer = Viewer { app, user: request.user, room, socket };
    let recovered = request.last_msg_id.map(|_| true);
    if let Err(error) = viewer.run(playback, recovered, stop).await {
        debug!(%peer, %error, "viewer gone");
    }
}

/// The connection of a viewer.
struct Viewer {
    app: AppId,
    user: UserId,
    room: RoomId,
    socket: WebSocketStream<TcpStream>,
}

type SocketError = Box<dyn std::error::Error + Send + Sync>;

/// Whether the connection stays open.
enum Flow {
    Continue,
    End,
}

impl Viewer {
    async fn run(
        mut self,
        mut playback: Playback,
        recovered: Option<bool>,
        stop: CancellationToken,
    ) -> Result<(), SocketError> {
        let welcome = Reply::welcome(self.app, self.user, Some(playback.position), recovered);
        self.reply(code::LOGIN, &welcome).await?;
        let mut finished = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let close = CloseReason::PlaybackStopped;
                    return self.close(&close, &close.text()).await;
                }
                message = self.socket.next() => {
                    let Some(message) = message else { return Ok(()) };
                    if let Flow::End = self.handle(message?).await? {
                        return Ok(());
                    }
                }
                event = playback.events.recv(), if !finished => match event {
                    Some(event) => self.show(&event).await?,
                    None => finished = true, // the viewer may keep the last state on screen
                },
            }
        }
    }

    async fn show(&mut self, event: &PlaybackEvent) -> Result<(), SocketError> {
        let (app, room) = (self.app, self.room);
        let notice = |code, field: &str, number: u64| {
            let data = format!(r#"{{"roomId":{room},"{field}":{number}}}"#);
            EncodedMessage::new(app, code, &data, None)
        };
        let message = match event {
            PlaybackEvent::Message { msg_id, biz_code, data } => {
                EncodedMessage::new(app, *biz_code, data, Some(*msg_id))
            }
            PlaybackEvent::Viewers(number) => notice(biz::VIEWERS, "watchNum", *number),
            PlaybackEvent::Likes(number) => notice(biz::LIKES, "goodNum", *number),
            PlaybackEvent::Closed { msg_id } => {
                let data = format!(r#"{{"roomId":{room}}}"#);
                EncodedMessage::new(app, biz::ROOM_CLOSED, &data, Some(*msg_id))
            }
        };
        let text = message.text(&self.user.to_string());
        self.send(WsMessage::text(text)).await
    }

    async fn handle(&mut self, message: WsMessage) -> Result<Flow, SocketError> {
        let text = match message {
            WsMessage::Text(text) => text,
            WsMessage::Close(_) => return Ok(Flow::End),
            WsMessage::Binary(_) => return self.end(CloseReason::BinaryFrame).await,
            // The library answers pings.
            WsMessage::Ping(_) | WsMessage::Pong(_) | WsMessage::Frame(_) => {
                return Ok(Flow::Continue);
            }
        };
        let Ok(ClientFrame { code, body }) = frame::parse_ws(&text, FRAME_BYTES_MAX) else {
            return self.end(CloseReason::BadFraming("".into())).await;
        };
        let confirmation = Reply::to(self.app, self.user, "true");
        match i32::try_from(code) {
            Ok(code::LOGIN) => self.reply(code::LOGIN, &confirmation).await?,
            Ok(code::HEARTBEAT) => self.reply(code::HEARTBEAT, &confirmation).await?,
            Ok(code::ACK) => {} // nothing is sent again, so nothing is counted
            Ok(code::LOGOUT) => {
                self.reply(code::LOGOUT, &confirmation).await?;
                return self.end(CloseReason::Logout).await;
            }
            Ok(code::BUSINESS) => {
                let body = match &body {
                    Body::Text(text) => frame::object::<BusinessBody>(text).ok(),
                    Body::Unreadable => None,
                };
                // A recording takes no messages of any bizCode.
                let refusal = match body {
                    Some(_) => RefusalCode::NotRouted,
                    None => RefusalCode::Unreadable,
                };
                let client_msg_id = body.and_then(|body| body.client_msg_id);
                let receipt = Reply::receipt(self.app, self.user, client_msg_id, Err(refusal));
                self.reply(code::RECEIPT, &receipt).await?;
            }
            _ => {
                let refusal = Err(RefusalCode::Unreadable);
                let receipt = Reply::receipt(self.app, self.user, None, refusal);
                self.reply(code::RECEIPT, &receipt).await?;
                return self.end(CloseReason::UnknownCode).await;
            }
        }
        Ok(Flow::Continue)
    }

    async fn reply(&mut self, code: i32, reply: &Reply) -> Result<(), SocketError> {
        self.send(WsMessage::text(frame::reply_text(code, reply))).await
    }

    async fn send(&mut self, message: WsMessage) -> Result<(), SocketError> {
        Ok(timeout(WRITE_TIMEOUT, self.socket.send(message)).await??)
    }

    /// Closes without a text.
    async fn end(&mut self, reason: CloseReason) -> Result<Flow, SocketError> {
        self.close(&reason, "").await?;
        Ok(Flow::End)
    }

    async fn close(&mut self, reason: &CloseReason, text: &str) -> Result<(), SocketError> {
        let code = CloseCode::from(reason.code());
        let close = CloseFrame { code, reason: text.to_owned().into() };
        Ok(timeout(WRITE_TIMEOUT, self.socket.close(Some(close))).await??)
    }
}
