//! Login: every check in the order of the protocol, then the events of the
//! login. A client that receives the welcome can be reached.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use qiyu_nats::{
    bucket::{Bucket, BucketError},
    chain,
    log::APPEND_DEADLINE,
    stream::BucketName,
};
use qiyu_presence::{AddSessionError, Session, SessionPolicy};
use qiyu_schema::{
    MsgId, RoomId, UserId,
    command::ReplaceSession,
    event::{MemberChange, SessionChange},
    subject,
    ticket::Ticket,
};
use tracing::{debug, warn};

use super::{identity::ClientIdentity, resume};
use crate::{
    close::CloseReason,
    config::MultiDevice,
    delivery::connection::Connection,
    frame::{Reply, Transport},
    instance::GatewayInstance,
};

/// How long the gateway of an older connection may take to close it.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(1);
/// How much longer than its validity a used ticket is remembered, so that
/// clocks that differ do not make it valid again.
const USED_TICKET_MARGIN: Duration = Duration::from_secs(60);

/// A login as the client requests it.
pub(crate) struct LoginRequest<'a> {
    /// `None`: the app of the ticket.
    pub(crate) app: Option<u64>,
    pub(crate) user: UserId,
    /// The ticket, which is called token on the wire.
    pub(crate) token: &'a str,
    pub(crate) room: Option<RoomId>,
    pub(crate) last_msg_id: Option<MsgId>,
    pub(crate) address: IpAddr,
}

/// The reason why a login is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoginRefusal {
    /// The ticket is invalid, expired, used, or another user's.
    Ticket,
    Banned,
    /// The room is not open.
    Room,
    /// Too many connections of the user, or too many logins a second.
    TooMany,
    /// The gateway drains, or the bus does not answer.
    Unavailable,
}

/// A login that passed its checks. Nothing of it is in the log yet.
pub(crate) struct AdmittedLogin {
    connection: Arc<Connection>,
    session: Session,
    replaced: Vec<Session>,
    last_msg_id: Option<MsgId>,
}

impl GatewayInstance {
    /// Checks a login. Uses the ticket up if every check passes.
    pub(crate) async fn admit(
        &self,
        request: LoginRequest<'_>,
        transport: Transport,
    ) -> Result<AdmittedLogin, LoginRefusal> {
        let checked = self.check_login(&request, transport).await;
        if let Err(refusal) = &checked {
            self.metrics.logins_refused.inc();
            debug!(user = %request.user, address = %request.address, ?refusal, "login refused");
        }
        checked
    }

    async fn check_login(
        &self,
        request: &LoginRequest<'_>,
        transport: Transport,
    ) -> Result<AdmittedLogin, LoginRefusal> {
        // A failed login takes a token of the rate, too. A wrong ticket costs one
        // signature; a login over the rate makes no request to the bus.
        let within_rate = self.rate_limits.admits_login_from(request.address);
        let ticket = self.verify_ticket(request)?;
        if !within_rate || !self.rate_limits.admits_login_of(ticket.app, ticket.user) {
            return Err(LoginRefusal::TooMany);
        }
        let key = ticket_key(&ticket);
        let reservation = self.reserve_ticket(&key, &ticket).await?;
        let checked = self.check_access(request, ticket, transport).await;
        if checked.is_err()
            && let Err(error) = self.used_tickets().remove_if(&key, reservation).await
        {
            warn!(user = %request.user, error = %chain(&error), "ticket of a refused login stays used");
        }
        checked
    }

    fn verify_ticket(&self, request: &LoginRequest<'_>) -> Result<Ticket, LoginRefusal> {
        let ticket = self.config.ticket_key.verify(request.token, qiyu_nats::now_ms());
        let ticket = ticket.map_err(|_| LoginRefusal::Ticket)?;
        let matches_request = ticket.user == request.user
            && request.app.is_none_or(|app| app == u64::from(ticket.app.get()))
            && self.config.apps.contains(&ticket.app);
        if matches_request { Ok(ticket) } else { Err(LoginRefusal::Ticket) }
    }

