//! One connection to NATS: opened with retries, watched, and shown in metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr,
    jetstream::{Context, ContextBuilder},
};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, warn};

use crate::{
    chain,
    config::BusConfig,
    metrics::{ConnectionLabel, Metrics, Purpose},
};

/// The connection to NATS could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("NATS address {url:?} is not a nats:// URL")]
    Url {
        /// Without user and password.
        url: String,
        source: std::io::Error,
    },
    /// The server lacks features that this system needs.
    #[error(
        "the NATS server at {url} is version {version}; qiyu needs 2.14 or newer, whose per-key \
         expiry and CAS rules its leases rely on"
    )]
    TooOld { url: String, version: String },
    #[error("the NATS server at {url} refuses the user and password of QIYU_NATS_URL")]
    Denied { url: String, source: async_nats::ConnectError },
    /// No server was reached within two minutes.
    #[error("the NATS server at {url} could not be reached")]
    Unreachable {
        url: String,
        /// The error of the last attempt.
        source: async_nats::ConnectError,
    },
}

/// Time one publish waits for its PubAck before it is repeated under the same id.
pub(crate) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);
/// PubAcks a process may await at once. 25,000 starved consumers of the same
/// server to a twentieth of their rate (nats.rs #1285); 1000 did not.
const PUBLISH_INFLIGHT_MAX: usize = 1_000;
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);
/// A half-open connection is closed at the third ping without a pong
/// (async-nats 0.51 `lib.rs`, `MAX_PENDING_PINGS`). A lease can then be renewed
/// through another server before its holder has to stop.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A server that accepts a connection and sends no greeting is frozen. The next
/// server is tried after this time.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// Processes may start in any order, so the first connection is tried for long.
pub(crate) const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_BACKOFF_MIN: Duration = Duration::from_millis(100);
const CONNECT_BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The user of `deploy/nats/users.conf` who may read everything and change
/// nothing. Deleting a consumer is a change, even of the reader's own consumer:
/// the server cannot tell it from the consumers of others.
const AUDITOR: &str = "auditor";

/// Opens a connection and retries until [`FIRST_CONNECT_TIMEOUT`]. Each
/// reconnect later on increments `reconnects`.
pub(crate) async fn open(
    config: &BusConfig,
    purpose: Purpose,
    reconnects: &Arc<watch::Sender<u64>>,
    metrics: &Metrics,
) -> Result<Client, ConnectError> {
    let addrs = addresses(config)?;
    let started = Instant::now();
    let mut pause = CONNECT_BACKOFF_MIN;
    loop {
        let url = redact_url(config.url.expose());
        let attempt = options(config, purpose, &addrs, reconnects, metrics).connect(&addrs).await;
        match attempt {
            Ok(client) => return Ok(client),
            Err(source)
                if matches!(
                    source.kind(),
                    ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation
                ) =>
            {
                return Err(ConnectError::Denied { url, source });
            }
            Err(source) if started.elapsed() > FIRST_CONNECT_TIMEOUT => {
                return Err(ConnectError::Unreachable { url, source });
            }
            Err(error) => {
                warn!(error = %chain(&error), %url, "NATS is not there yet, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(CONNECT_BACKOFF_MAX);
            }
        }
    }
}

fn options(
    config: &BusConfig,
    purpose: Purpose,
    addrs: &[ServerAddr],
    reconnects: &Arc<watch::Sender<u64>>,
    metrics: &Metrics,
) -> ConnectOptions {
    let (reconnects, metrics) = (Arc::clone(reconnects), metrics.clone());
    let was_lost = Arc::new(AtomicBool::new(false));
    credentials(addrs)
        .name(format!("{} {}", config.name, purpose.as_str()))
        .ping_interval(PING_INTERVAL)
        .connection_timeout(GREETING_TIMEOUT)
        .request_timeout(Some(CONTROL_TIMEOUT))
        .client_capacity(8192)
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis((50 * attempts as u64).min(1_000))
        })
        .event_callback(move |event| {
            handle_event(event, purpose, &was_lost, &reconnects, &metrics);
            std::future::ready(())
        })
}

