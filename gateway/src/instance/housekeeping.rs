//! The periodic work of a gateway incarnation: announcements, likes, suspension,
//! gauges, session refreshes.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use qiyu_nats::{chain, outbox::Backlog};
use qiyu_presence::SessionPolicy;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{close::CloseReason, instance::GatewayInstance};

/// How long a suspended incarnation keeps its sockets: longer than any election.
/// After that its clients are better served by another gateway.
const SUSPENDED_MAX: Duration = Duration::from_secs(30);
/// The window over which clients come back after an unplanned close.
pub(crate) const UNPLANNED_CLOSE_WINDOW: Duration = Duration::from_secs(2);
/// The interval at which sessions are written again to presence, where they
/// expire after 15 minutes.
const SESSION_REFRESH_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// The interval at which the own queue is measured, in seconds. Each
/// measurement is a request to NATS.
const BACKLOG_INTERVAL_SECONDS: u64 = 5;

/// Runs the periodic work until `stop`.
pub(crate) async fn run_housekeeping(instance: Arc<GatewayInstance>, stop: CancellationToken) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut second, mut refreshed_at) = (0, Instant::now());
    let mut suspended_since: Option<Instant> = None;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        second += 1;
        if let Some(registration) = instance.registration.lock().as_mut() {
            let draining = instance.draining.load(Ordering::Acquire);
            registration.update_lease(instance.connection_count() as u64, draining);
        }
        if instance.may_act() {
            suspended_since = None;
            // Not awaited: the other work must not wait for the end of an outage.
            let appending = Arc::clone(&instance);
            instance.tasks.spawn(async move {
                appending.likes.append(&appending.bus, &appending.gateway, second).await;
            });
        } else {
            let since = *suspended_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= SUSPENDED_MAX {
                warn!(gateway = %instance.gateway, "suspended for too long, closing connections");
                instance.close_all(UNPLANNED_CLOSE_WINDOW, |retry_after| CloseReason::Suspended {
                    retry_after,
                });
                suspended_since = Some(Instant::now()); // later logins get as long again
            }
        }
        set_gauges(&instance);
        if second % BACKLOG_INTERVAL_SECONDS == 0 {
            instance.tasks.spawn(measure_backlog(Arc::clone(&instance)));
        }
        if refreshed_at.elapsed() >= SESSION_REFRESH_INTERVAL {
            refreshed_at = Instant::now();
            instance.tasks.spawn(refresh_sessions(Arc::clone(&instance)));
        }
    }
}

/// Sets the gauges that are sampled, because counting them would cost every message.
fn set_gauges(instance: &GatewayInstance) {
    let (mut total, mut most) = (0, 0);
    for connection in instance.connections() {
        let bytes = connection.queued_bytes();
        (total, most) = (total + bytes, most.max(bytes));
    }
    let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    instance.metrics.queue_bytes.set(gauge(total));
    instance.metrics.queue_bytes_max.set(gauge(most));
    instance.metrics.brakes_on.set(gauge(instance.backpressure.count_active()));
}

/// Measures the own queue. If NATS does not answer, the last values stay.
async fn measure_backlog(instance: Arc<GatewayInstance>) {
    match instance.bus.backlog(&instance.gateway).await {
        Ok(Backlog { waiting, unacknowledged }) => {
            let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            instance.metrics.outbox_waiting.set(gauge(waiting));
            instance.metrics.outbox_unacknowledged.set(gauge(unacknowledged));
        }
        Err(error) => debug!(error = %chain(&error), "own queue not measured"),
    }
}

/// Writes every session again, one after the other, before its entry expires.
async fn refresh_sessions(instance: Arc<GatewayInstance>) {
    for connection in instance.connections() {
        let session = instance.session(&connection, connection.room());
        let (app, user) = (connection.identity.app, connection.identity.user);
        let written = instance.sessions.add(app, user, &session, SessionPolicy::Allow).await;
        if let Err(error) = written {
            warn!(%user, error = %chain(&error), "session not refreshed");
        }
        // The connection may have ended since the list was made. Then its session
        // was just written again, and is removed again.
        if instance.connection(connection.id).is_none()
            && let Err(error) = instance.sessions.remove(app, user, &session).await
        {
            warn!(%user, error = %chain(&error), "session of an ended connection not removed");
        }
    }
}
