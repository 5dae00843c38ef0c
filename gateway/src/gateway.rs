//! A gateway: its listeners, and one life after another.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::RwLock;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use qiyu_nats::{
    Bus,
    bucket::BucketError,
    chain,
    lag::Lags,
    outbox::{Backlog, OutboxError},
    service::Refusal,
    stream::BucketName,
    vitals::GatewayVitals,
};
use qiyu_presence::{BeginError, Gateways, Life, Policy, Sessions};
use qiyu_schema::{
    command::{EndRoom, ReplaceSession},
    event::Ending,
    subject,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use crate::{
    config::Config,
    delivery::connection::Close,
    delivery::in_flight::{Desk, Terms},
    delivery::outcomes,
    delivery::{DeliveryTask, Dispatcher, ORDERS_MAX, Order},
    frame::Wire,
    metrics::Metrics,
    rate_limit::Limits,
    send::content::{Content, ContentError},
    send::sanctions::{self, Measures},
    session::membership::Membership,
    session::registry::{Parts, Serving},
    wire::listen,
};

/// How long a life that is not renewed keeps its sockets: longer than any
/// election. Then its clients are better off elsewhere.
const SUSPENDED_MAX: Duration = Duration::from_secs(30);
/// Over how long clients are sent away when a life ends by surprise.
const SURPRISE_WINDOW: Duration = Duration::from_secs(2);
/// How often sessions are written anew in presence; their entries last 15 minutes.
const REFRESH_EVERY: Duration = Duration::from_secs(5 * 60);
/// How often the own queue is measured, in seconds: a question to NATS each time.
const BACKLOG_LOOK_SECONDS: u64 = 5;
/// How long the handing on of what was not acknowledged may take.
const HAND_ON_PATIENCE: Duration = Duration::from_secs(3);
/// How often a draining gateway looks whether everybody is gone.
const QUIET_LOOK: Duration = Duration::from_millis(10);
/// After a life could not begin.
const BEGIN_RETRY: Duration = Duration::from_secs(1);

/// The gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("listen on {address} ({setting}); is something else using it?")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The setting it came from.
        setting: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Content cannot be checked as configured.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The other gateways cannot be seen.
    #[error("follow the gateways")]
    Follow(#[source] BucketError),
    /// Its first life could not begin.
    #[error("begin the gateway's life")]
    Begin(#[source] LifeError),
}

/// A life of the gateway could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    /// Not registered or not announced.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// Its queue could not be opened.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// Measures against users could not be followed.
    #[error("follow measures")]
    Measures(#[source] BucketError),
    /// Its notices or commands could not be listened to.
    #[error("listen to the bus")]
    Listen(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A running gateway.
pub struct Gateway {
    ws_addr: SocketAddr,
    tcp_addr: SocketAddr,
    shared: Arc<Shared>,
    lives: TaskTracker,
    accepting: CancellationToken,
}

/// What outlives a life.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    limits: Arc<Limits>,
    /// Sockets.
    pub(crate) tasks: TaskTracker,
    bus: Bus,
    gateways: Gateways,
    metrics: Metrics,
    content: Arc<Content>,
    addresses: (String, String),
    current: RwLock<Option<Arc<Serving>>>,
    /// No new clients any more.
    pub(crate) draining: CancellationToken,
    /// Asks the life to end in good order.
    finish: CancellationToken,
}

impl Shared {
    /// The life of now, if there is one.
    pub(crate) fn serving(&self) -> Option<Arc<Serving>> {
        self.current.read().clone()
    }
}

impl Gateway {
    /// Listens, begins its first life and announces it.
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
        let metrics = Metrics::register(registry);
        let content = Arc::new(Content::new(config.content.clone(), metrics.clone())?);
        let ws = bind(config.ws_listen, "QIYU_WS_LISTEN").await?;
        let tcp = bind(config.tcp_listen, "QIYU_TCP_LISTEN").await?;
        let (ws_addr, tcp_addr) = (local_addr(&ws, &config), local_addr(&tcp, &config));
        let advertised = |named: &Option<String>, bound: SocketAddr| {
            named.clone().unwrap_or_else(|| bound.to_string())
        };
        let addresses = (
            advertised(&config.advertise_ws, ws_addr),
            advertised(&config.advertise_tcp, tcp_addr),
        );
        let lives = TaskTracker::new();
        let gateways =
            Gateways::follow(bus, &lives, stop.clone()).await.map_err(StartError::Follow)?;
        let limits = Arc::new(Limits::new(&config, metrics.clone()));
        let shared = Arc::new(Shared {
            config: Arc::new(config),
            limits,
            tasks: TaskTracker::new(),
            bus: bus.clone(),
            gateways,
            metrics,
            content: Arc::clone(&content),
            addresses,
            current: RwLock::new(None),
            draining: CancellationToken::new(),
            finish: CancellationToken::new(),
        });
        let first = LifeSpan::begin(&shared).await.map_err(StartError::Begin)?;
        let alarm = stop.clone();
        let supervised = Arc::clone(&shared);
        lives.spawn(async move {
            let _alarm = alarm.clone().drop_guard(); // sockets without a life behind them are no use
            live(&supervised, first, alarm).await;
        });
        lives.spawn(content.keep_fresh(stop.clone()));
        let accepting = stop.child_token();
        for (listener, wire) in [(ws, Wire::Ws), (tcp, Wire::Tcp)] {
            lives.spawn(listen::accept(listener, wire, Arc::clone(&shared), accepting.clone()));
        }
        lives.close();
        Ok(Self { ws_addr, tcp_addr, shared, lives, accepting })
    }

    /// Where WebSockets are accepted.
    pub fn ws_addr(&self) -> SocketAddr {
        self.ws_addr
    }

    /// Where TCP connections are accepted.
    pub fn tcp_addr(&self) -> SocketAddr {
        self.tcp_addr
    }

    /// Whether new clients are welcome.
    ///
    /// # Errors
    ///
    /// The reason why not, for people.
    pub fn ready(&self) -> Result<(), String> {
        match self.shared.serving() {
            _ if self.shared.draining.is_cancelled() => Err("draining".into()),
            None => Err("no life has begun".into()),
            Some(serving) if serving.takes_logins() => Ok(()),
            Some(_) => Err("suspended: the lease is not renewed".into()),
        }
    }

    /// How it is, for those who look.
    pub fn vitals(&self) -> GatewayVitals {
        let (serving, m) = (self.shared.serving(), &self.shared.metrics);
        let gauge = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or(0);
        GatewayVitals {
            gateway: serving.map(|serving| serving.gateway.clone()),
            draining: self.shared.draining.is_cancelled(),
            connections: gauge(&m.connections),
            logins: m.logins.get(),
            accepted: m.accepted.get(),
            refused: m.refused_in_all.get(),
            written: m.written.get(),
            resent: m.resent.get(),
            acknowledged: m.acknowledged.get(),
            given_up: m.given_up.get(),
            slow: m.ended.get_or_create(&Ending::Slow.into()).get(),
            queue_bytes: gauge(&m.queue_bytes),
            waiting: gauge(&m.outbox_waiting),
            pending: gauge(&m.envelopes_pending),
        }
    }

    /// Takes no new connections, sends the present ones away and finishes what is under way.
    /// Returns after the drain window at the latest.
    pub async fn drain(&self) {
        self.shared.draining.cancel();
        let Some(serving) = self.shared.serving() else { return };
        serving.draining.store(true, Ordering::Release);
        if let Some(life) = serving.life.lock().as_mut() {
            life.says(serving.count() as u64, true);
        }
        let window = self.shared.config.drain_window;
        info!(connections = serving.count(), ?window, "draining");
        serving.close_all(window, |delay| {
            let reason = format!("retry_ms={}", delay.as_millis());
            Close::new(Ending::Drained, 1012, reason).saying("draining")
        });
        serving.tasks.close();
        let quiet = async {
            while 0 < serving.count() {
                tokio::time::sleep(QUIET_LOOK).await; // every client is gone
            }
            serving.tasks.wait().await; // and every departure is in the log
        };
        let in_time = tokio::time::timeout(window, quiet).await.is_ok();
        // Until here whoever knocked was told 503; those who knock now find nobody.
        self.accepting.cancel();
        if !in_time {
            warn!(connections = serving.count(), "drain window over with connections left");
        }
        let (done, handed_on) = oneshot::channel();
        if serving.orders.send(Order::HandOn { done }).await.is_ok() {
            // What does not arrive is taken over from the queue we leave behind.
            tokio::time::timeout(HAND_ON_PATIENCE, handed_on).await.ok();
        }
        self.shared.finish.cancel();
    }

    /// Waits until everything of it has ended.
    pub async fn stopped(self) {
        self.shared.finish.cancel();
        self.lives.wait().await;
    }
}

async fn bind(address: SocketAddr, setting: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Bind { address, setting, source })
}

fn local_addr(listener: &TcpListener, config: &Config) -> SocketAddr {
    listener.local_addr().unwrap_or(config.ws_listen) // a bound socket has an address
}

/// One life after another, until asked to finish or to stop.
async fn live(shared: &Arc<Shared>, first: LifeSpan, stop: CancellationToken) {
    let mut span = first;
    loop {
        let how = span.last(shared, &stop).await;
        *shared.current.write() = None;
        let superseded = how == Over::Lost && span.is_superseded().await;
        span.end(how).await;
        if superseded {
            let id = &shared.config.id;
            error!(%id, "another process has begun under this gateway's id; give each its own QIYU_GATEWAY_ID");
            return;
        }
        if how != Over::Lost {
            return;
        }
        span = loop {
            match LifeSpan::begin(shared).await {
                Ok(span) => break span,
                Err(error) => {
                    error!(error = %chain(&error), "a new life cannot begin, trying again");
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(BEGIN_RETRY)).await.is_none() {
                return;
            }
        };
    }
}

/// Why a life is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// Asked to finish, in good order.
    Finished,
    /// Declared dead, or its queue is gone: the same gateway begins another life.
    Lost,
    /// The process stops.
    Stopped,
}

/// A life and the tasks that carry it.
struct LifeSpan {
    serving: Arc<Serving>,
    tasks: TaskTracker,
    over: CancellationToken,
    queue_lost: oneshot::Receiver<()>,
}

impl LifeSpan {
    async fn begin(shared: &Arc<Shared>) -> Result<Self, LifeError> {
        let (bus, config) = (&shared.bus, &shared.config);
        let (ws, tcp) = shared.addresses.clone();
        let mut life = Life::begin(bus, &config.id, ws, tcp).await?;
        let gateway = life.incarnation().clone();
        // The queue and its reader exist before anybody is told to write to it.
        let outbox = bus.open_outbox(&gateway).await?;
        let listen = |error: Box<dyn std::error::Error + Send + Sync>| LifeError::Listen(error);
        let notices = bus.notices(&gateway).await.map_err(|error| listen(error.into()))?;
        let (tasks, over) = (TaskTracker::new(), CancellationToken::new());
        let unless_begun = over.clone().drop_guard(); // whatever fails below, nothing runs on
        let (orders, orders_to_obey) = mpsc::channel(ORDERS_MAX);
        let (settled, to_record) = mpsc::unbounded_channel();
        let desk = Desk { settled, metrics: shared.metrics.clone() };
        life.announce(&tasks, over.clone()).await?;
        let membership =
            Membership::new(bus.clone(), gateway.clone(), orders.clone(), tasks.clone());
        let sessions = Sessions::new(bus, shared.gateways.clone());
        let measures = bus.bucket(BucketName::Measures).mirror(&tasks, over.clone()).await;
        let measures = measures.map(Measures::new).map_err(LifeError::Measures)?;
        let serving = Serving::new(Parts {
            config: Arc::clone(config),
            bus: bus.clone(),
            life,
            sessions,
            membership,
            measures,
            content: Arc::clone(&shared.content),
            limits: Arc::clone(&shared.limits),
            orders: orders.clone(),
            desk: desk.clone(),
            metrics: shared.metrics.clone(),
        });
        let acting = Arc::clone(&serving);
        let with = Dispatcher {
            bus: bus.clone(),
            gateway: gateway.clone(),
            terms: Terms { ack_wait: config.ack_wait, sends_max: config.max_sends },
            desk,
            orders,
            tasks: tasks.clone(),
            may_act: Box::new(move || acting.may_act()),
        };
        let delivery = DeliveryTask::new(with).run(outbox, notices, orders_to_obey, over.clone());
        let (lost, queue_lost) = oneshot::channel();
        let finish = shared.finish.clone();
        tasks.spawn(async move {
            if let Err(error) = delivery.await
                && !finish.is_cancelled()
            {
                // Whoever declared us dead has taken it, and a new life begins.
                warn!(error = %chain(&error), "the gateway's queue is gone");
            }
            lost.send(()).ok(); // nobody waits when the life is over anyway
        });
        let (bus_, metrics, stop) = (bus.clone(), shared.metrics.clone(), over.clone());
        let recording = outcomes::record_settled(bus_, gateway.clone(), to_record, metrics, stop);
        let alarm = over.clone();
        tasks.spawn(async move {
            let _alarm = alarm.drop_guard(); // nothing is acknowledged any more: this life is over
            recording.await;
        });
        answer_commands(&serving, &tasks, over.clone()).await.map_err(listen)?;
        let lags = bus.lags().await.map_err(|error| listen(error.into()))?;
        tasks.spawn(sanctions::heed(Arc::clone(&serving), over.clone()));
        tasks.spawn(heed_brakes(Arc::clone(&serving), lags, over.clone()));
        tasks.spawn(keep_house(Arc::clone(&serving), over.clone()));
        *shared.current.write() = Some(Arc::clone(&serving));
        info!(%gateway, "gateway is announced");
        unless_begun.disarm();
        Ok(Self { serving, tasks, over, queue_lost })
    }

    /// Waits for the end of this life.
    async fn last(&mut self, shared: &Shared, stop: &CancellationToken) -> Over {
        let lost = {
            let life = self.serving.life.lock();
            life.as_ref().and_then(Life::lease).map(|lease| lease.lost().clone())
        };
        let lost = lost.unwrap_or_default();
        tokio::select! {
            biased;
            () = shared.finish.cancelled() => Over::Finished,
            () = stop.cancelled(), if !shared.draining.is_cancelled() => {
                // A clean stop drains first: give it the time to begin to.
                let grace = shared.config.drain_window + Duration::from_secs(5);
                match tokio::time::timeout(grace, shared.finish.cancelled()).await {
                    Ok(()) => Over::Finished,
                    Err(_) => Over::Stopped,
                }
            }
            () = lost.cancelled() => Over::Lost,
            _ = &mut self.queue_lost => Over::Lost,
            () = self.over.cancelled() => Over::Lost, // a task of it has died
        }
    }

    async fn is_superseded(&self) -> bool {
        // Taken out for the question: a lock must not be held across an await.
        let Some(life) = self.serving.life.lock().take() else { return false };
        let superseded = life.is_superseded().await;
        *self.serving.life.lock() = Some(life);
        superseded
    }

    async fn end(self, how: Over) {
        if how == Over::Lost {
            warn!(gateway = %self.serving.gateway, "this life is over, sending its clients away");
            self.serving.close_all(SURPRISE_WINDOW, |delay| {
                let reason = format!("retry_ms={}", delay.as_millis());
                Close::new(Ending::Drained, 1012, reason).saying("draining")
            });
        }
        let life = self.serving.life.lock().take();
        if let (Some(life), true) = (life, how == Over::Finished) {
            life.end().await;
        }
        self.over.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await.is_err() {
            warn!(gateway = %self.serving.gateway, "tasks of an ended life still run");
        }
    }
}

/// Commands other services have for this life.
async fn answer_commands(
    serving: &Arc<Serving>,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let group = subject::gateway_commands(&serving.gateway);
    let answering =
        serving.bus.answering("qiyu-gateway", "Client connections", tasks, stop).await?;
    let ending = Arc::clone(serving);
    answering
        .endpoint::<EndRoom, _, _>(&group, move |EndRoom { app, room, .. }| {
            let serving = Arc::clone(&ending);
            async move {
                let gone = || Refusal { code: 503, message: "this gateway is ending".into() };
                let (done, ended) = oneshot::channel();
                let order = Order::EndRoom { app, room, done };
                serving.orders.send(order).await.map_err(|_| gone())?;
                ended.await.map_err(|_| gone())
            }
        })
        .await?;
    let replacing = Arc::clone(serving);
    answering
        .endpoint::<ReplaceSession, _, _>(&group, move |command: ReplaceSession| {
            replacing.replace(command.connection);
            std::future::ready(Ok(()))
        })
        .await
}

/// Listens to how far fan-out is behind.
async fn heed_brakes(serving: Arc<Serving>, mut lags: Lags, stop: CancellationToken) {
    while let Some(Some((partition, behind))) = stop.run_until_cancelled(lags.next()).await {
        serving.brakes.report(partition, behind);
    }
}

/// What has to be done from time to time.
async fn keep_house(serving: Arc<Serving>, stop: CancellationToken) {
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut number, mut refreshed) = (0, Instant::now());
    let mut suspended_since: Option<Instant> = None;
    while stop.run_until_cancelled(second.tick()).await.is_some() {
        number += 1;
        if let Some(life) = serving.life.lock().as_mut() {
            life.says(serving.count() as u64, serving.draining.load(Ordering::Acquire));
        }
        if serving.may_act() {
            suspended_since = None;
            // Not awaited: the rest of the house must not wait for an outage to end.
            let writing = Arc::clone(&serving);
            serving.tasks.spawn(async move { writing.write_likes(number).await });
        } else {
            let since = *suspended_since.get_or_insert_with(Instant::now);
            if SUSPENDED_MAX <= since.elapsed() {
                warn!(gateway = %serving.gateway, "suspended for too long, sending clients away");
                serving.close_all(SURPRISE_WINDOW, |delay| {
                    let reason = format!("not stored for long; retry_ms={}", delay.as_millis());
                    Close::new(Ending::Unstored, 3014, reason)
                });
                suspended_since = Some(Instant::now()); // those who come back get as long again
            }
        }
        measure(&serving);
        if number % BACKLOG_LOOK_SECONDS == 0 {
            serving.tasks.spawn(measure_backlog(Arc::clone(&serving)));
        }
        if REFRESH_EVERY <= refreshed.elapsed() {
            refreshed = Instant::now();
            serving.tasks.spawn(refresh_sessions(Arc::clone(&serving)));
        }
    }
}

