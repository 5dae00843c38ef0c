//! A room that was, shown to whoever connects: the ordinary WebSocket protocol
//! over a recording instead of a bus. Nobody is logged in, nothing is stored.

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

use crate::{
    frame::{self, Body, BusinessBody, InFrame, Message, Reason, Reply, biz, code},
    wire::upgrade::{self, NoUpgrade},
};

/// Viewers at once: each has a reading of its own.
const VIEWERS_MAX: usize = 100;
/// How long a stranger may take to ask.
const LOGIN_DEADLINE: Duration = Duration::from_secs(10);
/// How long one frame may take to be written to somebody who reads slowly.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// The largest frame taken from a viewer, who has nothing to say.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One thing a viewer sees.
#[derive(Clone, Debug, PartialEq)]
pub enum PlaybackEvent {
    /// Somebody spoke.
    Message {
        /// The message.
        msg_id: MsgId,
        /// What it is about.
        biz_code: i32,
        /// As its recipients saw it.
        data: String,
    },
    /// So many are inside now.
    Viewers(u64),
    /// It has so many likes now.
    Likes(u64),
    /// The room closed.
    Closed {
        /// The closing.
        msg_id: MsgId,
    },
}

/// A recording being watched by one viewer.
#[derive(Debug)]
pub struct Playback {
    /// The position it begins behind.
    pub position: MsgId,
    /// What is seen, when it is due. Its end is the recording's.
    pub events: mpsc::Receiver<PlaybackEvent>,
}

/// Whatever can show rooms.
pub trait Recording: Send + Sync + 'static {
    /// Begins showing `room`: behind `after`, else from its beginning. `None`:
    /// it has no such room. It ends early when the receiver is dropped.
    fn open(
        &self,
        room: RoomId,
        after: Option<MsgId>,
    ) -> impl Future<Output = Option<Playback>> + Send;
}

