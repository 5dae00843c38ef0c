//! One life of the gateway, as its sockets see it.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use qiyu_nats::{
    Bus,
    brake::Brakes,
    bucket::BucketError,
    chain,
    log::{APPEND_DEADLINE, Condition},
    stream::BucketName,
};
use qiyu_presence::{Life, Session, Sessions};
use qiyu_schema::{
    AppId, ConnId, Incarnation, MsgId, RoomId,
    event::{Ending, Event, MemberChange, Record, SessionChange},
    room,
    subject::{self, RoomKind},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::{
    config::Config,
    delivery::Order,
    delivery::connection::{Close, Connection},
    delivery::in_flight::Desk,
    metrics::Metrics,
    rate_limit::Limits,
    send::content::Content,
    send::sanctions::Measures,
    session::membership::Membership,
};

/// How long a leaving waits to be told what was heard before it.
const HEARD_PATIENCE: Duration = Duration::from_secs(2);
/// How long a goodbye waits for the bus.
const LOGOUT_PATIENCE: Duration = Duration::from_secs(1);

/// One life of the gateway.
pub(crate) struct Serving {
    pub(crate) config: Arc<Config>,
    pub(crate) bus: Bus,
    pub(crate) gateway: Incarnation,
    pub(crate) life: Mutex<Option<Life>>,
    pub(crate) sessions: Sessions,
    pub(crate) membership: Membership,
    pub(crate) measures: Measures,
    pub(crate) content: Arc<Content>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) desk: Desk,
    pub(crate) metrics: Metrics,
    /// What must be finished before this life may end.
    pub(crate) tasks: TaskTracker,
    pub(crate) draining: AtomicBool,
    connections: RwLock<HashMap<ConnId, Arc<Connection>>>,
    next_connection: AtomicU64,
    likes: Mutex<HashMap<(AppId, RoomId), u64>>,
    pub(crate) brakes: Brakes,
}

/// What a life is put together from.
pub(crate) struct Parts {
    pub(crate) config: Arc<Config>,
    pub(crate) bus: Bus,
    pub(crate) life: Life,
    pub(crate) sessions: Sessions,
    pub(crate) membership: Membership,
    pub(crate) measures: Measures,
    pub(crate) content: Arc<Content>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) desk: Desk,
    pub(crate) metrics: Metrics,
}

