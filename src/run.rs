//! The roles of a system, started in one process and stopped in order.
//! `qiyu run` is only this; `qiyu up` puts all roles over a NATS of its own.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    str::FromStr,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use prometheus_client::registry::Registry;
use qiyu_api::Api;
pub(crate) use qiyu_explain::terminal::print as say;
use qiyu_explain::verify::{Watch, WatchConfig};
use qiyu_fanout::Fanout;
use qiyu_gateway::{ContentConfig, Gateway};
use qiyu_living::Living;
use qiyu_nats::{Bus, BusConfig, Profile, server, vitals::Vitals};
use qiyu_presence::Reaper;
use qiyu_schema::{GatewayId, Secret, ticket::TicketKey};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    http,
    ops::{self, Ops},
    process,
    settings::{Settings, Streams},
};

/// How long one service may take to stop before it is left behind.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long requests in hand may take after everything else has stopped.
const HTTP_PATIENCE: Duration = Duration::from_secs(3);

/// A part of the system that can run in a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Gateway,
    Fanout,
    Presence,
    Living,
    Api,
    Verify,
}

impl Role {
    pub(crate) const ALL: [Self; 6] =
        [Self::Gateway, Self::Fanout, Self::Presence, Self::Living, Self::Api, Self::Verify];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Fanout => "fanout",
            Self::Presence => "presence",
            Self::Living => "living",
            Self::Api => "api",
            Self::Verify => "verify",
        }
    }
}

/// Not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role; the roles are gateway, fanout, presence, living, api, verify")]
pub(crate) struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;
    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        let found = Self::ALL.into_iter().find(|role| role.name() == name);
        found.ok_or_else(|| UnknownRole(name.to_owned()))
    }
}

/// What the settings leave to whoever starts a system.
#[derive(Debug)]
pub(crate) struct Foundation {
    pub(crate) nats_url: Secret,
    pub(crate) gateway_id: GatewayId,
    /// None where no role needs one.
    pub(crate) jwt_secret: Option<Secret>,
    /// See [`Ops::profile`].
    pub(crate) profile: String,
}

/// `qiyu run <roles>`: until `stop`, or until one of them dies.
pub(crate) async fn run(
    roles: &[Role],
    settings: &Settings,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let foundation = Foundation {
        nats_url: settings.nats_url.clone().context("QIYU_NATS_URL is required")?,
        gateway_id: lasting_gateway_id(roles, settings)?,
        jwt_secret: settings.jwt_secret.clone(),
        profile: format!("declared: {}", profile_name(settings.profile)),
    };
    if roles.iter().any(|role| matches!(role, Role::Living | Role::Api)) {
        make_private_dir(&settings.data_dir)?; // SQLite's default place
    }
    let starting = Box::pin(System::start(roles, settings, foundation));
    let Some(system) = stop.run_until_cancelled(starting).await else { return Ok(()) };
    let mut system = system?;
    let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    say(&format!("qiyu runs {}\n{}", names.join(","), system.listeners("http")));
    let ended = tokio::select! {
        biased; // a death during a stop is part of the stop
        () = stop.cancelled() => Ok(()),
        name = system.died() => Err(anyhow::anyhow!("{name} died; its last log lines tell why")),
    };
    system.stop().await;
    ended
}

/// `qiyu provision`: makes every stream and bucket, or brings them up to date.
pub(crate) async fn provision(settings: &Settings, stop: &CancellationToken) -> anyhow::Result<()> {
    let config = BusConfig {
        url: settings.nats_url.clone().context("QIYU_NATS_URL is required")?,
        name: "qiyu provision".to_owned(),
        replicas: settings.replicas,
        retain: settings.retain,
        ack_wait: settings.ack_wait,
        profile: settings.profile,
    };
    let provisioning = async {
        let bus = Bus::connect(&config).await?;
        bus.provision().await?;
        bus.close().await;
        say("every stream and bucket is there");
        Ok(())
    };
    stop.run_until_cancelled(Box::pin(provisioning)).await.unwrap_or(Ok(()))
}

/// As [`Profile`] is written.
pub(crate) fn profile_name(profile: Profile) -> &'static str {
    match profile {
        Profile::Default => "default",
        Profile::Durable => "durable",
    }
}

