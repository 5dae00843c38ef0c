//! The connections to NATS, one per kind of traffic.
//!
//! An async-nats client is one task that reads, then writes: bulk traffic on
//! it delays everything else. So appends, pulls, and control (buckets,
//! requests, stream management) each have a client, and leases one more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr,
    connection::State,
    jetstream::{self, Context, ContextBuilder, context::PublishErrorKind},
};
use bytes::Bytes;
use opentelemetry::global::BoxedTracer;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::{
    bucket::Bucket,
    chain,
    metrics::{ConnectionLabel, Metrics, Purpose},
    notice::Notices,
    stream::{self, BucketName, ProvisionError},
};
use qiyu_schema::{id::Incarnation, secret::Secret, subject};

/// What survives what; see ARCHITECTURE.md, "What is promised".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Confirmed means written to the OS: survives any process, not a power cut.
    Default,
    /// Confirmed means on disk.
    Durable,
}

/// How to reach the bus, and what its streams must be.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// `nats://…`, several separated by commas; may carry user and password.
    pub url: Secret,
    /// Shown by NATS beside each connection.
    pub name: String,
    /// Copies of each stream and bucket: 1, 3 or 5.
    pub replicas: usize,
    /// How long the log is kept.
    pub retain: Duration,
    /// How long an envelope may stay unacknowledged before it is delivered again.
    pub ack_wait: Duration,
    /// What a confirmation means.
    pub profile: Profile,
}

/// The bus could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be one.
    #[error("NATS address {url:?} is not a nats:// URL")]
    Url {
        /// As given, without user and password.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// The server is too old for what this system builds on.
    #[error(
        "the NATS server at {url} is version {version}; qiyu needs 2.14 or newer, whose per-key \
         expiry and CAS rules its leases rely on"
    )]
    TooOld {
        /// Where.
        url: String,
        /// What it says of itself.
        version: String,
    },
    /// It does not know us.
    #[error("the NATS server at {url} refuses the user and password of QIYU_NATS_URL")]
    Denied {
        /// Where.
        url: String,
        /// Its words.
        source: async_nats::ConnectError,
    },
    /// It was never reached before the process was told to stop.
    #[error("the NATS server at {url} could not be reached")]
    Unreachable {
        /// Where.
        url: String,
        /// The last attempt's fault.
        source: async_nats::ConnectError,
    },
}

/// How long one publish may wait for its PubAck before it is tried again under the same id.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);
/// PubAcks a process may await at once. 25,000 starved consumers of the same
/// server to a twentieth of their rate (nats.rs #1285); 1000 did not.
const PUBLISH_INFLIGHT_MAX: usize = 1_000;
/// How long a request to the control plane may take.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);
/// A half-open connection is noticed with the third of these that is not
/// answered (async-nats 0.51 `lib.rs`, `MAX_PENDING_PINGS`), so that a lease
/// can be renewed through another server before its holder has to stop.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A server that takes a connection and says nothing is frozen: the next one's turn.
const GREETING_PATIENCE: Duration = Duration::from_secs(2);
/// First connection: how long to keep trying. Processes may start in any order.
const FIRST_CONNECT_PATIENCE: Duration = Duration::from_secs(120);

/// How long streams are tried to be made while the bus says "not now".
const PROVISION_PATIENCE: Duration = Duration::from_secs(120);

/// The user of `deploy/nats/users.conf` who may read everything and change
/// nothing. To delete a consumer is to change something, its own one included:
/// the server cannot tell it from everybody else's.
const AUDITOR: &str = "auditor";

/// What becomes of a reader's consumer when it has read what it wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parting {
    /// It is deleted at once.
    Deleted,
    /// It ends by its silence, after seconds.
    Left,
}

impl Parting {
    fn of(config: &BusConfig) -> Self {
        let addrs = addresses(config).unwrap_or_default();
        match login(&addrs) {
            Some((user, _)) if user == AUDITOR => Self::Left,
            _ => Self::Deleted,
        }
    }
}

/// The bus. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    pub(crate) publish: Context,
    pub(crate) consume: Context,
    pub(crate) control: Context,
    pub(crate) parting: Parting,
    config: Arc<BusConfig>,
    /// Counts connections made; moves when any of them comes back.
    connected: watch::Receiver<u64>,
    pub(crate) metrics: Metrics,
    /// `None`: messages leave no trail.
    pub(crate) tracer: Option<Arc<BoxedTracer>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bus({})", self.config.name)
    }
}

