//! Accepting connections, and bringing each to its login or to its refusal.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use qiyu_nats::chain;
use qiyu_schema::{RoomId, UserId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    protocol::Protocol,
    socket::Socket,
    upgrade::{self, UpgradeError},
};
use crate::{
    frame::{self, Body, ClientFrame, LoginBody, Reply, Transport, code},
    gateway::inner::GatewayInner,
    instance::GatewayInstance,
    session::login::{AdmittedLogin, LoginRequest},
};

/// Connections without a login at most. Further ones wait in the kernel's
/// queue: a crowd of silent sockets must not take all memory.
const PENDING_LOGINS_MAX: usize = 4096;
/// The pause after a failed accept. Without file descriptors it fails at once,
/// again and again.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long a pending login may take while the gateway drains: long enough to
/// receive the refusal.
const DRAINING_LOGIN_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a refused client may take to read the refusal.
const DRAIN_INPUT_TIMEOUT: Duration = Duration::from_secs(2);

/// Accepts connections until `stop`.
pub(crate) async fn accept(
    listener: TcpListener,
    transport: Transport,
    inner: Arc<GatewayInner>,
    stop: CancellationToken,
) {
    let pending_logins = Arc::new(Semaphore::new(PENDING_LOGINS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&pending_logins).acquire_owned().await else { return };
        let (stream, peer) = match stop.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                warn!(error = %chain(&error), "connection not accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        // Frames are written whole; waiting for more only adds to their age.
        stream.set_nodelay(true).ok();
        let login = log_in(stream, peer, transport, Arc::clone(&inner));
        inner.socket_tasks.spawn(async move {
            let socket = {
                let _permit = permit;
                login.await
            };
            if let Some(socket) = socket {
                socket.run().await;
            }
        });
    }
}

/// A client with a login that an incarnation admitted.
struct AdmittedClient {
    instance: Arc<GatewayInstance>,
    login: AdmittedLogin,
    protocol: Protocol,
}

/// Brings a new connection to its login. `None`: it was refused, or is gone.
async fn log_in(
    mut stream: TcpStream,
    peer: SocketAddr,
    transport: Transport,
    inner: Arc<GatewayInner>,
) -> Option<Box<Socket>> {
    let admitted = match transport {
        Transport::Ws => log_in_ws(&mut stream, peer, &inner).await?,
        Transport::Tcp => log_in_tcp(&mut stream, peer, &inner).await?,
    };
    let AdmittedClient { instance, login, protocol } = admitted;
    let connection = instance.enter(login).await;
    Some(Box::new(Socket::new(instance, connection, stream, protocol, peer)))
}

async fn log_in_ws(
    stream: &mut TcpStream,
    peer: SocketAddr,
    inner: &GatewayInner,
) -> Option<AdmittedClient> {
    let request = upgrade::read(stream, &inner.config.origins);
    let upgrade = match within_login_deadline(request, peer, inner).await? {
        Ok(upgrade) => upgrade,
        Err(UpgradeError::Gone) => return None,
        Err(UpgradeError::Status(status)) => return refuse_ws(stream, status).await,
    };
    let Some(instance) = inner.instance() else {
        return refuse_ws(stream, StatusCode::SERVICE_UNAVAILABLE).await;
    };
    let request = LoginRequest {
        app: None,
        user: upgrade.user,
        token: &upgrade.token,
        room: upgrade.room,
        last_msg_id: upgrade.last_msg_id,
        address: peer.ip().to_canonical(),
    };
    let login = match instance.admit(request, Transport::Ws).await {
        Ok(login) => login,
        Err(refusal) => return refuse_ws(stream, refusal.into()).await,
    };
    if upgrade::accept(stream, &upgrade).await.is_err() {
        instance.abandon_login(login).await;
        return None;
    }
    Some(AdmittedClient { instance, login, protocol: Protocol::ws(&upgrade.rest) })
}

async fn refuse_ws(stream: &mut TcpStream, status: StatusCode) -> Option<AdmittedClient> {
    upgrade::refuse(stream, status).await;
    drain_input(stream).await;
    None
}

async fn log_in_tcp(
    stream: &mut TcpStream,
    peer: SocketAddr,
    inner: &GatewayInner,
) -> Option<AdmittedClient> {
    let mut input = BytesMut::new();
    let first = read_first_frame(stream, &mut input, inner.config.max_frame);
    let frame = match within_login_deadline(first, peer, inner).await? {
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
        let app = inner.config.apps.first().map_or(0, |app| u64::from(app.get()));
        return refuse_tcp(stream, app, 0).await;
    };
    let ids = UserId::try_from(body.user_id).ok().zip(room_of(&body));
    let (Some((user, room)), Some(instance)) = (ids, inner.instance()) else {
        return refuse_tcp(stream, body.app_id, body.user_id).await;
    };
    let request = LoginRequest {
        app: Some(body.app_id),
        user,
        token: &body.token,
        room,
        last_msg_id: body.last_msg_id.and_then(|id| id.max(1).try_into().ok()),
        address: peer.ip().to_canonical(),
    };
    match instance.admit(request, Transport::Tcp).await {
        Ok(login) => Some(AdmittedClient { instance, login, protocol: Protocol::tcp(input) }),
        Err(_) => refuse_tcp(stream, body.app_id, body.user_id).await,
    }
}

/// Returns the room of a login. The outer `None`: no room can have this id.
fn room_of(body: &LoginBody) -> Option<Option<RoomId>> {
    match body.room_id {
        None => Some(None),
        Some(room) => room.try_into().ok().map(Some),
    }
}

/// Waits for the first request of a client until the login deadline. The check
/// of a login that arrived in time is never cancelled.
async fn within_login_deadline<T>(
    request: impl Future<Output = T>,
    peer: SocketAddr,
    inner: &GatewayInner,
) -> Option<T> {
    let deadline = async {
        let draining = inner.draining.cancelled();
        if tokio::time::timeout(inner.config.login_deadline, draining).await.is_ok() {
            tokio::time::sleep(DRAINING_LOGIN_TIMEOUT).await;
        }
    };
    tokio::select! {
        biased;
        request = request => Some(request),
        () = deadline => {
            debug!(%peer, "no login in time");
            None
        }
    }
}

async fn read_first_frame(
    stream: &mut TcpStream,
    input: &mut BytesMut,
    body_bytes_max: usize,
) -> std::io::Result<ClientFrame> {
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

async fn refuse_tcp(stream: &mut TcpStream, app: u64, user: u64) -> Option<AdmittedClient> {
    let mut out = BytesMut::new();
    Transport::Tcp.write_reply(&mut out, code::LOGIN, &Reply::plain(app, user, "false"));
    stream.write_all(&out).await.ok()?;
    stream.shutdown().await.ok()?;
    drain_input(stream).await;
    None
}

/// Reads and drops the rest of the input: unread input would turn the close into
/// a reset, which overtakes the answer.
async fn drain_input(stream: &mut TcpStream) {
    let mut rest = [0; 1024];
    let drained = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
    tokio::time::timeout(DRAIN_INPUT_TIMEOUT, drained).await.ok();
}