/// A gateway id made once and kept in `data_dir`.
pub(crate) fn kept_gateway_id(data_dir: &Path) -> anyhow::Result<GatewayId> {
    let path = data_dir.join("gateway-id");
    let make = || format!("gw-{:08x}", rand::random::<u32>());
    let kept =
        server::read_or_create_private(&path, make).with_context(|| format!("keep {path:?}"))?;
    kept.parse().with_context(|| format!("read {path:?}"))
}

/// The gateway id of a process whose machine has a lasting name.
fn lasting_gateway_id(roles: &[Role], settings: &Settings) -> anyhow::Result<GatewayId> {
    if let Some(id) = &settings.gateway_id {
        return Ok(id.clone());
    }
    let name = rustix::system::uname();
    let host = name.nodename().to_string_lossy().replace('.', "-");
    match host.parse() {
        Ok(id) if host != "localhost" => Ok(id),
        _ if roles.contains(&Role::Gateway) => {
            make_private_dir(&settings.data_dir)?;
            kept_gateway_id(&settings.data_dir)
        }
        _ => Ok("none".parse()?),
    }
}

fn make_private_dir(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("make data directory {dir:?} (QIYU_DATA_DIR)"))
}

/// The running services, each taken out as it stops.
#[derive(Default)]
pub(crate) struct Services(RwLock<Slots>);

#[derive(Default)]
struct Slots {
    bus: Option<Bus>,
    gateway: Option<Gateway>,
    fanout: Option<Fanout>,
    presence: Option<Reaper>,
    living: Option<Living>,
    api: Option<Api>,
    verify: Option<Watch>,
    stopping: bool,
}

impl Slots {
    /// The roles that run.
    fn roles(&self) -> impl Iterator<Item = Role> {
        let there = [
            (Role::Gateway, self.gateway.is_some()),
            (Role::Fanout, self.fanout.is_some()),
            (Role::Presence, self.presence.is_some()),
            (Role::Living, self.living.is_some()),
            (Role::Api, self.api.is_some()),
            (Role::Verify, self.verify.is_some()),
        ];
        there.into_iter().filter_map(|(role, there)| there.then_some(role))
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Services").field(&self.checks().keys()).finish()
    }
}

