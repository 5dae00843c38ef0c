//! Starts and stops the service, and registers its commands.

use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use qiyu_nats::{Bus, bucket::BucketError, chain, service::CommandRefusal, stream::BucketName};
use qiyu_presence::Gateways;
use qiyu_schema::{
    AppId, Secret,
    command::{
        CloseAbandoned, CloseRoom, FindRoom, ImposeSanction, LIVING_GROUP, LiftSanction, ListRooms,
        ListSanctions, OpenRoom,
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    cache::{Cache, CacheError},
    close, find,
    inner::LivingInner,
    list,
    metrics::Metrics,
    open,
    projector::{self, ProjectorHealth},
    room_lists::RoomLists,
    sanctions,
    single_flight::SingleFlight,
    status::RoomStatusReader,
    store::{Store, StoreError},
};

/// The configuration of the service.
#[derive(Clone, Debug)]
pub struct Config {
    /// `sqlite://…` (the file and its directory are made), `mysql://…` or `mariadb://…`.
    pub database_url: String,
    /// `redis://…`, the cache that all living processes share. `None`: each process has its own.
    pub redis_url: Option<Secret>,
    /// The apps in which rooms may open.
    pub apps: Vec<AppId>,
    /// How long the log is kept.
    pub retain: Duration,
}

/// The service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("open the tables of rooms")]
    Store(#[source] StoreError),
    /// The URL of Redis is malformed. An unreachable Redis does not prevent the start.
    #[error("parse the URL of Redis")]
    Redis(#[source] CacheError),
    #[error("follow {bucket}")]
    Follow { bucket: &'static str, source: BucketError },
    #[error("register the commands about rooms: {reason}")]
    Register {
        /// The text of the NATS client's error.
        reason: String,
    },
}

/// The running service. Several processes may run it.
pub struct Living {
    inner: Arc<LivingInner>,
    projector_health: Arc<ProjectorHealth>,
    tasks: TaskTracker,
}

impl Living {
    /// Opens the tables, reads the lists, and registers the commands.
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
        let tasks = TaskTracker::new();
        let store = Store::open(&config.database_url).await.map_err(StartError::Store)?;
        let cache = Cache::new(config.redis_url.as_ref()).map_err(StartError::Redis)?;
        let gateways = Gateways::follow(bus, &tasks, stop.clone())
            .await
            .map_err(|source| StartError::Follow { bucket: "the gateways", source })?;
        let watch = bus
            .bucket(BucketName::Watch)
            .mirror(&tasks, stop.clone())
            .await
            .map_err(|source| StartError::Follow { bucket: "the watch counts", source })?;
        let sanctions_mirror = bus
            .bucket(BucketName::Sanctions)
            .mirror(&tasks, stop.clone())
            .await
            .map_err(|source| StartError::Follow { bucket: "sanctions", source })?;
        let inner = Arc::new(LivingInner {
            bus: bus.clone(),
            statuses: RoomStatusReader::new(bus),
            store,
            cache,
            lookups: SingleFlight::default(),
            entries: bus.bucket(BucketName::Rooms),
            anchors: bus.bucket(BucketName::Anchors),
            watch,
            sanctions: bus.bucket(BucketName::Sanctions),
            sanctions_mirror,
            retain: config.retain,
            gateways,
            lists: RoomLists::new(&config.apps),
            apps: config.apps,
            metrics: Metrics::register(registry),
        });
        let refreshed = inner.lists.refresh(&inner.cache, &inner.store, &inner.metrics).await;
        refreshed.map_err(StartError::Store)?;
        let projector_health = Arc::new(ProjectorHealth::default());
        tasks.spawn(list::keep_fresh(Arc::clone(&inner), stop.clone()));
        let projector =
            projector::run(Arc::clone(&inner), Arc::clone(&projector_health), stop.clone());
        tasks.spawn(projector);
        register_commands(&inner, bus, &tasks, stop)
            .await
            .map_err(|error| StartError::Register { reason: error.to_string() })?;
        tasks.close();
        Ok(Self { inner, projector_health, tasks })
    }

    /// Returns whether the lists are fresh and events are applied.
    ///
    /// # Errors
    ///
    /// The reason, as text for operators.
    pub fn ready(&self) -> Result<(), String> {
        if let Some(age) = self.inner.lists.stale() {
            return Err(format!("the list of rooms is {} s old", age.as_secs()));
        }
        if let Some(time) = self.projector_health.failing_for() {
            return Err(format!("events of rooms are not applied for {} s", time.as_secs()));
        }
        Ok(())
    }

    /// Waits until all tasks have ended.
    pub async fn stopped(self) {
        self.tasks.wait().await;
        self.inner.store.close().await;
    }
}

type RegisterError = Box<dyn std::error::Error + Send + Sync>;

async fn register_commands(
    inner: &Arc<LivingInner>,
    bus: &Bus,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(), RegisterError> {
    let service = bus.command_service("qiyu-living", "Live rooms", tasks, stop).await?;
    let commands = service.group(LIVING_GROUP);
    commands
        .endpoint(inner, |inner, request: OpenRoom| async move {
            let opened = open::open(&inner, request).await;
            opened.map_err(|error| logged(&error, error.refusal()))
        })
        .await?;
    commands
        .endpoint(inner, |inner, request: CloseRoom| async move {
            let closed = close::close(&inner, request).await;
            closed.map_err(|error| logged(&error, error.refusal()))
        })
        .await?;
    commands
        .endpoint(inner, |inner, request: CloseAbandoned| async move {
            let closed = close::close_abandoned(&inner, request).await;
            closed.map_err(|error| logged(&error, error.refusal()))
        })
        .await?;
    commands
        .endpoint(
            inner,
            |inner, request: FindRoom| async move { find::find(&inner, request).await },
        )
        .await?;
    commands
        .endpoint(inner, |inner, request: ListRooms| async move { list::list(&inner, &request) })
        .await?;
    commands
        .endpoint(inner, |inner, request: ImposeSanction| async move {
            let imposed = sanctions::impose(&inner, request).await;
            imposed.map_err(|error| logged(&error, error.refusal()))
        })
        .await?;
    commands
        .endpoint(inner, |inner, request: LiftSanction| async move {
            let lifted = sanctions::lift(&inner, request).await;
            lifted.map_err(|error| logged(&error, error.refusal()))
        })
        .await?;
    commands
        .endpoint(inner, |inner, request: ListSanctions| async move {
            let listed = sanctions::list(&inner, request).await;
            listed.map_err(|error| logged(&error, error.refusal()))
        })
        .await
}

/// Logs a failed command, and returns its refusal. A failure of this side is a warning.
fn logged(error: &(dyn std::error::Error + 'static), refusal: CommandRefusal) -> CommandRefusal {
    if refusal.code == 500 {
        warn!(error = %chain(error), "command about a room failed");
    } else {
        debug!(error = %chain(error), "command about a room refused");
    }
    refusal
}