/// What is measured by looking, because keeping count of it would cost every message.
fn measure(serving: &Serving) {
    let (mut total, mut most) = (0, 0);
    for connection in serving.connections() {
        let bytes = connection.queued_bytes();
        (total, most) = (total + bytes, most.max(bytes));
    }
    let told = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    serving.metrics.queue_bytes.set(told(total));
    serving.metrics.queue_bytes_max.set(told(most));
    serving.metrics.brakes_on.set(told(serving.brakes.count_on()));
}

/// Asks how much lies in our queue. Unanswered, the last answer stands.
async fn measure_backlog(serving: Arc<Serving>) {
    match serving.bus.backlog(&serving.gateway).await {
        Ok(Backlog { waiting, unacknowledged }) => {
            let told = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            serving.metrics.outbox_waiting.set(told(waiting));
            serving.metrics.outbox_unacknowledged.set(told(unacknowledged));
        }
        Err(error) => debug!(error = %chain(&error), "own queue not measured"),
    }
}

/// Writes every session anew, one after the other, before its entry ends by age.
async fn refresh_sessions(serving: Arc<Serving>) {
    for connection in serving.connections() {
        let session = serving.session(&connection, connection.room());
        let who = &connection.who;
        let written = serving.sessions.enter(who.app, who.user, &session, Policy::Allow).await;
        if let Err(error) = written {
            warn!(user = %who.user, error = %chain(&error), "session not refreshed");
        }
        // It may have ended since the list was made: then it was just entered again.
        if serving.connection(connection.id).is_none()
            && let Err(error) = serving.sessions.leave(who.app, who.user, &session).await
        {
            warn!(user = %who.user, error = %chain(&error), "session of an ended connection stays behind");
        }
    }
}