impl Bus {
    /// Connects, and keeps trying for two minutes: the bus may start later than we.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; a server under 2.14 is refused at once.
    pub async fn connect(config: &BusConfig) -> Result<Self, ConnectError> {
        let url = redact_url(config.url.expose());
        let (connected_tx, connected) = watch::channel(0);
        let connected_tx = Arc::new(connected_tx);
        let metrics = Metrics::default();
        let client = |purpose| client(config, purpose, &connected_tx, &metrics);
        let publish = client(Purpose::Publish).await?;
        let version = publish.server_info().version;
        if !publish.is_server_compatible(2, 14, 0) {
            return Err(ConnectError::TooOld { url, version });
        }
        let consume = client(Purpose::Consume).await?;
        let control = client(Purpose::Control).await?;
        info!(server = %version, %url, "connected to NATS");
        Ok(Self {
            publish: context(publish),
            consume: context(consume),
            control: context(control),
            parting: Parting::of(config),
            config: Arc::new(config.clone()),
            connected,
            metrics,
            tracer: None,
        })
    }

    /// A further connection for leases, which must not wait behind anything.
    pub(crate) async fn dedicated(&self) -> Result<Context, ConnectError> {
        let unheard = Arc::new(watch::channel(0).0);
        Ok(context(client(&self.config, Purpose::Lease, &unheard, &self.metrics).await?))
    }

    /// Wakes when a connection that was lost is back: whatever a server keeps
    /// in memory for us, or has not written to its disk, may be gone with the old one.
    pub fn reconnects(&self) -> watch::Receiver<u64> {
        let mut connected = self.connected.clone();
        connected.mark_unchanged();
        connected
    }

    /// The settings it was made with.
    pub fn config(&self) -> &BusConfig {
        &self.config
    }

    /// Makes every stream and bucket, or brings those that exist to today's
    /// settings; tries for two minutes, because a cluster that has just
    /// started has no leader and too few servers. Returns once each answers.
    ///
    /// # Errors
    ///
    /// [`ProvisionError`] names the first that NATS refused.
    pub async fn provision(&self) -> Result<(), ProvisionError> {
        stream::provision(&self.control, &self.config, PROVISION_PATIENCE).await?;
        self.wait_until_provisioned().await;
        Ok(())
    }

    /// Waits until every stream and bucket answers, for as long as it takes:
    /// somebody else makes them, perhaps later.
    pub async fn wait_until_provisioned(&self) {
        stream::provisioned(&self.control, &self.config).await;
    }

    /// Whether all connections are up, as far as they know.
    pub fn is_connected(&self) -> bool {
        self.connections().all(|(_, up)| up)
    }

    /// Whether each connection but those for leases is up.
    pub(crate) fn connections(&self) -> impl Iterator<Item = (Purpose, bool)> {
        let all = [
            (Purpose::Publish, &self.publish),
            (Purpose::Consume, &self.consume),
            (Purpose::Control, &self.control),
        ];
        let is_up = |js: &Context| js.client().connection_state() == State::Connected;
        all.into_iter().map(move |(purpose, js)| (purpose, is_up(js)))
    }

    /// A bucket, on the control connection.
    pub fn bucket(&self, name: BucketName) -> Bucket {
        Bucket::new(self.control.clone(), name, Some(self.reconnects()))
    }

    /// Listens to the notices for one gateway incarnation.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn notices(
        &self,
        gateway: &Incarnation,
    ) -> Result<Notices, async_nats::SubscribeError> {
        Ok(Notices(self.consume.client().subscribe(subject::notices(gateway)).await?))
    }

    /// Publishes outside JetStream and forgets about it.
    pub(crate) async fn publish_and_forget(&self, subject: String, payload: Bytes) {
        // While disconnected the client's channel fills and publish would wait without end.
        let client = self.publish.client();
        let sent = client.publish(subject, payload);
        match tokio::time::timeout(Duration::from_millis(100), sent).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(error = %chain(&error), "notice lost"),
            Err(_) => debug!("notice lost: the connection is busy"),
        }
    }

    /// Lets what was written reach the server, then disconnects.
    pub async fn close(&self) {
        for js in [&self.publish, &self.consume, &self.control] {
            let flushed = tokio::time::timeout(Duration::from_secs(2), js.client().flush()).await;
            if !matches!(flushed, Ok(Ok(()))) {
                debug!("NATS connection closed unflushed");
            }
            js.client().drain().await.ok();
        }
    }
}

