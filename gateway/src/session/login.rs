//! Letting somebody in: every check in the contract's order, then the entry
//! into the log. A client that hears "welcome" can be reached.

use std::{net::IpAddr, sync::Arc, time::Duration};

use qiyu_nats::{
    bucket::{Bucket, BucketError},
    chain,
    log::APPEND_DEADLINE,
    stream::BucketName,
};
use qiyu_presence::{EnterError, Policy, Session};
use qiyu_schema::{
    MsgId, RoomId, UserId,
    command::ReplaceSession,
    event::{Ending, MemberChange, SessionChange},
    subject,
    ticket::Ticket,
};
use tracing::{debug, warn};

use crate::{
    config::MultiDevice,
    delivery::Order,
    delivery::connection::{Close, Connection},
    delivery::in_flight::Entry,
    frame::{Reply, Wire},
    send::request::Identity,
    session::registry::Serving,
    session::resume,
};

/// Who wants in, and where to.
pub(crate) struct Ask<'a> {
    /// `None`: whatever the token says.
    pub(crate) app: Option<u64>,
    pub(crate) user: UserId,
    pub(crate) token: &'a str,
    pub(crate) room: Option<RoomId>,
    pub(crate) last_msg_id: Option<MsgId>,
    pub(crate) address: IpAddr,
}

/// Why somebody may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not their token, or not any more.
    Token,
    /// They may not come in, here or anywhere.
    Banned,
    /// The room is not open.
    Room,
    /// Too many connections, at once or a second.
    TooMany,
    /// Draining, or the bus is down.
    Unavailable,
}

/// Somebody who may come in; nothing is in the log yet.
pub(crate) struct Admitted {
    pub(crate) connection: Arc<Connection>,
    session: Session,
    replaced: Vec<Session>,
    last_msg_id: Option<MsgId>,
}

/// How long an older connection on another gateway is waited for.
const REPLACE_PATIENCE: Duration = Duration::from_secs(1);

impl Serving {
    /// Checks everything, in order; uses the token up if all is well.
    pub(crate) async fn admit(&self, ask: Ask<'_>, wire: Wire) -> Result<Admitted, Refusal> {
        let checked = self.check(&ask, wire).await;
        if let Err(refusal) = &checked {
            self.metrics.logins_refused.inc();
            debug!(user = %ask.user, address = %ask.address, ?refusal, "login refused");
        }
        checked
    }

    async fn check(&self, ask: &Ask<'_>, wire: Wire) -> Result<Admitted, Refusal> {
        // Whoever fails uses the rate up, too. What a wrong token costs us is one
        // signature; the bus is not asked for those who come too fast.
        let in_time = self.limits.address_may_connect(ask.address);
        let ticket = self.verify(ask)?;
        if !in_time || !self.limits.user_may_connect(ticket.app, ticket.user) {
            return Err(Refusal::TooMany);
        }
        let key = ticket_key(&ticket);
        let reservation = self.reserve(&key, &ticket).await?;
        let checked = self.check_the_rest(ask, ticket, wire).await;
        if checked.is_err()
            && let Err(error) = tickets_of(self).remove_if(&key, reservation).await
        {
            warn!(user = %ask.user, error = %chain(&error), "token of a refused login stays used up");
        }
        checked
    }

    async fn check_the_rest(
        &self,
        ask: &Ask<'_>,
        ticket: Ticket,
        wire: Wire,
    ) -> Result<Admitted, Refusal> {
        let app = ticket.app;
        if self.measures.is_banned(app, ask.room, ask.user) {
            return Err(Refusal::Banned);
        }
        if let Some(room) = ask.room
            && !self.room_is_open(app, room).await.map_err(unavailable)?
        {
            return Err(Refusal::Room);
        }
        let who =
            Identity { app, user: ticket.user, nick_name: ticket.nick_name, avatar: ticket.avatar };
        let connection = Connection::new(self.fresh_connection_id(), who, wire, ask.room);
        let session = self.session(&connection, ask.room);
        let policy = match self.config.multi_device {
            MultiDevice::Allow => Policy::Allow,
            MultiDevice::Replace => Policy::Replace,
        };
        let entered = self.sessions.enter(app, ask.user, &session, policy).await;
        let replaced = entered.map_err(|error| match error {
            EnterError::TooMany { .. } => Refusal::TooMany,
            EnterError::Unknown(error) => {
                warn!(user = %ask.user, error = %chain(&error), "login refused: presence does not answer");
                Refusal::Unavailable
            }
        })?;
        if !self.takes_logins() {
            if let Err(error) = self.sessions.leave(app, ask.user, &session).await {
                warn!(user = %ask.user, error = %chain(&error), "session of a refused login stays behind");
            }
            return Err(Refusal::Unavailable);
        }
        Ok(Admitted { connection, session, replaced, last_msg_id: ask.last_msg_id })
    }

    fn verify(&self, ask: &Ask<'_>) -> Result<Ticket, Refusal> {
        let ticket = self.config.ticket_key.verify(ask.token, qiyu_nats::now_ms());
        let ticket = ticket.map_err(|_| Refusal::Token)?;
        let its_own = ticket.user == ask.user
            && ask.app.is_none_or(|app| app == u64::from(ticket.app.get()))
            && self.config.apps.contains(&ticket.app);
        if its_own { Ok(ticket) } else { Err(Refusal::Token) }
    }

