//! One incarnation of the gateway (`id.epoch`) as its sockets see it: its
//! registration, its connections and the services that a connection uses.

pub(crate) mod commands;
pub(crate) mod enforcement;
pub(crate) mod housekeeping;
pub(crate) mod tasks;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use qiyu_nats::{Bus, backpressure::Backpressure, bucket::BucketError, stream::BucketName};
use qiyu_presence::{Registration, Session, Sessions};
use qiyu_schema::{AppId, ConnId, Incarnation, RoomId, room};
use tokio_util::task::TaskTracker;

use crate::{
    close::CloseReason,
    config::Config,
    delivery::{DeliveryHandle, connection::Connection},
    metrics::Metrics,
    rate_limit::RateLimits,
    send::{content::ContentChecker, likes::LikeCounter, sanctions::Sanctions},
    session::{membership::MembershipWriter, registry::ConnectionRegistry},
};

/// One incarnation of the gateway.
pub(crate) struct GatewayInstance {
    pub(crate) config: Arc<Config>,
    pub(crate) bus: Bus,
    pub(crate) gateway: Incarnation,
    /// `None`: the incarnation has ended.
    pub(crate) registration: Mutex<Option<Registration>>,
    pub(crate) sessions: Sessions,
    pub(crate) membership: MembershipWriter,
    pub(crate) sanctions: Sanctions,
    pub(crate) content: Arc<ContentChecker>,
    pub(crate) rate_limits: Arc<RateLimits>,
    pub(crate) backpressure: Backpressure,
    pub(crate) likes: LikeCounter,
    pub(crate) delivery: DeliveryHandle,
    pub(crate) metrics: Metrics,
    /// Tasks that must finish before this incarnation may end.
    pub(crate) tasks: TaskTracker,
    pub(crate) draining: AtomicBool,
    pub(crate) registry: ConnectionRegistry,
}

impl GatewayInstance {
    /// Returns whether this incarnation may act: its lease is fresh.
    pub(crate) fn may_act(&self) -> bool {
        self.registration.lock().as_ref().is_some_and(Registration::is_active)
    }

    /// Returns whether new connections are accepted.
    pub(crate) fn accepts_logins(&self) -> bool {
        !self.draining.load(Ordering::Acquire) && self.may_act() && self.bus.is_connected()
    }

    pub(crate) fn connection(&self, id: ConnId) -> Option<Arc<Connection>> {
        self.registry.get(id)
    }

    pub(crate) fn connections(&self) -> Vec<Arc<Connection>> {
        self.registry.all()
    }

    pub(crate) fn connection_count(&self) -> usize {
        self.registry.len()
    }

    /// Returns whether the room takes messages, as the bucket `rooms` has it.
    pub(crate) async fn is_room_open(&self, app: AppId, room: RoomId) -> Result<bool, BucketError> {
        let rooms = self.bus.bucket(BucketName::Rooms);
        Ok(rooms.read(&room::key(app, room)).await?.value.is_some())
    }

    /// Returns the session of a connection as presence stores it.
    pub(crate) fn session(&self, connection: &Connection, room: Option<RoomId>) -> Session {
        Session {
            gateway: self.gateway.clone(),
            connection: connection.id,
            room,
            since_ms: qiyu_nats::now_ms(),
        }
    }

    /// Closes a connection in favour of a newer login of its user.
    pub(crate) fn replace(&self, id: ConnId) {
        if let Some(connection) = self.connection(id) {
            connection.close(CloseReason::Replaced);
        }
    }

    /// Closes every connection. The delays of `reason` are spread over `window`,
    /// so that the clients do not all come back at once.
    pub(crate) fn close_all(&self, window: Duration, reason: impl Fn(Duration) -> CloseReason) {
        let connections = self.connections();
        let step = window.checked_div(connections.len().max(1) as u32).unwrap_or_default();
        for (n, connection) in connections.iter().enumerate() {
            connection.close(reason(step * n as u32));
        }
    }
}