impl Serving {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            config,
            bus,
            life,
            sessions,
            membership,
            measures,
            content,
            limits,
            orders,
            desk,
            metrics,
        } = parts;
        Arc::new(Self {
            config,
            bus,
            gateway: life.incarnation().clone(),
            life: Mutex::new(Some(life)),
            sessions,
            membership,
            measures,
            content,
            limits,
            orders,
            desk,
            metrics,
            tasks: TaskTracker::new(),
            draining: AtomicBool::new(false),
            connections: RwLock::default(),
            next_connection: AtomicU64::new(1),
            likes: Mutex::default(),
            brakes: Brakes::default(),
        })
    }

    /// Whether this life may act: its lease is fresh.
    pub(crate) fn may_act(&self) -> bool {
        self.life.lock().as_ref().is_some_and(Life::may_act)
    }

    /// Whether new connections are welcome.
    pub(crate) fn takes_logins(&self) -> bool {
        !self.draining.load(Ordering::Acquire) && self.may_act() && self.bus.is_connected()
    }

    pub(crate) fn fresh_connection_id(&self) -> ConnId {
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        ConnId(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }

    pub(crate) fn connection(&self, id: ConnId) -> Option<Arc<Connection>> {
        self.connections.read().get(&id).cloned()
    }

    pub(crate) fn connections(&self) -> Vec<Arc<Connection>> {
        self.connections.read().values().cloned().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.connections.read().len()
    }

    pub(crate) fn add(&self, connection: &Arc<Connection>) {
        self.connections.write().insert(connection.id, Arc::clone(connection));
        self.metrics.connections.inc();
    }

    /// Whether the room takes messages, as its one writer says.
    pub(crate) async fn room_is_open(&self, app: AppId, room: RoomId) -> Result<bool, BucketError> {
        let rooms = self.bus.bucket(BucketName::Rooms);
        Ok(rooms.read(&room::key(app, room)).await?.value.is_some())
    }

    /// What presence says of a connection.
    pub(crate) fn session(&self, connection: &Connection, room: Option<RoomId>) -> Session {
        Session {
            gateway: self.gateway.clone(),
            connection: connection.id,
            room,
            since_ms: qiyu_nats::now_ms(),
        }
    }

    /// Frees the place of a connection that logs out, so that whoever is told
    /// "logged out" can log in again at once. A bus that does not answer delays
    /// nobody's goodbye: [`leave`](Self::leave) tries again.
    pub(crate) async fn end_session(&self, connection: &Connection) {
        let (app, user) = (connection.who.app, connection.who.user);
        let session = self.session(connection, connection.room());
        let left = self.sessions.leave(app, user, &session);
        match tokio::time::timeout(LOGOUT_PATIENCE, left).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%user, error = %chain(&error), "session outlives its logout"),
            Err(_) => warn!(%user, "session outlives its logout: the bus does not answer"),
        }
    }

    /// Nothing is delivered to a connection any more. Returns the last message of its
    /// room that was dealt with while it was there, if that is known.
    async fn ends_delivery(&self, connection: ConnId) -> Option<MsgId> {
        let (heard, answer) = oneshot::channel();
        self.orders.send(Order::Leave { connection, heard }).await.ok()?; // the life is over
        // That it has left must be said soon: it counts as there meanwhile.
        tokio::time::timeout(HEARD_PATIENCE, answer).await.ok()?.ok()?
    }

    /// A connection has ended: says so everywhere, in the background.
    pub(crate) fn leave(self: &Arc<Self>, connection: &Arc<Connection>, reason: Ending) {
        if self.connections.write().remove(&connection.id).is_none() {
            return; // exactly one end for each beginning
        }
        self.metrics.connections.dec();
        self.metrics.ended.get_or_create(&reason.into()).inc();
        let (serving, connection) = (Arc::clone(self), Arc::clone(connection));
        self.tasks.spawn(async move {
            let (app, user, id) = (connection.who.app, connection.who.user, connection.id);
            let room = connection.room();
            let heard = serving.ends_delivery(id).await;
            let left = room.map(|room| {
                let change = MemberChange::Left { connection: id, user, heard };
                serving.membership.member(app, room, change)
            });
            let change = SessionChange::Offline { connection: id, user, reason };
            let offline = serving.membership.session(app, user, change);
            let session = serving.session(&connection, room);
            if let Err(error) = serving.sessions.leave(app, user, &session).await {
                warn!(%user, error = %chain(&error), "session not removed, it ends with this gateway's lease");
            }
            // The end of this life waits for these; dropped answers are its end too.
            if let Some(left) = left {
                left.await.ok();
            }
            offline.await.ok();
        });
    }

    /// Ends every connection, spread over `window` so that they do not all come back at once.
    pub(crate) fn close_all(&self, window: Duration, close: impl Fn(Duration) -> Close) {
        let connections = self.connections();
        let step = window.checked_div(connections.len().max(1) as u32).unwrap_or_default();
        for (n, connection) in connections.iter().enumerate() {
            connection.close(close(step * n as u32));
        }
    }

    /// Counts likes; they travel together, once a second.
    pub(crate) fn like(&self, app: AppId, room: RoomId, count: u32) {
        *self.likes.lock().entry((app, room)).or_default() += u64::from(count);
    }

    /// Writes the likes of the last second down.
    pub(crate) async fn write_likes(&self, number: u64) {
        let likes = std::mem::take(&mut *self.likes.lock());
        for ((app, room), count) in likes {
            let subject = subject::room(app, room, RoomKind::Likes);
            let gateway = self.gateway.clone();
            let record =
                Record::at(qiyu_nats::now_ms(), Event::RoomLiked { app, room, gateway, count });
            let key = format!("likes:{}:{app}.{room}:{number}", self.gateway);
            let any = Condition::Any;
            if let Err(error) = self.bus.append(subject, &record, &key, any, APPEND_DEADLINE).await
            {
                debug!(%room, count, error = %chain(&error), "likes lost");
            }
        }
    }
}