    /// Marks the ticket as used: of two logins with one ticket exactly one
    /// passes. The mark is removed if the login is refused by a later check.
    async fn reserve_ticket(&self, key: &str, ticket: &Ticket) -> Result<u64, LoginRefusal> {
        let tickets = self.used_tickets();
        let entry = tickets.read(key).await.map_err(unavailable)?;
        if entry.value.is_some() {
            return Err(LoginRefusal::Ticket);
        }
        let remaining_ms = ticket.expires_ms.saturating_sub(qiyu_nats::now_ms());
        let ttl = Duration::from_millis(remaining_ms) + USED_TICKET_MARGIN;
        let used = Bytes::from_static(b"used");
        match tickets.set_if(key, entry.revision, used, Some(ttl)).await {
            Ok(revision) => Ok(revision),
            Err(BucketError::Conflict { .. }) => Err(LoginRefusal::Ticket),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Checks the ban, the room, the number of connections and the gateway, in
    /// this order.
    async fn check_access(
        &self,
        request: &LoginRequest<'_>,
        ticket: Ticket,
        transport: Transport,
    ) -> Result<AdmittedLogin, LoginRefusal> {
        let (app, user) = (ticket.app, request.user);
        if self.sanctions.is_banned(app, request.room, user) {
            return Err(LoginRefusal::Banned);
        }
        if let Some(room) = request.room
            && !self.is_room_open(app, room).await.map_err(unavailable)?
        {
            return Err(LoginRefusal::Room);
        }
        let Ticket { nick_name, avatar, .. } = ticket;
        let identity = ClientIdentity { app, user, nick_name, avatar };
        let id = self.registry.next_id();
        let connection = Connection::new(id, identity, transport, request.room);
        let session = self.session(&connection, request.room);
        let policy = match self.config.multi_device {
            MultiDevice::Allow => SessionPolicy::Allow,
            MultiDevice::Replace => SessionPolicy::Replace,
        };
        let entered = self.sessions.add(app, user, &session, policy).await;
        let replaced = entered.map_err(|error| match error {
            AddSessionError::TooMany { .. } => LoginRefusal::TooMany,
            AddSessionError::Unknown(error) => {
                warn!(%user, error = %chain(&error), "login refused: presence does not answer");
                LoginRefusal::Unavailable
            }
        })?;
        if !self.accepts_logins() {
            if let Err(error) = self.sessions.remove(app, user, &session).await {
                warn!(%user, error = %chain(&error), "session of a refused login not removed");
            }
            return Err(LoginRefusal::Unavailable);
        }
        Ok(AdmittedLogin { connection, session, replaced, last_msg_id: request.last_msg_id })
    }

    /// Registers an admitted connection, appends its login to the log and
    /// welcomes it. If that fails, the returned connection is closing.
    pub(crate) async fn enter(self: &Arc<Self>, admitted: AdmittedLogin) -> Arc<Connection> {
        let AdmittedLogin { connection, session, replaced, last_msg_id } = admitted;
        self.registry.add(&connection);
        self.metrics.connections.inc();
        // A ban that was enforced before the registration did not find the connection.
        self.close_if_banned(&connection);
        // Before the append: from here on delivery holds the room's messages for it.
        if self.delivery.enter(&connection).await.is_err() {
            connection.close(CloseReason::EndedDuringLogin);
            return connection;
        }
        let appended = self.append_login(&connection, session.room, last_msg_id.is_some());
        match tokio::time::timeout(APPEND_DEADLINE, appended).await {
            Ok(Some(position)) => {
                self.welcome(&connection, session.room.zip(position), last_msg_id).await;
                self.metrics.logins.inc();
            }
            _ => {
                let user = connection.identity.user;
                warn!(%user, connection = %connection.id, "login not stored in time");
                connection.close(CloseReason::LoginNotStored);
            }
        }
        if !replaced.is_empty() {
            // Not awaited: a gateway that does not answer must not delay the welcome.
            let instance = Arc::clone(self);
            self.tasks.spawn(async move { instance.close_replaced(&replaced).await });
        }
        connection
    }

    /// Appends the join of the room, if there is one, and the session. Returns
    /// the position of the join. `None`: the incarnation has ended.
    fn append_login(
        &self,
        connection: &Connection,
        room: Option<RoomId>,
        resumed: bool,
    ) -> impl Future<Output = Option<Option<MsgId>>> + use<> {
        let (app, user, id) = (connection.identity.app, connection.identity.user, connection.id);
        let join = room.map(|room| {
            // A client that resumes needs no repeats of the messages it missed.
            let change = MemberChange::Joined { connection: id, user, resumed };
            self.membership.change_member(app, room, change)
        });
        let change = SessionChange::Online { connection: id, user, room };
        let online = self.membership.change_session(app, user, change);
        async move {
            let position = match join {
                Some(join) => Some(join.await.ok()?),
                None => None,
            };
            online.await.ok()?;
            Some(position)
        }
    }

    /// Queues the welcome, followed by the messages missed since `last_msg_id`.
    async fn welcome(
        &self,
        connection: &Arc<Connection>,
        entered: Option<(RoomId, MsgId)>,
        last_msg_id: Option<MsgId>,
    ) {
        let (app, user) = (connection.identity.app, connection.identity.user);
        let position = entered.map(|(_, position)| position);
        let missed = match (entered, last_msg_id) {
            (Some((room, position)), Some(after)) => {
                Some(resume::missed(self, connection, room, after, position).await)
            }
            _ => None, // without a room there is nothing to resume
        };
        let recovered = missed.as_ref().map(Option::is_some);
        let missed = missed.flatten().unwrap_or_default();
        connection.welcome(Reply::welcome(app, user, position, recovered), &missed);
        if let Some((room, _)) = entered {
            // Before the socket is read: an acknowledgement may be for one of these.
            self.delivery.resume(connection.id, room, missed).await;
        }
    }

    /// Removes the session of an admitted login after its client has gone.
    pub(crate) async fn abandon_login(&self, admitted: AdmittedLogin) {
        let identity = &admitted.connection.identity;
        let left = self.sessions.remove(identity.app, identity.user, &admitted.session).await;
        if let Err(error) = left {
            warn!(user = %identity.user, error = %chain(&error), "session of an abandoned login not removed");
        }
    }

    /// Closes the connections that a login replaced, here and on other gateways.
    async fn close_replaced(&self, replaced: &[Session]) {
        for session in replaced {
            if session.gateway == self.gateway {
                self.replace(session.connection);
                continue;
            }
            let group = subject::gateway_commands(&session.gateway);
            let command = ReplaceSession { connection: session.connection };
            if let Err(error) =
                self.bus.request_with_timeout(&group, &command, REPLACE_TIMEOUT).await
            {
                warn!(gateway = %session.gateway, error = %chain(&error), "older connection not closed");
            }
        }
    }

    fn used_tickets(&self) -> Bucket {
        self.bus.bucket(BucketName::Tickets)
    }
}

/// Returns the bucket key of a ticket. Each ticket ever issued has its own.
fn ticket_key(ticket: &Ticket) -> String {
    format!("{:032x}", ticket.nonce)
}

fn unavailable(error: BucketError) -> LoginRefusal {
    warn!(error = %chain(&error), "login refused: the bus does not answer");
    LoginRefusal::Unavailable
}