    /// Of two logins with one token exactly one gets past this. Given back if
    /// the login is then refused for another reason.
    async fn reserve(&self, key: &str, ticket: &Ticket) -> Result<u64, Refusal> {
        let tickets = tickets_of(self);
        let slot = tickets.read(key).await.map_err(unavailable)?;
        if slot.value.is_some() {
            return Err(Refusal::Token);
        }
        // Remembered a little longer than it is valid, whatever the clocks say.
        let remaining_ms = ticket.expires_ms.saturating_sub(qiyu_nats::now_ms());
        let ttl = Duration::from_millis(remaining_ms) + Duration::from_secs(60);
        let used = bytes::Bytes::from_static(b"used");
        match tickets.set_if(key, slot.revision, used, Some(ttl)).await {
            Ok(revision) => Ok(revision),
            Err(BucketError::Changed { .. }) => Err(Refusal::Token),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Enters an admitted connection into the log and welcomes it. On failure
    /// the connection is closing already.
    pub(crate) async fn enter(self: &Arc<Self>, admitted: Admitted) -> Arc<Connection> {
        let Admitted { connection, session, replaced, last_msg_id } = admitted;
        let (app, user, id) = (connection.who.app, connection.who.user, connection.id);
        self.add(&connection);
        self.turn_away_banned(&connection); // before it was here, a ban did not find it
        // First: from here on what comes for its room is held for it.
        if self.orders.send(Order::Enter(Arc::clone(&connection))).await.is_err() {
            connection.close(Close::new(Ending::Drained, 1012, "retry_ms=0"));
            return connection;
        }
        let join = session.room.map(|room| {
            // Whoever asks for what they missed needs no repeats of it.
            let resumed = last_msg_id.is_some();
            let change = MemberChange::Joined { connection: id, user, resumed };
            self.membership.member(app, room, change)
        });
        let change = SessionChange::Online { connection: id, user, room: session.room };
        let online = self.membership.session(app, user, change);
        let stored = async {
            let position = match join {
                Some(join) => Some(join.await.ok()?),
                None => None,
            };
            online.await.ok()?;
            Some(position)
        };
        match tokio::time::timeout(APPEND_DEADLINE, stored).await {
            Ok(Some(position)) => {
                self.welcome(&connection, session.room.zip(position), last_msg_id).await;
                self.metrics.logins.inc();
            }
            _ => {
                warn!(%user, connection = %id, "login not stored in time");
                connection.close(Close::new(Ending::Unstored, 3014, "login not stored in time"));
            }
        }
        if !replaced.is_empty() {
            // Not awaited: a gateway that does not answer must not delay the welcome.
            let serving = Arc::clone(self);
            self.tasks.spawn(async move { serving.end_replaced(&replaced).await });
        }
        connection
    }

    /// Says welcome, with what was missed since `last_msg_id` right behind it.
    async fn welcome(
        &self,
        connection: &Arc<Connection>,
        entered: Option<(RoomId, MsgId)>,
        last_msg_id: Option<MsgId>,
    ) {
        let (app, user) = (connection.who.app, connection.who.user);
        let position = entered.map(|(_, position)| position);
        let missed = match (entered, last_msg_id) {
            (Some((room, position)), Some(after)) => {
                Some(resume::missed(self, connection, room, after, position).await)
            }
            _ => None, // without a room there is nothing to come back to
        };
        let recovered = missed.as_ref().map(Option::is_some);
        let missed = missed.flatten().unwrap_or_default();
        connection.welcome(Reply::welcome(app, user, position, recovered), &missed);
        missed.iter().for_each(Entry::seal);
        if !missed.is_empty() {
            self.orders.send(Order::Clock(missed)).await.ok(); // the life is over
        }
    }

    /// An admitted client was gone before it could be told.
    pub(crate) async fn dismiss(&self, admitted: Admitted) {
        let who = &admitted.connection.who;
        if let Err(error) = self.sessions.leave(who.app, who.user, &admitted.session).await {
            warn!(user = %who.user, error = %chain(&error), "session of a vanished login stays behind");
        }
    }

    async fn end_replaced(&self, replaced: &[Session]) {
        for session in replaced {
            if session.gateway == self.gateway {
                self.replace(session.connection);
                continue;
            }
            let group = subject::gateway_commands(&session.gateway);
            let command = ReplaceSession { connection: session.connection };
            if let Err(error) = self.bus.ask_within(&group, &command, REPLACE_PATIENCE).await {
                warn!(gateway = %session.gateway, error = %chain(&error), "older connection not told to go");
            }
        }
    }

    /// Ends a connection in favour of a newer one.
    pub(crate) fn replace(&self, id: qiyu_schema::ConnId) {
        if let Some(connection) = self.connection(id) {
            let close = Close::new(Ending::Replaced, 3503, "replaced by a newer login");
            connection.close(close.saying("replaced"));
        }
    }
}

fn tickets_of(serving: &Serving) -> Bucket {
    serving.bus.bucket(BucketName::Tickets)
}

/// One key per ticket ever given out.
fn ticket_key(ticket: &Ticket) -> String {
    format!("{:032x}", ticket.nonce)
}

fn unavailable(error: BucketError) -> Refusal {
    warn!(error = %chain(&error), "login refused: the bus does not answer");
    Refusal::Unavailable
}