impl Services {
    /// Whether each of them is ready, and if not, why.
    pub(crate) fn checks(&self) -> BTreeMap<&'static str, Result<(), String>> {
        let slots = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut checks = BTreeMap::new();
        let mut add = |name, check: Option<Result<(), String>>| {
            if let Some(check) = check {
                checks.insert(name, check);
            }
        };
        let connected = |bus: &Bus| {
            if bus.is_connected() { Ok(()) } else { Err("not connected to NATS".to_owned()) }
        };
        add("nats", slots.bus.as_ref().map(connected));
        add("gateway", slots.gateway.as_ref().map(Gateway::ready));
        add("fanout", slots.fanout.as_ref().map(Fanout::ready));
        add("presence", slots.presence.as_ref().map(Reaper::ready));
        add("living", slots.living.as_ref().map(Living::ready));
        add("api", slots.api.as_ref().map(Api::ready));
        add("process", slots.stopping.then(|| Err("stopping".to_owned())));
        checks
    }

    /// How this process is, but for its name.
    fn vitals(&self) -> Vitals {
        let slots = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let ages = slots.bus.as_ref().map(Bus::lease_ages).unwrap_or_default();
        Vitals {
            roles: slots.roles().map(|role| role.name().to_owned()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at_ms: qiyu_nats::now_ms(),
            cpu_ms: ms(process::cpu_time("self").unwrap_or_default()),
            memory_bytes: process::resident_bytes(),
            lease_ages_ms: ages.into_iter().map(|(of, age)| (of.to_owned(), ms(age))).collect(),
            gateway: slots.gateway.as_ref().map(Gateway::vitals),
            fanout: slots.fanout.as_ref().map(Fanout::vitals),
            ..Vitals::default()
        }
    }

    fn slots(&self) -> RwLockWriteGuard<'_, Slots> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often a starting system is looked at.
const READY_LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often people hear what it waits for.
const READY_TOLD_EVERY: Duration = Duration::from_secs(2);

/// Roles that run over one bus in this process, and the HTTP server before them.
#[derive(Debug)]
pub(crate) struct System {
    services: Arc<Services>,
    stops: BTreeMap<Role, CancellationToken>,
    http_addr: SocketAddr,
    ws_addr: Option<SocketAddr>,
    tcp_addr: Option<SocketAddr>,
    http_stop: CancellationToken,
    http: TaskTracker,
    // Watches over the tokens; ends with the process.
    watchers: TaskTracker,
    died_tx: mpsc::Sender<&'static str>,
    died: mpsc::Receiver<&'static str>,
}

impl System {
    /// Starts `roles` in the order in which they need each other.
    pub(crate) async fn start(
        roles: &[Role],
        settings: &Settings,
        foundation: Foundation,
    ) -> anyhow::Result<Self> {
        // Before anything else, because an address in use is the likeliest mistake.
        let listener = bind_http(settings.http_listen).await?;
        let (died_tx, died) = mpsc::channel(Role::ALL.len() + 1);
        let mut system = Self {
            services: Arc::default(),
            stops: BTreeMap::new(),
            http_addr: listener.local_addr().context("read the HTTP address")?,
            ws_addr: None,
            tcp_addr: None,
            http_stop: CancellationToken::new(),
            http: TaskTracker::new(),
            watchers: TaskTracker::new(),
            died_tx,
            died,
        };
        if settings.idle_timeout <= settings.ack_wait {
            warn!(
                "QIYU_IDLE_TIMEOUT is not longer than QIYU_ACK_WAIT: who only listens is closed \
                 as idle before a message is sent again"
            );
        }
        let bus = Bus::connect(&bus_config(settings, &foundation)).await?;
        let bus = if settings.otlp_url.is_some() { bus.with_tracing() } else { bus };
        // Who only looks makes nothing.
        let only_looks = roles.iter().all(|role| *role == Role::Verify);
        match settings.streams {
            Streams::Make if !only_looks => bus.provision().await?,
            Streams::Make | Streams::Wait => bus.wait_until_provisioned().await,
        }
        let mut registry = Registry::default();
        process::register(&mut registry);
        bus.register(&mut registry);
        let mut roles = roles.to_vec();
        // A gateway comes last: whoever connects finds everything else there.
        roles.sort_by_key(|role| match role {
            Role::Fanout => 0,
            Role::Presence => 1,
            Role::Living => 2,
            Role::Api => 3,
            Role::Verify => 4,
            Role::Gateway => 5,
        });
        for role in roles {
            let stop = system.watched(role.name());
            system.stops.insert(role, stop.clone());
            let starting =
                system.start_role(role, settings, &foundation, &bus, &mut registry, stop);
            Box::pin(starting).await.with_context(|| format!("start {}", role.name()))?;
            info!(role = role.name(), "started");
        }
        let (services, name) = (Arc::clone(&system.services), foundation.gateway_id.to_string());
        let (number, stop) = (rand::random(), system.http_stop.clone());
        let vitals = move || Vitals { process: number, name: name.clone(), ..services.vitals() };
        let telling = bus.serve_vitals(&system.watchers, stop, vitals).await;
        telling.context("listen for questions about this process")?;
        system.services.slots().bus = Some(bus);
        system.serve_http(listener, registry, foundation.profile);
        Ok(system)
    }

    async fn start_role(
        &mut self,
        role: Role,
        settings: &Settings,
        foundation: &Foundation,
        bus: &Bus,
        registry: &mut Registry,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        match role {
            Role::Fanout => {
                let config = qiyu_fanout::Config { anchor_grace: settings.anchor_grace };
                let fanout = Fanout::start(config, bus, registry, stop).await?;
                self.services.slots().fanout = Some(fanout);
            }
            Role::Presence => {
                let config = qiyu_presence::Config {};
                let reaper = Reaper::start(config, bus, registry, stop).await?;
                self.services.slots().presence = Some(reaper);
            }
            Role::Living => {
                let config = living_config(settings);
                let living = Living::start(config, bus, registry, stop).await?;
                self.services.slots().living = Some(living);
            }
            Role::Api => {
                let config = api_config(settings, foundation)?;
                let api = Api::start(config, bus, registry, stop).await?;
                self.services.slots().api = Some(api);
            }
            Role::Verify => {
                let every = settings.verify_every.context("QIYU_VERIFY_EVERY is required")?;
                let config = WatchConfig {
                    database_url: settings.database_url.clone(),
                    ack_wait: settings.ack_wait,
                    max_sends: settings.max_sends,
                    interval: every,
                };
                let watch = Watch::start(config, bus, registry, stop);
                self.services.slots().verify = Some(watch);
            }
            Role::Gateway => {
                let config = gateway_config(settings, foundation)?;
                let gateway =
                    Gateway::start(config, bus, registry, stop).await.with_context(|| {
                        format!(
                            "listen on {} (QIYU_WS_LISTEN) and {} (QIYU_TCP_LISTEN)",
                            settings.ws_listen, settings.tcp_listen
                        )
                    })?;
                self.ws_addr = Some(gateway.ws_addr());
                self.tcp_addr = Some(gateway.tcp_addr());
                self.services.slots().gateway = Some(gateway);
            }
        }
        Ok(())
    }

    fn serve_http(&mut self, listener: TcpListener, registry: Registry, profile: String) {
        let ops = Ops { profile, services: Arc::clone(&self.services), registry };
        let mut router = ops::router(Arc::new(ops));
        if let Some(api) = &self.services.slots().api {
            router = router.merge(api.router());
        }
        let stop = self.http_stop.clone();
        let alarm = self.watched("http").drop_guard();
        self.http.spawn(async move {
            let _alarm = alarm; // an HTTP server that dies takes the process with it
            http::serve(listener, router, stop).await;
        });
        self.http.close();
    }

    /// A token whose cancellation, before a stop, is somebody's death.
    fn watched(&self, name: &'static str) -> CancellationToken {
        let token = CancellationToken::new();
        let (cancelled, died) = (token.clone().cancelled_owned(), self.died_tx.clone());
        self.watchers.spawn(async move {
            cancelled.await;
            died.try_send(name).ok(); // full or closed: nobody listens any more
        });
        token
    }

    /// Waits until every service is ready; every few seconds `tell` hears for
    /// what. After a sudden death that is for the leases of the dead to end.
    pub(crate) fn becomes_ready(&self, tell: fn(&str)) -> impl Future<Output = ()> + use<> {
        let services = Arc::clone(&self.services);
        async move {
            let mut told = Instant::now();
            loop {
                let checks = services.checks();
                let waits =
                    checks.iter().find_map(|(name, check)| Some((name, check.as_ref().err()?)));
                let Some((name, reason)) = waits else { return };
                if READY_TOLD_EVERY <= told.elapsed() {
                    told = Instant::now();
                    tell(&format!("waiting for {name}: {reason}"));
                }
                tokio::time::sleep(READY_LOOK_EVERY).await;
            }
        }
    }

    /// Returns the name of a service that died. Cancel safe.
    pub(crate) async fn died(&mut self) -> &'static str {
        // We hold a sender, so there is always a next.
        self.died.recv().await.unwrap_or("everything")
    }

    /// The addresses as people read them, one a line; `http_label` names the first.
    pub(crate) fn listeners(&self, http_label: &str) -> String {
        let mut lines = format!("  {http_label:<10} http://{}/\n", self.http_addr);
        if let Some(ws) = self.ws_addr {
            lines += &format!("  {:<10} ws://{ws}/\n", "websocket");
        }
        if let Some(tcp) = self.tcp_addr {
            lines += &format!("  {:<10} {tcp}\n", "tcp");
        }
        lines
    }

    /// Stops everything: first who only looks, then the sockets, so that what
    /// they sent is still fanned out, last the HTTP server, so that `/readyz`
    /// tells of it.
    pub(crate) async fn stop(self) {
        info!("stopping");
        self.services.slots().stopping = true;
        let verify = self.services.slots().verify.take();
        if let Some(verify) = verify {
            self.finish(Role::Verify, verify.stopped()).await;
        }
        let gateway = self.services.slots().gateway.take();
        if let Some(gateway) = gateway {
            gateway.drain().await;
            self.finish(Role::Gateway, gateway.stopped()).await;
        }
        let api = self.services.slots().api.take();
        if let Some(api) = api {
            self.finish(Role::Api, api.stopped()).await;
        }
        let living = self.services.slots().living.take();
        if let Some(living) = living {
            self.finish(Role::Living, living.stopped()).await;
        }
        let fanout = self.services.slots().fanout.take();
        if let Some(fanout) = fanout {
            self.finish(Role::Fanout, fanout.stopped()).await;
        }
        let presence = self.services.slots().presence.take();
        if let Some(presence) = presence {
            self.finish(Role::Presence, presence.stopped()).await;
        }
        self.http_stop.cancel();
        if timeout(HTTP_PATIENCE, self.http.wait()).await.is_err() {
            warn!("HTTP requests are cut off");
        }
        let bus = self.services.slots().bus.take();
        if let Some(bus) = bus {
            bus.close().await;
        }
    }

    async fn finish(&self, role: Role, stopped: impl Future<Output = ()>) {
        if let Some(stop) = self.stops.get(&role) {
            stop.cancel();
        }
        match timeout(STOP_PATIENCE, stopped).await {
            Ok(()) => info!(role = role.name(), "stopped"),
            Err(_) => warn!(role = role.name(), "did not stop in time"),
        }
    }
}