/// Shows `recording` of `app` to everybody who connects to `listener`, until `stop`.
pub async fn serve<R: Recording>(
    listener: TcpListener,
    origins: Vec<String>,
    app: AppId,
    recording: Arc<R>,
    stop: CancellationToken,
) {
    let (tasks, places) = (TaskTracker::new(), Arc::new(Semaphore::new(VIEWERS_MAX)));
    let origins: Arc<[String]> = origins.into();
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let (stream, peer) = match stop.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                warn!(%error, "viewer not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (origins, recording, stop) = (origins.clone(), recording.clone(), stop.clone());
        tasks.spawn(async move {
            let _place = place;
            meet(stream, peer, &origins, app, &*recording, stop).await;
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn meet<R: Recording>(
    mut stream: TcpStream,
    peer: SocketAddr,
    origins: &[String],
    app: AppId,
    recording: &R,
    stop: CancellationToken,
) {
    stream.set_nodelay(true).ok();
    let asked = match timeout(LOGIN_DEADLINE, upgrade::read(&mut stream, origins)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(NoUpgrade::Status(status))) => return upgrade::refuse(&mut stream, status).await,
        Ok(Err(NoUpgrade::Gone)) | Err(_) => return,
    };
    // Any token will do; only the room must be one that is shown.
    let Some(room) = asked.room else {
        return upgrade::refuse(&mut stream, StatusCode::NOT_FOUND).await;
    };
    let Some(reel) = recording.open(room, asked.last_msg_id).await else {
        return upgrade::refuse(&mut stream, StatusCode::NOT_FOUND).await;
    };
    if upgrade::accept(&mut stream, &asked).await.is_err() {
        return;
    }
    let limits = WebSocketConfig::default()
        .max_message_size(Some(2 * FRAME_BYTES_MAX))
        .max_frame_size(Some(2 * FRAME_BYTES_MAX));
    let rest = asked.rest.to_vec();
    let socket =
        WebSocketStream::from_partially_read(stream, rest, Role::Server, Some(limits)).await;
    let viewer = Viewer { app, user: asked.user, room, socket };
    let recovered = asked.last_msg_id.map(|_| true);
    if let Err(error) = viewer.watch(reel, recovered, stop).await {
        debug!(%peer, %error, "viewer gone");
    }
}

/// A connection that watches.
struct Viewer {
    app: AppId,
    user: UserId,
    room: RoomId,
    socket: WebSocketStream<TcpStream>,
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

/// Whether there is more.
enum Next {
    Goes,
    Ends,
}

impl Viewer {
    async fn watch(
        mut self,
        mut reel: Playback,
        recovered: Option<bool>,
        stop: CancellationToken,
    ) -> Result<(), Broken> {
        let welcome = Reply::welcome(self.app, self.user, Some(reel.position), recovered);
        self.reply(code::LOGIN, &welcome).await?;
        let mut is_over = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    return self.close(1012, "the recording is put away").await;
                }
                heard = self.socket.next() => {
                    let Some(heard) = heard else { return Ok(()) };
                    if let Next::Ends = self.hear(heard?).await? {
                        return Ok(());
                    }
                }
                shown = reel.events.recv(), if !is_over => match shown {
                    Some(shown) => self.show(&shown).await?,
                    // They may look at the last picture for as long as they like.
                    None => is_over = true,
                },
            }
        }
    }

    async fn show(&mut self, shown: &PlaybackEvent) -> Result<(), Broken> {
        let (app, room) = (self.app, self.room);
        let notice = |code, field: &str, number: u64| {
            Message::new(app, code, &format!(r#"{{"roomId":{room},"{field}":{number}}}"#), None)
        };
        let message = match shown {
            PlaybackEvent::Message { msg_id, biz_code, data } => {
                Message::new(app, *biz_code, data, Some(*msg_id))
            }
            PlaybackEvent::Viewers(number) => notice(biz::VIEWERS, "watchNum", *number),
            PlaybackEvent::Likes(number) => notice(biz::LIKES, "goodNum", *number),
            PlaybackEvent::Closed { msg_id } => {
                let data = format!(r#"{{"roomId":{room}}}"#);
                Message::new(app, biz::ROOM_CLOSED, &data, Some(*msg_id))
            }
        };
        let text = message.text(&self.user.to_string());
        self.send(WsMessage::text(text)).await
    }

    async fn hear(&mut self, heard: WsMessage) -> Result<Next, Broken> {
        let text = match heard {
            WsMessage::Text(text) => text,
            WsMessage::Close(_) => return Ok(Next::Ends),
            WsMessage::Binary(_) => {
                self.close(1003, "").await?;
                return Ok(Next::Ends);
            }
            // The library answers pings.
            WsMessage::Ping(_) | WsMessage::Pong(_) | WsMessage::Frame(_) => return Ok(Next::Goes),
        };
        let Ok(InFrame { code: said, body }) = frame::parse_ws(&text, FRAME_BYTES_MAX) else {
            self.close(1002, "").await?;
            return Ok(Next::Ends);
        };
        let confirm = Reply::to(self.app, self.user, "true");
        match i32::try_from(said) {
            Ok(code::LOGIN) => self.reply(code::LOGIN, &confirm).await?,
            Ok(code::HEARTBEAT) => self.reply(code::HEARTBEAT, &confirm).await?,
            Ok(code::ACK) => {} // nobody counts them
            Ok(code::LOGOUT) => {
                self.reply(code::LOGOUT, &confirm).await?;
                self.close(1000, "").await?;
                return Ok(Next::Ends);
            }
            Ok(code::BUSINESS) => {
                let body = match &body {
                    Body::Text(text) => frame::object::<BusinessBody>(text).ok(),
                    Body::Unreadable => None,
                };
                // What is over takes no more messages, whatever they are about.
                let reason = if body.is_some() { Reason::NotRouted } else { Reason::Unreadable };
                let name = body.and_then(|body| body.client_msg_id);
                let refusal = Reply::receipt(self.app, self.user, name, Err(reason));
                self.reply(code::RECEIPT, &refusal).await?;
            }
            _ => {
                let name = None;
                let refusal = Reply::receipt(self.app, self.user, name, Err(Reason::Unreadable));
                self.reply(code::RECEIPT, &refusal).await?;
                self.close(3505, "").await?;
                return Ok(Next::Ends);
            }
        }
        Ok(Next::Goes)
    }

    async fn reply(&mut self, code: i32, reply: &Reply) -> Result<(), Broken> {
        self.send(WsMessage::text(frame::reply_text(code, reply))).await
    }

    async fn send(&mut self, message: WsMessage) -> Result<(), Broken> {
        Ok(timeout(WRITE_MAX, self.socket.send(message)).await??)
    }

    async fn close(&mut self, code: u16, reason: &'static str) -> Result<(), Broken> {
        let close = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        Ok(timeout(WRITE_MAX, self.socket.close(Some(close))).await??)
    }
}
