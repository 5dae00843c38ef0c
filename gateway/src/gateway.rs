//! The gateway: its listeners, and one incarnation after another.

pub(crate) mod inner;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::RwLock;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use qiyu_nats::{Bus, bucket::BucketError, chain, vitals::GatewayVitals};
use qiyu_presence::Gateways;
use qiyu_schema::event::DisconnectReason;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    close::CloseReason,
    config::Config,
    frame::Transport,
    gateway::inner::GatewayInner,
    instance::{
        GatewayInstance,
        tasks::{InstanceEnd, InstanceStartError, InstanceTasks},
    },
    metrics::Metrics,
    rate_limit::RateLimits,
    send::content::{ContentChecker, ContentError},
    text,
    wire::listen,
};

/// How long the reassignment of unacknowledged messages may take.
const REASSIGN_TIMEOUT: Duration = Duration::from_secs(3);
/// The interval at which a drain checks whether every connection has ended.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The pause after a failed start of an incarnation.
const START_BACKOFF: Duration = Duration::from_secs(1);

/// The gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("listen on {address} ({setting}); is something else using it?")]
    Bind {
        address: SocketAddr,
        /// The setting that the address came from.
        setting: &'static str,
        source: std::io::Error,
    },
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The leases of the other gateways could not be followed.
    #[error("follow the gateways")]
    Follow(#[source] BucketError),
    #[error("start an incarnation of the gateway")]
    Instance(#[source] InstanceStartError),
}

/// A running gateway.
pub struct Gateway {
    ws_addr: SocketAddr,
    tcp_addr: SocketAddr,
    inner: Arc<GatewayInner>,
    tasks: TaskTracker,
    accepting: CancellationToken,
}

impl Gateway {
    /// Binds the listeners, starts the first incarnation and announces it.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub async fn start(
        config: Config,
        bus: &Bus,
        registry: &mut Registry,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::with_labels(registry);
        let content = Arc::new(ContentChecker::new(config.content.clone(), metrics.clone())?);
        let ws = bind(config.ws_listen, "QIYU_WS_LISTEN").await?;
        let tcp = bind(config.tcp_listen, "QIYU_TCP_LISTEN").await?;
        let (ws_addr, tcp_addr) = (local_addr(&ws, &config), local_addr(&tcp, &config));
        let advertised = |setting: &Option<String>, bound: SocketAddr| {
            setting.clone().unwrap_or_else(|| bound.to_string())
        };
        let addresses = (
            advertised(&config.advertise_ws, ws_addr),
            advertised(&config.advertise_tcp, tcp_addr),
        );
        let tasks = TaskTracker::new();
        let gateways =
            Gateways::follow(bus, &tasks, stop.clone()).await.map_err(StartError::Follow)?;
        let inner = Arc::new(GatewayInner {
            rate_limits: Arc::new(RateLimits::new(&config, metrics.clone())),
            config: Arc::new(config),
            socket_tasks: TaskTracker::new(),
            bus: bus.clone(),
            gateways,
            metrics,
            content: Arc::clone(&content),
            addresses,
            current: RwLock::new(None),
            draining: CancellationToken::new(),
            finish: CancellationToken::new(),
        });
        let first = InstanceTasks::start(&inner).await.map_err(StartError::Instance)?;
        tasks.spawn(supervise(Arc::clone(&inner), first, stop.clone()));
        tasks.spawn(content.watch_words(stop.clone()));
        let accepting = stop.child_token();
        for (listener, transport) in [(ws, Transport::Ws), (tcp, Transport::Tcp)] {
            let accept = listen::accept(listener, transport, Arc::clone(&inner), accepting.clone());
            tasks.spawn(accept);
        }
        tasks.close();
        Ok(Self { ws_addr, tcp_addr, inner, tasks, accepting })
    }

    /// Returns the address that accepts WebSockets.
    pub fn ws_addr(&self) -> SocketAddr {
        self.ws_addr
    }

    /// Returns the address that accepts TCP connections.
    pub fn tcp_addr(&self) -> SocketAddr {
        self.tcp_addr
    }

    /// Returns whether new clients are accepted.
    ///
    /// # Errors
    ///
    /// The reason why they are not, as a text for operators.
    pub fn ready(&self) -> Result<(), String> {
        match self.inner.instance() {
            _ if self.inner.draining.is_cancelled() => Err(text::DRAINING.into()),
            None => Err(text::NOT_STARTED.into()),
            Some(instance) if instance.accepts_logins() => Ok(()),
            Some(_) => Err(text::SUSPENDED.into()),
        }
    }

    /// Returns the gateway's current numbers, as `qiyu top` shows them.
    pub fn vitals(&self) -> GatewayVitals {
        let (instance, m) = (self.inner.instance(), &self.inner.metrics);
        let value = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or(0);
        GatewayVitals {
            gateway: instance.map(|instance| instance.gateway.clone()),
            draining: self.inner.draining.is_cancelled(),
            connections: value(&m.connections),
            logins: m.logins.get(),
            accepted: m.accepted.get(),
            refused: m.refusals(),
            written: m.written.get(),
            resent: m.resent.get(),
            acknowledged: m.acknowledged.get(),
            given_up: m.given_up.get(),
            slow: m.ended.get_or_create(&DisconnectReason::Slow.into()).get(),
            queue_bytes: value(&m.queue_bytes),
            waiting: value(&m.outbox_waiting),
            pending: value(&m.envelopes_pending),
        }
    }

    /// Drains the gateway: accepts no new connections, closes the present ones
    /// and finishes the work in flight. Returns after the drain window at the
    /// latest.
    pub async fn drain(&self) {
        self.inner.draining.cancel();
        let Some(instance) = self.inner.instance() else { return };
        instance.draining.store(true, Ordering::Release);
        if let Some(registration) = instance.registration.lock().as_mut() {
            registration.update_lease(instance.connection_count() as u64, true);
        }
        let window = self.inner.config.drain_window;
        info!(connections = instance.connection_count(), ?window, "draining");
        instance.close_all(window, |retry_after| CloseReason::Draining { retry_after });
        let in_time = tokio::time::timeout(window, all_departed(&instance)).await.is_ok();
        // Until here new connections were refused with 503; from here on the port is closed.
        self.accepting.cancel();
        if !in_time {
            warn!(
                connections = instance.connection_count(),
                "drain window over with connections left"
            );
        }
        // Messages that are not reassigned in time are recovered from the queue.
        tokio::time::timeout(REASSIGN_TIMEOUT, instance.delivery.reassign_unacked()).await.ok();
        self.inner.finish.cancel();
    }

    /// Waits until every task of the gateway has ended.
    pub async fn stopped(self) {
        self.inner.finish.cancel();
        self.tasks.wait().await;
    }
}

