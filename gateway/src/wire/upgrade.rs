//! The WebSocket upgrade request. Every check precedes the response 101, so an
//! open WebSocket is always a logged-in one.

use bytes::{Buf, BytesMut};
use qiyu_schema::{MsgId, RoomId, UserId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::{
    self,
    handshake::server::{create_response, write_response},
    http::{HeaderValue, Request, StatusCode, header},
};

use crate::session::login::LoginRefusal;

/// The code in the path of an upgrade that enters the room behind it.
const ENTER_ROOM: i32 = 1001;

/// Bytes of request line and headers at most. Tickets are below 2 KiB.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Header lines at most.
const HEADERS_MAX: usize = 64;
/// The subprotocol that carries a ticket outside the URL.
const SUBPROTOCOL: &str = "qiyu";

/// A request that is well-formed and comes from an allowed origin.
#[derive(Debug)]
pub(crate) struct Upgrade {
    pub(crate) token: String,
    pub(crate) user: UserId,
    pub(crate) room: Option<RoomId>,
    pub(crate) last_msg_id: Option<MsgId>,
    response: tungstenite::handshake::server::Response,
    /// Input that followed the request.
    pub(crate) rest: BytesMut,
}

/// The reason why a request is not answered with 101.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpgradeError {
    /// The client is gone or was too slow. There is nothing to answer.
    Gone,
    Status(StatusCode),
}

impl From<StatusCode> for UpgradeError {
    fn from(status: StatusCode) -> Self {
        Self::Status(status)
    }
}

impl From<LoginRefusal> for StatusCode {
    fn from(refusal: LoginRefusal) -> Self {
        match refusal {
            LoginRefusal::Ticket => Self::UNAUTHORIZED,
            LoginRefusal::Room => Self::NOT_FOUND,
            LoginRefusal::Banned => Self::FORBIDDEN,
            LoginRefusal::TooMany => Self::TOO_MANY_REQUESTS,
            LoginRefusal::Unavailable => Self::SERVICE_UNAVAILABLE,
        }
    }
}

/// Reads the request, and checks its form and its origin.
pub(crate) async fn read(
    socket: &mut TcpStream,
    origins: &[String],
) -> Result<Upgrade, UpgradeError> {
    let mut input = BytesMut::with_capacity(1024);
    loop {
        if let Some(end) = head_end(&input) {
            let request = parse_head(&input[..end])?;
            input.advance(end);
            return check(&request, origins, input);
        }
        if input.len() >= HEAD_BYTES_MAX {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into());
        }
        match socket.read_buf(&mut input).await {
            Ok(0) | Err(_) => return Err(UpgradeError::Gone),
            Ok(_) => {}
        }
    }
}

/// Answers with 101.
pub(crate) async fn accept(socket: &mut TcpStream, upgrade: &Upgrade) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(256);
    write_response(&mut head, &upgrade.response).map_err(std::io::Error::other)?;
    socket.write_all(&head).await
}

/// Answers with another status, and closes.
pub(crate) async fn refuse(socket: &mut TcpStream, status: StatusCode) {
    let reason = status.canonical_reason().unwrap_or_default();
    let extra = match status {
        StatusCode::UPGRADE_REQUIRED => "Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n",
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => "Retry-After: 1\r\n",
        _ => "",
    };
    let code = status.as_u16();
    let length = reason.len();
    let response = format!(
        "HTTP/1.1 {code} {reason}\r\n{extra}Content-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{reason}"
    );
    socket.write_all(response.as_bytes()).await.ok(); // the client may be gone
    socket.shutdown().await.ok();
}

fn head_end(input: &[u8]) -> Option<usize> {
    input.windows(4).position(|four| four == b"\r\n\r\n").map(|start| start + 4)
}

fn parse_head(head: &[u8]) -> Result<Request<()>, StatusCode> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        _ => return Err(StatusCode::BAD_REQUEST),
    }
    let mut request = Request::builder()
        .method(parsed.method.unwrap_or_default())
        .uri(parsed.path.unwrap_or_default());
    for header in parsed.headers.iter() {
        request = request.header(header.name, header.value);
    }
    request.body(()).map_err(|_| StatusCode::BAD_REQUEST)
}

fn check(
    request: &Request<()>,
    origins: &[String],
    rest: BytesMut,
) -> Result<Upgrade, UpgradeError> {
    let version = request.headers().get(header::SEC_WEBSOCKET_VERSION);
    if version.is_some_and(|version| version != "13") {
        return Err(StatusCode::UPGRADE_REQUIRED.into());
    }
    let mut response = create_response(request).map_err(|_| StatusCode::BAD_REQUEST)?;
    let offered = offered_token(request);
    let UpgradePath { token, user, room } = parse_path(request.uri().path())?;
    let token = match (token.as_str(), offered) {
        ("-", Some(token)) => token,
        ("-", None) => return Err(StatusCode::UNAUTHORIZED.into()),
        (_, offered) => {
            // A page that offers our subprotocol expects it to be selected.
            if offered.is_some() {
                select_subprotocol(&mut response);
            }
            token
        }
    };
    if request.uri().path().starts_with("/-/") {
        select_subprotocol(&mut response);
    }
    let last_msg_id = last_msg_id(request.uri().query())?;
    if !origin_allowed(request, origins) {
        return Err(StatusCode::FORBIDDEN.into());
    }
    Ok(Upgrade { token, user, room, last_msg_id, response, rest })
}

fn select_subprotocol(response: &mut tungstenite::handshake::server::Response) {
    let value = HeaderValue::from_static(SUBPROTOCOL);
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, value);
}