async fn client(
    config: &BusConfig,
    purpose: Purpose,
    connected: &Arc<watch::Sender<u64>>,
    metrics: &Metrics,
) -> Result<Client, ConnectError> {
    let addrs = addresses(config)?;
    let started = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let name = format!("{} {}", config.name, purpose.as_str());
        let (connected, metrics) = (Arc::clone(connected), metrics.clone());
        let lost = Arc::new(AtomicBool::new(false));
        let attempt = credentials(&addrs)
            .name(name)
            .ping_interval(PING_INTERVAL)
            .connection_timeout(GREETING_PATIENCE)
            .request_timeout(Some(CONTROL_TIMEOUT))
            .client_capacity(8192)
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis((50 * attempts as u64).min(1_000))
            })
            .event_callback(move |event| {
                let (connected, metrics) = (Arc::clone(&connected), metrics.clone());
                let lost = Arc::clone(&lost);
                let label = ConnectionLabel::from(purpose);
                let purpose = purpose.as_str();
                async move {
                    match event {
                        Event::Disconnected => {
                            lost.store(true, Ordering::Relaxed);
                            warn!(%purpose, "disconnected from NATS");
                            metrics.disconnects.get_or_create(&label).inc();
                        }
                        Event::Connected => {
                            info!(%purpose, "NATS connection is up");
                            // The first one is told late, when a reader may be open
                            // already: nothing was lost with it.
                            if lost.swap(false, Ordering::Relaxed) {
                                connected.send_modify(|connections| *connections += 1);
                            }
                        }
                        Event::SlowConsumer(sid) => {
                            metrics.dropped.inc();
                            warn!(%purpose, sid, "NATS messages dropped: reader too slow");
                        }
                        other => debug!(%purpose, event = %other, "NATS event"),
                    }
                }
            })
            .connect(&addrs)
            .await;
        match attempt {
            Ok(client) => return Ok(client),
            Err(source)
                if matches!(
                    source.kind(),
                    ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation
                ) =>
            {
                return Err(ConnectError::Denied { url: redact_url(config.url.expose()), source });
            }
            Err(source) if FIRST_CONNECT_PATIENCE < started.elapsed() => {
                return Err(ConnectError::Unreachable {
                    url: redact_url(config.url.expose()),
                    source,
                });
            }
            Err(error) => {
                warn!(error = %chain(&error), url = %redact_url(config.url.expose()), "NATS is not there yet, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
}

fn addresses(config: &BusConfig) -> Result<Vec<ServerAddr>, ConnectError> {
    let urls = config.url.expose().split(',');
    let parsed = urls.map(|url| url.trim().parse::<ServerAddr>()).collect::<Result<_, _>>();
    parsed.map_err(|source| ConnectError::Url { url: redact_url(config.url.expose()), source })
}

/// The user and password of the URL, which async-nats does not look at.
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

/// Where a user's answers arrive: a place of its own, so that permissions can
/// keep one user from reading what is answered to another. `None`: the name
/// cannot be part of a subject, and answers come where everybody's do.
fn inbox_prefix(user: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (!user.is_empty() && user.chars().all(plain)).then(|| format!("_INBOX.{user}"))
}

fn context(client: Client) -> Context {
    ContextBuilder::new()
        .timeout(CONTROL_TIMEOUT)
        .ack_timeout(PUBLISH_TIMEOUT)
        .max_ack_inflight(PUBLISH_INFLIGHT_MAX)
        .build(client)
}

/// A URL without user and password, for people to see.
pub fn redact_url(url: &str) -> String {
    url.split(',')
        .map(|one| match (one.find("://"), one.rfind('@')) {
            (Some(scheme), Some(at)) => format!("{}{}", &one[..scheme + 3], &one[at + 1..]),
            (None, Some(at)) => one[at + 1..].to_owned(),
            _ => one.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

/// Whether a failed publish may succeed when tried again under the same id.
/// `StreamNotFound` is what a 503 during an election looks like.
pub(crate) fn is_transient(
    kind: PublishErrorKind,
    error: &jetstream::context::PublishError,
) -> bool {
    match kind {
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending => true,
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::MaxPayloadExceeded => false,
        // A retry whose first copy is still being proposed is answered 10158 on R3.
        PublishErrorKind::Other => {
            !matches!(error_code(error), Some(SUBJECT_FULL | MESSAGE_TOO_LARGE))
        }
    }
}

/// `message size exceeds maximum allowed` by the stream.
const MESSAGE_TOO_LARGE: u64 = 10054;

/// `maximum messages per subject exceeded`: with discard New, the queue of one gateway is full.
pub(crate) const SUBJECT_FULL: u64 = 10077;

/// `wrong last sequence`, where a cluster does not say which one it is.
pub(crate) const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10164;

/// The JetStream error code behind a failed publish, if the server gave one.
pub(crate) fn error_code(error: &jetstream::context::PublishError) -> Option<u64> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<jetstream::Error>().map(|e| e.error_code().0)
}

#[cfg(test)]
mod tests {
    use super::{inbox_prefix, redact_url};

    #[test]
    fn answers_to_a_user_have_a_place_of_their_own() {
        assert_eq!(inbox_prefix("gateway").as_deref(), Some("_INBOX.gateway"));
        for no_part_of_a_subject in ["", "a.b", "*", ">", "a b", "ä"] {
            assert_eq!(inbox_prefix(no_part_of_a_subject), None);
        }
    }

    #[test]
    fn a_shown_url_has_no_password() {
        assert_eq!(redact_url("nats://u:p@h:4222"), "nats://h:4222");
        assert_eq!(redact_url("nats://h:1,u:p@g:2"), "nats://h:1,g:2");
    }
}