/// Waits until every connection has ended and its departure is in the log.
async fn all_departed(instance: &GatewayInstance) {
    instance.tasks.close();
    while instance.connection_count() > 0 {
        tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
    }
    instance.tasks.wait().await;
}

async fn bind(address: SocketAddr, setting: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Bind { address, setting, source })
}

fn local_addr(listener: &TcpListener, config: &Config) -> SocketAddr {
    listener.local_addr().unwrap_or(config.ws_listen) // a bound socket has an address
}

/// Runs one incarnation after another, until asked to finish or to stop. When
/// no further incarnation can run, the process stops: its sockets would be of
/// no use.
async fn supervise(inner: Arc<GatewayInner>, first: InstanceTasks, stop: CancellationToken) {
    let _stop_process = stop.clone().drop_guard();
    let mut current = first;
    loop {
        let end = current.wait_for_end(&inner, &stop).await;
        *inner.current.write() = None;
        let superseded = end == InstanceEnd::Lost && current.is_superseded().await;
        current.end(end).await;
        if superseded {
            let id = &inner.config.id;
            error!(%id, "another process has begun under this gateway's id; give each its own QIYU_GATEWAY_ID");
            return;
        }
        if end != InstanceEnd::Lost {
            return;
        }
        let Some(next) = start_next(&inner, &stop).await else { return };
        current = next;
    }
}

/// Starts the next incarnation, with retries until `stop`.
async fn start_next(inner: &Arc<GatewayInner>, stop: &CancellationToken) -> Option<InstanceTasks> {
    loop {
        match InstanceTasks::start(inner).await {
            Ok(started) => return Some(started),
            Err(error) => error!(error = %chain(&error), "incarnation not started, trying again"),
        }
        stop.run_until_cancelled(tokio::time::sleep(START_BACKOFF)).await?;
    }
}
