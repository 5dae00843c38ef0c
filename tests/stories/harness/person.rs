//! Somebody with a name and a cookie, and how they reach the system.

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::http::{Answer, How, Reply, Request};
use super::site::{Door, Site};
use super::socket::Socket;
use super::{tcp, ws};

/// The tenant that exists by default.
pub(crate) const APP: u64 = 10001;

/// A live room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Room(pub(crate) u64);

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What getImConfig answers: a ticket, and where to show it.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) token: String,
    pub(crate) ws: String,
    pub(crate) tcp: String,
    expires: Instant,
}

impl Ticket {
    /// Waits for the moment the server itself named.
    pub(crate) async fn expires(&self) {
        sleep_until(self.expires).await;
    }
}

/// Somebody. A clone is the same person, perhaps with other habits.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) avatar: String,
    cookie: Option<String>,
    site: Arc<Site>,
    /// The gateway this person insists on.
    door: Option<Door>,
    never_acks: bool,
}

/// Who one is.
impl Person {
    /// Somebody who did not log in.
    pub(crate) fn stranger(site: &Arc<Site>) -> Self {
        let (name, avatar) = ("a stranger".to_owned(), String::new());
        let (site, never_acks) = (Arc::clone(site), false);
        Self { id: 0, name, avatar, cookie: None, site, door: None, never_acks }
    }

    /// Logs in over HTTP with these parameters.
    pub(crate) async fn logs_in(&self, params: &[(&str, &str)]) -> Self {
        let reply = self.posts("/user/login", params, How::Form).await;
        let set = reply.header("set-cookie").map(str::to_owned);
        let data = reply.answer().success();
        let set = set.unwrap_or_else(|| panic!("no cookie came with {data}"));
        let token = set.split(';').next().and_then(|pair| pair.strip_prefix("qytk="));
        let token = token.unwrap_or_else(|| panic!("not the cookie qytk: {set}")).to_owned();
        self.site.keeps_secret(&token);
        let text = |key: &str| data[key].as_str().unwrap_or_else(|| panic!("{data}")).to_owned();
        let id = data["userId"].as_u64().unwrap_or_else(|| panic!("{data}"));
        let (name, avatar) = (text("nickName"), text("avatar"));
        Self { id, name, avatar, cookie: Some(token), ..self.clone() }
    }

    /// The same person under a name that says more when a story fails.
    pub(crate) fn called(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }

    /// The same person with clients that never acknowledge anything.
    pub(crate) fn never_acks(&self) -> Self {
        Self { never_acks: true, ..self.clone() }
    }

    /// The same person with clients that acknowledge as they should.
    pub(crate) fn who_acks(&self) -> Self {
        Self { never_acks: false, ..self.clone() }
    }

    pub(crate) fn does_ack(&self) -> bool {
        !self.never_acks
    }

    /// The same person, who always connects to this gateway.
    pub(crate) fn via(&self, door: &Door) -> Self {
        Self { door: Some(door.clone()), ..self.clone() }
    }

    /// The login cookie's value, which is a bearer token as well.
    pub(crate) fn bearer(&self) -> &str {
        self.cookie.as_deref().expect("a stranger has no cookie")
    }
}

/// Over HTTP.
impl Person {
    /// The raw reply to a POST.
    pub(crate) async fn posts(&self, path: &str, params: &[(&str, &str)], how: How) -> Reply {
        self.request(path, params, how).send(&self.site.door().http).await
    }

    fn request(&self, path: &str, params: &[(&str, &str)], how: How) -> Request {
        let request = Request::post(path, params, how);
        match &self.cookie {
            Some(cookie) => request.header("cookie", &format!("theme=dark; qytk={cookie}")),
            None => request,
        }
    }

    /// The answer, whatever its code.
    pub(crate) async fn asks(&self, path: &str, params: &[(&str, &str)]) -> Answer {
        self.posts(path, params, How::Form).await.answer()
    }

    /// The data of an answer that must be a success.
    pub(crate) async fn gets(&self, path: &str, params: &[(&str, &str)]) -> Value {
        let answer = self.asks(path, params).await;
        let (name, succeeded) =
            (&self.name, (answer.code, answer.msg.as_str()) == (200, "success"));
        assert!(succeeded, "{path} {params:?} of {name}: {answer:?}");
        answer.data
    }

