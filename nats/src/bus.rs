//! The bus: one connection to NATS per kind of traffic.
//!
//! An async-nats client is one task that reads and then writes, so bulk traffic
//! delays everything else on its connection. Appends, pulls, and control
//! (buckets, commands, stream management) therefore have a connection each, and
//! every lease has one more.

use std::{sync::Arc, time::Duration};

use async_nats::{connection::State, jetstream::Context};
use bytes::Bytes;
use opentelemetry::global::BoxedTracer;
use tokio::sync::watch;
use tracing::{debug, info};

use crate::{
    bucket::Bucket,
    chain,
    config::BusConfig,
    connection::{self, ConnectError, context},
    metrics::{Metrics, Purpose},
    stream::{self, BucketName, ProvisionError},
};

pub use crate::connection::redact_url;

/// Streams are created with retries for this long while a cluster is starting.
const PROVISION_TIMEOUT: Duration = Duration::from_secs(120);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// While disconnected, the client's channel fills and a publish would wait without end.
const FORGET_TIMEOUT: Duration = Duration::from_millis(100);

/// The end of a reader's consumer when its reading is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsumerCleanup {
    /// The reader deletes it at once.
    Delete,
    /// The server removes it after seconds of inactivity.
    Expire,
}

/// The connections of one process to NATS. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    pub(crate) publish: Context,
    pub(crate) consume: Context,
    pub(crate) control: Context,
    pub(crate) cleanup: ConsumerCleanup,
    config: Arc<BusConfig>,
    /// Count of reconnects of all connections but those of leases.
    reconnects: watch::Receiver<u64>,
    pub(crate) metrics: Metrics,
    /// `None`: messages carry no trace context.
    pub(crate) tracer: Option<Arc<BoxedTracer>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bus({})", self.config.name)
    }
}

impl Bus {
    /// Connects, with retries for two minutes: NATS may start later than this process.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; a server older than 2.14 is refused at once.
    pub async fn connect(config: &BusConfig) -> Result<Self, ConnectError> {
        let (reconnected, reconnects) = watch::channel(0);
        let reconnected = Arc::new(reconnected);
        let metrics = Metrics::default();
        let open = |purpose| connection::open(config, purpose, &reconnected, &metrics);
        let publish = open(Purpose::Publish).await?;
        let version = publish.server_info().version;
        let url = redact_url(config.url.expose());
        if !publish.is_server_compatible(2, 14, 0) {
            return Err(ConnectError::TooOld { url, version });
        }
        let consume = open(Purpose::Consume).await?;
        let control = open(Purpose::Control).await?;
        info!(server = %version, %url, "connected to NATS");
        let cleanup = match connection::is_auditor(config) {
            true => ConsumerCleanup::Expire,
            false => ConsumerCleanup::Delete,
        };
        Ok(Self {
            publish: context(publish),
            consume: context(consume),
            control: context(control),
            cleanup,
            config: Arc::new(config.clone()),
            reconnects,
            metrics,
            tracer: None,
        })
    }

    /// Opens a further connection for a lease, whose renewals must not wait
    /// behind other traffic.
    pub(crate) async fn connect_lease(&self) -> Result<Context, ConnectError> {
        let ignored = Arc::new(watch::channel(0).0);
        let client = connection::open(&self.config, Purpose::Lease, &ignored, &self.metrics);
        Ok(context(client.await?))
    }

    /// Returns a receiver that changes when a lost connection is back. Data that
    /// a server held in memory, or had not yet written to disk, may then be gone.
    pub fn reconnects(&self) -> watch::Receiver<u64> {
        let mut reconnects = self.reconnects.clone();
        reconnects.mark_unchanged();
        reconnects
    }

    /// Returns the settings this bus was connected with.
    pub fn config(&self) -> &BusConfig {
        &self.config
    }

    /// Creates every stream and bucket, or updates existing ones to today's
    /// settings. Returns once each of them responds.
    ///
    /// It retries for two minutes, because a cluster that has just started has
    /// no leader and too few servers.
    ///
    /// # Errors
    ///
    /// [`ProvisionError`] names the first one that NATS refused.
    pub async fn provision(&self) -> Result<(), ProvisionError> {
        stream::provision(&self.control, &self.config, PROVISION_TIMEOUT).await?;
        self.wait_until_provisioned().await;
        Ok(())
    }

    /// Waits without limit until every stream and bucket responds. Another
    /// process creates them, perhaps later.
    pub async fn wait_until_provisioned(&self) {
        stream::wait_until_provisioned(&self.control, &self.config).await;
    }

    /// Whether all connections but those of leases are up.
    pub fn is_connected(&self) -> bool {
        self.connections().all(|(_, up)| up)
    }

    /// Returns whether each connection but those of leases is up.
    pub(crate) fn connections(&self) -> impl Iterator<Item = (Purpose, bool)> {
        let all = [
            (Purpose::Publish, &self.publish),
            (Purpose::Consume, &self.consume),
            (Purpose::Control, &self.control),
        ];
        let is_up = |js: &Context| js.client().connection_state() == State::Connected;
        all.into_iter().map(move |(purpose, js)| (purpose, is_up(js)))
    }

    /// Returns a bucket on the control connection.
    pub fn bucket(&self, name: BucketName) -> Bucket {
        Bucket::new(self.control.clone(), name, Some(self.reconnects()))
    }

    /// Publishes outside JetStream. The message may be lost.
    pub(crate) async fn publish_and_forget(&self, subject: String, payload: Bytes) {
        let client = self.publish.client();
        let sent = client.publish(subject, payload);
        match tokio::time::timeout(FORGET_TIMEOUT, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(error = %chain(&error), "notice lost"),
            Err(_) => debug!("notice lost: the connection is busy"),
        }
    }

    /// Flushes every connection, then disconnects.
    pub async fn close(&self) {
        for js in [&self.publish, &self.consume, &self.control] {
            let flushed = tokio::time::timeout(CLOSE_TIMEOUT, js.client().flush()).await;
            if !matches!(flushed, Ok(Ok(()))) {
                debug!("NATS connection closed unflushed");
            }
            js.client().drain().await.ok();
        }
    }
}
