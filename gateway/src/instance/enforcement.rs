//! Enforcing sanctions on connections that are there: kicks and bans close
//! them, mutes are announced to them. Later logins and messages are checked
//! against the sanctions themselves.

use std::{sync::Arc, time::Duration};

use qiyu_schema::{AppId, RoomId, sanction::Sanction};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    close::CloseReason,
    delivery::connection::Connection,
    frame::{EncodedMessage, biz},
    instance::GatewayInstance,
    send::sanctions::{SanctionTracker, UserSanctionChange},
};

/// The pause between two comparisons: a burst of sanctions is one comparison.
const COMPARE_INTERVAL: Duration = Duration::from_millis(50);

/// Enforces every change of the sanctions until `stop`.
pub(crate) async fn watch_sanctions(instance: Arc<GatewayInstance>, stop: CancellationToken) {
    let mut changes = instance.sanctions.changes();
    let mut tracker = SanctionTracker::default();
    // There is no connection yet: the login checks the sanctions in force.
    drop(tracker.take_changes(&instance.sanctions));
    while stop.run_until_cancelled(changes.changed()).await.is_some_and(|alive| alive.is_ok()) {
        for change in tracker.take_changes(&instance.sanctions) {
            instance.enforce(&change);
        }
        tokio::time::sleep(COMPARE_INTERVAL).await;
    }
}

impl GatewayInstance {
    /// Applies a change to the connections of its user.
    fn enforce(&self, UserSanctionChange { app, room, user, change }: &UserSanctionChange) {
        let mut connections = self.connections();
        connections.retain(|c| c.identity.app == *app && c.identity.user == *user);
        if let Some(mute) = &change.mute {
            let notice = Arc::new(mute_notice(*app, *room, mute.as_ref()));
            connections.iter().for_each(|connection| connection.notice(&notice));
        }
        let reason = |taken: &Sanction| taken.reason.clone();
        let close = match (&change.banned, &change.kicked) {
            (Some(ban), _) => Some(CloseReason::Banned { reason: reason(ban) }),
            (None, Some(kick)) => Some(CloseReason::Kicked { reason: reason(kick) }),
            (None, None) => None,
        };
        if let Some(close) = close {
            let inside = connections.iter().filter(|c| room.is_none() || c.room() == *room);
            inside.for_each(|connection| connection.close(close.clone()));
        }
        if !connections.is_empty() {
            let connections = connections.len();
            info!(%app, ?room, %user, connections, ?change, "sanction enforced");
        }
    }

    /// Closes the connection of a user that was banned during the login: the ban was
    /// enforced before the connection was registered.
    pub(crate) fn close_if_banned(&self, connection: &Connection) {
        let identity = &connection.identity;
        if self.sanctions.is_banned(identity.app, connection.room(), identity.user) {
            connection.close(CloseReason::Banned { reason: String::new() });
        }
    }
}

fn mute_notice(app: AppId, room: Option<RoomId>, mute: Option<&Sanction>) -> EncodedMessage {
    let mut data = json!({
        "muted": mute.is_some(),
        "until": mute.and_then(|mute| mute.until_ms),
        "reason": mute.map(|mute| mute.reason.as_str()).unwrap_or_default(),
    });
    if let (Some(room), Some(fields)) = (room, data.as_object_mut()) {
        fields.insert("roomId".into(), room.get().into());
    }
    EncodedMessage::new(app, biz::MUTED, &data.to_string(), None)
}