/// Returns the ticket of a header `Sec-WebSocket-Protocol: qiyu, <token>`.
fn offered_token(request: &Request<()>) -> Option<String> {
    let values = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let mut offers = values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    offers.next().filter(|first| *first == SUBPROTOCOL)?;
    offers.next().map(str::to_owned)
}

#[derive(Clone, Debug, PartialEq)]
struct UpgradePath {
    token: String,
    user: UserId,
    room: Option<RoomId>,
}

/// Parses the path `/{token}/{userId}[/{code}[/{roomId}]]`.
fn parse_path(path: &str) -> Result<UpgradePath, StatusCode> {
    let bad = StatusCode::BAD_REQUEST;
    let segments: Vec<String> = path
        .strip_prefix('/')
        .ok_or(bad)?
        .split('/')
        .map(percent_decoded)
        .collect::<Option<_>>()
        .ok_or(bad)?;
    let (token, user, code, room) = match segments.as_slice() {
        [token, user] => (token, user, None, None),
        [token, user, code] if code.is_empty() => (token, user, None, None),
        [token, user, code] => (token, user, Some(code), None),
        [token, user, code, room] => (token, user, Some(code), Some(room)),
        _ => return Err(bad),
    };
    if token.is_empty() {
        return Err(bad);
    }
    let user = user.parse().map_err(|_| bad)?;
    let code: Option<i32> = code.map(|code| code.parse().map_err(|_| bad)).transpose()?;
    let room = match (code, room) {
        (Some(ENTER_ROOM), Some(room)) => Some(room.parse().map_err(|_| bad)?),
        (Some(ENTER_ROOM), None) => return Err(bad),
        _ => None,
    };
    Ok(UpgradePath { token: token.clone(), user, room })
}

fn last_msg_id(query: Option<&str>) -> Result<Option<MsgId>, StatusCode> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let mut given = pairs.filter(|(name, _)| *name == "lastMsgId");
    match given.next() {
        None | Some((_, "")) => Ok(None),
        Some((_, "0")) => Ok(MsgId::try_from(1).ok()), // before the first message
        Some((_, id)) => id.parse().map(Some).map_err(|_| StatusCode::BAD_REQUEST),
    }
}

/// Decodes percent escapes. `None`: they are invalid, or the result is not UTF-8.
fn percent_decoded(segment: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
        decoded.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(decoded).ok()
}

/// Returns whether the origin of a request is allowed. Host names are compared,
/// not ports. A client outside a browser sends no origin.
fn origin_allowed(request: &Request<()>, allowed: &[String]) -> bool {
    let mut origins = request.headers().get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    if origins.next().is_some() {
        return false;
    }
    if allowed.iter().any(|one| one == "*") {
        return true;
    }
    let Some((_, authority)) = origin.split_once("://") else { return false }; // "null" too
    let origin_host = host_name(authority);
    let own = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    allowed.iter().any(|one| {
        one == origin || host_name(one.split_once("://").map_or(one, |(_, h)| h)) == origin_host
    }) || own.is_some_and(|own| host_name(own) == origin_host)
}

fn host_name(authority: &str) -> String {
    let name = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ipv6, _)) => ipv6,
        None => authority.split(':').next().unwrap_or_default(),
    };
    name.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_ticket_user_and_room() {
        let (user, room): (UserId, RoomId) = ("11113".parse().unwrap(), "7".parse().unwrap());
        let to = |token: &str, room| Ok(UpgradePath { token: token.into(), user, room });
        let bad = || Err(StatusCode::BAD_REQUEST);
        for (path, expected) in [
            ("/t/11113/1001/7", to("t", Some(room))),
            ("/t/11113/1002/7", to("t", None)),
            ("/t/11113/1002", to("t", None)),
            ("/t/11113", to("t", None)),
            ("/t/11113/", to("t", None)),
            ("/a%2Eb/1111%33", to("a.b", None)),
            ("/t/11113/1001", bad()),
            ("/t/11113/1001/", bad()),
            ("/t/11113/1001/x", bad()),
            ("/t/11113/1001/-7", bad()),
            ("/t/11113/x/7", bad()),
            ("/t/9999/1001/7", bad()),
            ("/t/x/1001/7", bad()),
            ("/t/11113/1001/7/8", bad()),
            ("/%zz/11113", bad()),
            ("/%ff/11113", bad()),
            ("//11113", bad()),
            ("/t", bad()),
            ("/", bad()),
        ] {
            assert_eq!(parse_path(path), expected, "{path}");
        }
    }

    #[test]
    fn origins_are_compared_by_host_name() {
        let allowed = |origin: Option<&str>, origins: &[&str]| {
            let mut request = Request::builder().header("Host", "live.example:8086");
            if let Some(origin) = origin {
                request = request.header("Origin", origin);
            }
            let origins: Vec<String> = origins.iter().map(|o| (*o).to_owned()).collect();
            origin_allowed(&request.body(()).unwrap(), &origins)
        };
        assert!(allowed(None, &[]));
        assert!(allowed(Some("http://live.example:8080"), &[]));
        assert!(allowed(Some("https://LIVE.example"), &[]));
        assert!(allowed(Some("https://other.example"), &["https://other.example"]));
        assert!(allowed(Some("https://other.example:9"), &["other.example"]));
        assert!(allowed(Some("https://x.example"), &["*"]));
        assert!(allowed(Some("null"), &["*"]), "a page without an origin of its own");
        for evil in ["null", "", "http://live.example.evil.io", "http://xlive.example", "evil.io"] {
            assert!(!allowed(Some(evil), &["other.example"]), "{evil}");
        }
    }
}