fn handle_event(
    event: Event,
    purpose: Purpose,
    was_lost: &AtomicBool,
    reconnects: &watch::Sender<u64>,
    metrics: &Metrics,
) {
    let label = ConnectionLabel::from(purpose);
    let purpose = purpose.as_str();
    match event {
        Event::Disconnected => {
            was_lost.store(true, Ordering::Relaxed);
            warn!(%purpose, "disconnected from NATS");
            metrics.disconnects.get_or_create(&label).inc();
        }
        Event::Connected => {
            info!(%purpose, "NATS connection is up");
            // The event of the first connection may come late, when a reader is
            // already open. No reader has lost anything then.
            if was_lost.swap(false, Ordering::Relaxed) {
                reconnects.send_modify(|count| *count += 1);
            }
        }
        Event::SlowConsumer(sid) => {
            metrics.dropped.inc();
            warn!(%purpose, sid, "NATS messages dropped: reader too slow");
        }
        other => debug!(%purpose, event = %other, "NATS event"),
    }
}

/// Returns the JetStream context of a connection.
pub(crate) fn context(client: Client) -> Context {
    ContextBuilder::new()
        .timeout(CONTROL_TIMEOUT)
        .ack_timeout(PUBLISH_TIMEOUT)
        .max_ack_inflight(PUBLISH_INFLIGHT_MAX)
        .build(client)
}

/// Whether the configured user may change nothing, not even its own consumers.
pub(crate) fn is_auditor(config: &BusConfig) -> bool {
    login(&addresses(config).unwrap_or_default()).is_some_and(|(user, _)| user == AUDITOR)
}

fn addresses(config: &BusConfig) -> Result<Vec<ServerAddr>, ConnectError> {
    let urls = config.url.expose().split(',');
    let parsed = urls.map(|url| url.trim().parse::<ServerAddr>()).collect::<Result<_, _>>();
    parsed.map_err(|source| ConnectError::Url { url: redact_url(config.url.expose()), source })
}

/// Returns the user and password of the URL, which async-nats ignores.
fn login(addrs: &[ServerAddr]) -> Option<(String, String)> {
    addrs.iter().find_map(|addr| Some((addr.username()?.to_owned(), addr.password()?.to_owned())))
}

fn credentials(addrs: &[ServerAddr]) -> ConnectOptions {
    let Some((user, password)) = login(addrs) else { return ConnectOptions::new() };
    let prefix = inbox_prefix(&user);
    let options = ConnectOptions::with_user_and_password(user, password);
    match prefix {
        Some(prefix) => options.custom_inbox_prefix(prefix),
        None => options,
    }
}

/// Returns the subject prefix of responses to a user. Each user has its own, so
/// that permissions can keep one user from reading another's responses. `None`:
/// the name cannot be part of a subject, and the common prefix is used.
fn inbox_prefix(user: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (!user.is_empty() && user.chars().all(plain)).then(|| format!("_INBOX.{user}"))
}

/// Returns URLs, separated by commas, without user and password, for logs and errors.
pub fn redact_url(urls: &str) -> String {
    urls.split(',').map(qiyu_runtime::url::redact_url).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_to_a_user_have_a_prefix_of_their_own() {
        assert_eq!(inbox_prefix("gateway").as_deref(), Some("_INBOX.gateway"));
        for no_part_of_a_subject in ["", "a.b", "*", ">", "a b", "ä"] {
            assert_eq!(inbox_prefix(no_part_of_a_subject), None);
        }
    }

    #[test]
    fn a_redacted_url_has_no_password() {
        assert_eq!(redact_url("nats://u:p@h:4222"), "nats://h:4222");
        assert_eq!(redact_url("nats://h:1,u:p@g:2"), "nats://h:1,g:2");
    }
}
