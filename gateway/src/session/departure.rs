//! Departure: the steps after a logout and after the end of a connection.

use std::{sync::Arc, time::Duration};

use qiyu_nats::chain;
use qiyu_schema::{
    ConnId, MsgId,
    event::{DisconnectReason, MemberChange, SessionChange},
};
use tracing::warn;

use crate::{delivery::connection::Connection, instance::GatewayInstance};

/// How long a departure waits for the last message that delivery dealt with.
const LAST_DELIVERED_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a logout waits for the bus.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(1);

impl GatewayInstance {
    /// Removes the session of a connection that logs out, so that its user can
    /// log in again as soon as the logout is confirmed. A bus that does not
    /// answer delays no logout: [`depart`](Self::depart) tries again.
    pub(crate) async fn end_session(&self, connection: &Connection) {
        let (app, user) = (connection.identity.app, connection.identity.user);
        let session = self.session(connection, connection.room());
        let left = self.sessions.remove(app, user, &session);
        match tokio::time::timeout(LOGOUT_TIMEOUT, left).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%user, error = %chain(&error), "session not removed at logout");
            }
            Err(_) => warn!(%user, "session not removed at logout: the bus does not answer"),
        }
    }

    /// Removes a connection that has ended, and appends its departure to the log
    /// in the background. Exactly one departure follows each login.
    pub(crate) fn depart(self: &Arc<Self>, connection: &Arc<Connection>, reason: DisconnectReason) {
        if !self.registry.remove(connection.id) {
            return;
        }
        self.metrics.connections.dec();
        self.metrics.ended.get_or_create(&reason.into()).inc();
        let (instance, connection) = (Arc::clone(self), Arc::clone(connection));
        self.tasks.spawn(async move { instance.append_departure(&connection, reason).await });
    }

    async fn append_departure(&self, connection: &Connection, reason: DisconnectReason) {
        let (app, user, id) = (connection.identity.app, connection.identity.user, connection.id);
        let room = connection.room();
        let heard = self.stop_delivery(id).await;
        let left = room.map(|room| {
            let change = MemberChange::Left { connection: id, user, last_seen: heard };
            self.membership.change_member(app, room, change)
        });
        let change = SessionChange::Offline { connection: id, user, reason };
        let offline = self.membership.change_session(app, user, change);
        let session = self.session(connection, room);
        if let Err(error) = self.sessions.remove(app, user, &session).await {
            warn!(%user, error = %chain(&error), "session not removed, it ends with this gateway's lease");
        }
        // The end of this incarnation waits for these. A dropped answer means
        // that the incarnation has ended.
        if let Some(left) = left {
            left.await.ok();
        }
        offline.await.ok();
    }

    /// Ends the delivery to a connection. Returns the last message of its room
    /// that was dealt with while it was a member, if delivery answers in time.
    async fn stop_delivery(&self, connection: ConnId) -> Option<MsgId> {
        // The departure must be appended soon: until then the user counts as a member.
        self.delivery.leave(connection, LAST_DELIVERED_TIMEOUT).await
    }
}