async fn bind_http(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("listen on {address}; QIYU_HTTP_LISTEN (--http-listen) sets it"))
}

fn bus_config(settings: &Settings, foundation: &Foundation) -> BusConfig {
    BusConfig {
        url: foundation.nats_url.clone(),
        name: format!("qiyu {}", foundation.gateway_id),
        replicas: settings.replicas,
        retain: settings.retain,
        ack_wait: settings.ack_wait,
        profile: settings.profile,
    }
}

fn ticket_key(foundation: &Foundation) -> anyhow::Result<TicketKey> {
    let Some(secret) = &foundation.jwt_secret else { bail!("QIYU_JWT_SECRET is required") };
    Ok(TicketKey::derive(secret))
}

fn gateway_config(
    settings: &Settings,
    foundation: &Foundation,
) -> anyhow::Result<qiyu_gateway::Config> {
    Ok(qiyu_gateway::Config {
        id: foundation.gateway_id.clone(),
        ws_listen: settings.ws_listen,
        tcp_listen: settings.tcp_listen,
        advertise_ws: settings.advertise_ws.clone(),
        advertise_tcp: settings.advertise_tcp.clone(),
        apps: settings.apps.clone(),
        ack_wait: settings.ack_wait,
        idle_timeout: settings.idle_timeout,
        login_deadline: settings.login_deadline,
        max_sends: settings.max_sends,
        max_frame: settings.max_frame,
        send_rate: settings.send_rate,
        send_burst: settings.send_burst,
        user_rate: settings.user_rate,
        user_burst: settings.user_burst,
        address_rate: settings.address_rate,
        address_burst: settings.address_burst,
        room_rate: settings.room_rate,
        room_burst: settings.room_burst,
        connect_rate: settings.connect_rate,
        connect_burst: settings.connect_burst,
        multi_device: settings.multi_device,
        origins: settings.origins.clone(),
        drain_window: settings.drain_window,
        content: ContentConfig {
            words_file: settings.words_file.clone(),
            webhook: settings.check_url.as_ref().map(|url| url.expose().to_owned()),
            webhook_timeout: settings.check_timeout,
            webhook_failure_policy: settings.check_silence,
        },
        ticket_key: ticket_key(foundation)?,
    })
}

fn living_config(settings: &Settings) -> qiyu_living::Config {
    qiyu_living::Config {
        database_url: settings.database_url.expose().to_owned(),
        redis_url: settings.redis_url.clone(),
        apps: settings.apps.clone(),
        retain: settings.retain,
    }
}

fn api_config(settings: &Settings, foundation: &Foundation) -> anyhow::Result<qiyu_api::Config> {
    Ok(qiyu_api::Config {
        apps: settings.apps.clone(),
        jwt_secret: foundation.jwt_secret.clone(),
        jwks_file: settings.jwks_file.clone(),
        dev_login: settings.dev_login,
        api_key: settings.api_key.clone(),
        token_ttl: settings.token_ttl,
        origins: settings.origins.clone(),
        http_rate: settings.http_rate,
        http_burst: settings.http_burst,
        database_url: settings.database_url.expose().to_owned(),
        ticket_key: ticket_key(foundation)?,
    })
}
