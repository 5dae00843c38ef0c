//! Connections arriving, up to their login.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use qiyu_nats::chain;
use qiyu_schema::UserId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    frame::{self, Body, InFrame, LoginBody, Reply, Wire, code},
    gateway::Shared,
    session::login::Ask,
    session::registry::Serving,
    wire::socket::{Protocol, Socket},
    wire::upgrade::{self, NoUpgrade},
};

/// Sockets that have connected and not logged in. Beyond it new ones wait in
/// the kernel's queue: a crowd of silent sockets must not take all memory.
const STRANGERS_MAX: usize = 4096;
/// Pause after a failed accept: with no file descriptor left it fails at once, again and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a stranger may take to say who it is while the gateway drains.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long a refused peer may take to read why.
const LINGER: Duration = Duration::from_secs(2);

/// Accepts until `stop`.
pub(crate) async fn accept(
    listener: TcpListener,
    wire: Wire,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        let Ok(place) = Arc::clone(&strangers).acquire_owned().await else { return };
        let accepted = match stop.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                warn!(error = %chain(&error), "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (stream, peer) = accepted;
        // Frames are written whole; waiting for more only adds to their age.
        stream.set_nodelay(true).ok();
        let meet = meet(stream, peer, wire, Arc::clone(&shared));
        shared.tasks.spawn(async move {
            let socket = {
                let _place = place;
                meet.await
            };
            if let Some(socket) = socket {
                socket.run().await;
            }
        });
    }
}

/// Brings a stranger to its login, or to its end.
async fn meet(
    mut stream: TcpStream,
    peer: SocketAddr,
    wire: Wire,
    shared: Arc<Shared>,
) -> Option<Box<Socket>> {
    let (serving, admitted, protocol) = match wire {
        Wire::Ws => meet_ws(&mut stream, peer, &shared).await?,
        Wire::Tcp => meet_tcp(&mut stream, peer, &shared).await?,
    };
    let connection = serving.enter(admitted).await;
    Some(Box::new(Socket::new(serving, connection, stream, protocol, peer)))
}

type Met = (Arc<Serving>, crate::session::login::Admitted, Protocol);

async fn meet_ws(stream: &mut TcpStream, peer: SocketAddr, shared: &Shared) -> Option<Met> {
    let asked = upgrade::read(stream, &shared.config.origins);
    let upgrade = match in_time(asked, peer, shared).await? {
        Ok(upgrade) => upgrade,
        Err(NoUpgrade::Gone) => return None,
        Err(NoUpgrade::Status(status)) => return refuse_ws(stream, status).await,
    };
    let Some(serving) = shared.serving() else {
        return refuse_ws(stream, StatusCode::SERVICE_UNAVAILABLE).await;
    };
    let ask = Ask {
        app: None,
        user: upgrade.user,
        token: &upgrade.token,
        room: upgrade.room,
        last_msg_id: upgrade.last_msg_id,
        address: upgrade::address_of(peer),
    };
    let admitted = match serving.admit(ask, Wire::Ws).await {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse_ws(stream, refusal.into()).await,
    };
    if upgrade::accept(stream, &upgrade).await.is_err() {
        serving.dismiss(admitted).await;
        return None;
    }
    let protocol = Protocol::ws(&upgrade.rest);
    Some((serving, admitted, protocol))
}

async fn refuse_ws(stream: &mut TcpStream, status: StatusCode) -> Option<Met> {
    upgrade::refuse(stream, status).await;
    linger(stream).await;
    None
}

async fn meet_tcp(stream: &mut TcpStream, peer: SocketAddr, shared: &Shared) -> Option<Met> {
    let mut input = BytesMut::new();
    let first = first_frame(stream, &mut input, shared.config.max_frame);
    let frame = match in_time(first, peer, shared).await? {
        Ok(frame) => frame,
        Err(error) => {
            debug!(%peer, error = %chain(&error), "closed before login");
            return None;
        }
    };
    if frame.code != i64::from(code::LOGIN) {
        debug!(%peer, code = frame.code, "closed: not logged in");
        return None;
    }
    let body = match &frame.body {
        Body::Text(text) => frame::object::<LoginBody>(text).ok(),
        Body::Unreadable => None,
    };
    let Some(body) = body else {
        let app = shared.config.apps.first().map_or(0, |app| u64::from(app.get()));
        return refuse_tcp(stream, app, 0).await;
    };
    let refused = (body.app_id, body.user_id);
    let ids = UserId::try_from(body.user_id).ok().zip(room_of(&body));
    let (Some((user, room)), Some(serving)) = (ids, shared.serving()) else {
        return refuse_tcp(stream, refused.0, refused.1).await;
    };
    let ask = Ask {
        app: Some(body.app_id),
        user,
        token: &body.token,
        room,
        last_msg_id: body.last_msg_id.and_then(|id| id.max(1).try_into().ok()),
        address: upgrade::address_of(peer),
    };
    match serving.admit(ask, Wire::Tcp).await {
        Ok(admitted) => Some((serving, admitted, Protocol::tcp(input))),
        Err(_) => refuse_tcp(stream, refused.0, refused.1).await,
    }
}

/// A stranger has only so long to say who it is. Not cancelled later than
/// this: a login that is being checked is also brought to its end.
async fn in_time<T>(said: impl Future<Output = T>, peer: SocketAddr, shared: &Shared) -> Option<T> {
    let too_late = async {
        let draining = shared.draining.cancelled();
        if tokio::time::timeout(shared.config.login_deadline, draining).await.is_ok() {
            // Long enough to hear that nobody is let in any more.
            tokio::time::sleep(LAST_WORDS).await;
        }
    };
    tokio::select! {
        biased;
        said = said => Some(said),
        () = too_late => {
            debug!(%peer, "no login in time");
            None
        }
    }
}

async fn first_frame(
    stream: &mut TcpStream,
    input: &mut BytesMut,
    body_bytes_max: usize,
) -> std::io::Result<InFrame> {
    loop {
        if let Some(frame) =
            frame::parse_tcp(input, body_bytes_max).map_err(std::io::Error::other)?
        {
            return Ok(frame);
        }
        if stream.read_buf(input).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// `None`: it asks for a room that cannot exist.
fn room_of(body: &LoginBody) -> Option<Option<qiyu_schema::RoomId>> {
    match body.room_id {
        None => Some(None),
        Some(room) => room.try_into().ok().map(Some),
    }
}

async fn refuse_tcp(stream: &mut TcpStream, app: u64, user: u64) -> Option<Met> {
    let mut out = BytesMut::new();
    Wire::Tcp.write_reply(&mut out, code::LOGIN, &Reply::plain(app, user, "false"));
    stream.write_all(&out).await.ok()?;
    stream.shutdown().await.ok()?;
    linger(stream).await;
    None
}

/// Unread input would turn our close into a reset, which overtakes the answer.
async fn linger(stream: &mut TcpStream) {
    let mut rest = [0; 1024];
    let drained = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
    tokio::time::timeout(LINGER, drained).await.ok();
}