    /// Starts living, or finds the room that is already open.
    pub(crate) async fn opens_room(&self) -> Room {
        let name = format!("{}'s room", self.name);
        let params = [("type", "1"), ("roomName", name.as_str())];
        let data = self.gets("/living/startingLiving", &params).await;
        Room(data["roomId"].as_u64().unwrap_or_else(|| panic!("no roomId in {data}")))
    }

    pub(crate) async fn closes(&self, room: &Room) {
        self.gets("/living/closeLiving", &[("roomId", &room.to_string())]).await;
    }

    /// The room's page as this person sees it.
    pub(crate) async fn looks_at(&self, room: &Room) -> Value {
        self.gets("/living/anchorConfig", &[("roomId", &room.to_string())]).await
    }

    /// The number of people inside, as the room's page shows it.
    pub(crate) async fn counts(&self, room: &Room) -> u64 {
        let page = self.looks_at(room).await;
        page["watchNum"].as_u64().unwrap_or_else(|| panic!("no watchNum in {page}"))
    }

    pub(crate) async fn sees_online(&self, other: &Self) -> bool {
        let data = self.gets("/im/isOnline", &[("userId", &other.id.to_string())]).await;
        data.as_bool().unwrap_or_else(|| panic!("neither yes nor no: {data}"))
    }

    /// getImConfig: a fresh ticket.
    pub(crate) async fn ticket(&self) -> Ticket {
        let asked = Instant::now();
        let data = self.gets("/im/getImConfig", &[]).await;
        let text = |key: &str| data[key].as_str().unwrap_or_else(|| panic!("{data}")).to_owned();
        assert_eq!(data["userId"], self.id, "{data}");
        let seconds = data["expiresIn"].as_u64().unwrap_or_else(|| panic!("{data}"));
        let token = text("token");
        self.site.keeps_secret(&token);
        let (ws, tcp) = (text("wsImServerAddress"), text("tcpImServerAddress"));
        // A second more than promised, because the server's clock counts whole ones.
        let expires = asked + std::time::Duration::from_secs(seconds + 1);
        Ticket { token, ws, tcp, expires }
    }

    /// Only the token of a fresh ticket.
    pub(crate) async fn token(&self) -> String {
        self.ticket().await.token
    }
}

/// Over sockets.
impl Person {
    /// Asks a gateway for an upgrade on this path; a refusal is the HTTP status.
    pub(crate) async fn knocks(&self, path: &str, headers: &[(&str, &str)]) -> Result<Socket, u16> {
        let door = self.door.clone().unwrap_or_else(|| self.site.door());
        ws::open(&door.ws, path, headers, self).await
    }

    /// Enters the room with a browser.
    pub(crate) async fn ws_into(&self, room: &Room) -> Socket {
        self.ws_with(&format!("1001/{room}")).await
    }

    /// Comes back into the room with a browser that has heard everything up to `last`.
    pub(crate) async fn ws_back_into(&self, room: &Room, last: u64) -> Socket {
        self.ws_with(&format!("1001/{room}?lastMsgId={last}")).await
    }

    /// Comes back into the room with a phone that has heard everything up to `last`.
    pub(crate) async fn tcp_back_into(&self, room: &Room, last: u64) -> Socket {
        let ticket = self.ticket().await;
        let address = self.door.as_ref().map_or(&ticket.tcp, |door| &door.tcp);
        let socket = tcp::open(address, self).await;
        let mut body = self.login_body(&ticket.token, Some(room));
        body["lastMsgId"] = json!(last.to_string());
        socket.sends(1001, body);
        socket.enters().await
    }

    /// Connects a browser without entering a room.
    pub(crate) async fn ws(&self) -> Socket {
        self.ws_with("1004").await
    }

    async fn ws_with(&self, rest: &str) -> Socket {
        let ticket = self.ticket().await;
        let address = self.door.as_ref().map_or(&ticket.ws, |door| &door.ws);
        let path = format!("/{}/{}/{rest}", ticket.token, self.id);
        match ws::open(address, &path, &[], self).await {
            Ok(socket) => socket.enters().await,
            Err(status) => panic!("{} was refused at {address}: {status}", self.name),
        }
    }

    /// Enters the room with a phone.
    pub(crate) async fn tcp_into(&self, room: &Room) -> Socket {
        self.tcp_with(Some(room)).await
    }

    /// Connects a phone without entering a room.
    pub(crate) async fn tcp(&self) -> Socket {
        self.tcp_with(None).await
    }

    async fn tcp_with(&self, room: Option<&Room>) -> Socket {
        let ticket = self.ticket().await;
        let address = self.door.as_ref().map_or(&ticket.tcp, |door| &door.tcp);
        let socket = tcp::open(address, self).await;
        socket.sends(1001, self.login_body(&ticket.token, room));
        socket.enters().await
    }

    /// Connects a phone that has not said anything yet.
    pub(crate) async fn dials(&self) -> Socket {
        let door = self.door.clone().unwrap_or_else(|| self.site.door());
        tcp::open(&door.tcp, self).await
    }

    /// The body of a phone's login.
    pub(crate) fn login_body(&self, token: &str, room: Option<&Room>) -> Value {
        let mut body = json!({ "appId": APP, "userId": self.id, "token": token });
        if let Some(room) = room {
            body["roomId"] = json!(room.0);
        }
        body
    }
}

/// While something is broken: every verb may fail, and says why.
impl Person {
    /// Like [`Person::gets`].
    pub(crate) async fn may_get(
        &self,
        path: &str,
        params: &[(&str, &str)],
    ) -> anyhow::Result<Value> {
        let request = self.request(path, params, How::Form);
        let reply = request.may_send(&self.site.door().http).await?;
        anyhow::ensure!(reply.status == 200, "{path}: status {}", reply.status);
        let answer = reply.answer();
        anyhow::ensure!(answer.code == 200, "{path}: {answer:?}");
        Ok(answer.data)
    }

    /// Comes with a browser: where getImConfig says at the first `attempt`, and through the doors
    /// of the gateways, one after the other, at further ones.
    pub(crate) async fn may_browse(
        &self,
        room: Option<&Room>,
        last: Option<u64>,
        attempt: usize,
    ) -> anyhow::Result<Socket> {
        let (token, door) = self.may_ask_where(attempt).await?;
        let room = room.map_or("1004".to_owned(), |room| format!("1001/{room}"));
        let last = last.map_or(String::new(), |last| format!("?lastMsgId={last}"));
        let path = format!("/{token}/{}/{room}{last}", self.id);
        let socket = ws::may_open(&door.ws, &path, &[], self).await;
        let mut socket = socket.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        socket.address = door.ws;
        socket.may_enter().await
    }

    /// Comes with a phone, likewise.
    pub(crate) async fn may_phone(
        &self,
        room: Option<&Room>,
        last: Option<u64>,
        attempt: usize,
    ) -> anyhow::Result<Socket> {
        let (token, door) = self.may_ask_where(attempt).await?;
        let mut socket = tcp::may_open(&door.tcp, self).await?;
        let mut body = self.login_body(&token, room);
        if let Some(last) = last {
            body["lastMsgId"] = json!(last.to_string());
        }
        socket.sends(1001, body);
        socket.address = door.tcp;
        socket.may_enter().await
    }

    async fn may_ask_where(&self, attempt: usize) -> anyhow::Result<(String, Door)> {
        let data = self.may_get("/im/getImConfig", &[]).await?;
        let text = |key: &str| data[key].as_str().unwrap_or_else(|| panic!("{data}")).to_owned();
        let token = text("token");
        self.site.keeps_secret(&token);
        let (ws, tcp) = (text("wsImServerAddress"), text("tcpImServerAddress"));
        let doors = self.site.gateways();
        let door = match &self.door {
            Some(door) => door.clone(),
            None if attempt == 0 || doors.is_empty() => Door { http: String::new(), ws, tcp },
            None => doors[attempt % doors.len()].clone(),
        };
        Ok((token, door))
    }
}
