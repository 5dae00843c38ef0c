//! Starting, being asked, stopping.

use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use qiyu_nats::{Bus, bucket::BucketError, service::Refusal, stream::BucketName};
use qiyu_presence::Gateways;
use qiyu_schema::{
    AppId, Secret,
    command::{
        CloseAbandoned, CloseRoom, FindRoom, LIVING, ListMeasures, ListRooms, Moderate, OpenRoom,
        Pardon,
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    cache::{Cache, CacheError},
    close, find,
    flight::Flights,
    list::{self, Lists},
    metrics::Metrics,
    moderate, open,
    project::Rooms,
    replay::{self, Trouble},
    standing::Facts,
    store::{Store, StoreError},
};

/// What the rooms need to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// `sqlite://…` (the file and its directory are made), `mysql://…` or `mariadb://…`.
    pub database_url: String,
    /// `redis://…`, for the caches of all living processes. `None`: each has its own.
    pub redis_url: Option<Secret>,
    /// The apps in which rooms may open.
    pub apps: Vec<AppId>,
    /// How long the log is kept.
    pub retain: Duration,
}

/// The rooms could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The tables.
    #[error("open the tables of rooms")]
    Store(#[source] StoreError),
    /// The shared cache's URL. That nobody answers there is no reason not to start.
    #[error("understand the URL of Redis")]
    Redis(#[source] CacheError),
    /// A bucket that must be followed.
    #[error("follow {what}")]
    Follow {
        /// Which.
        what: &'static str,
        /// Why.
        source: BucketError,
    },
    /// The commands.
    #[error("answer commands about rooms: {reason}")]
    Answer {
        /// NATS's words.
        reason: String,
    },
}

/// The rooms, until stopped. Several processes may run them.
pub struct Living {
    rooms: Arc<Rooms>,
    trouble: Arc<Trouble>,
    tasks: TaskTracker,
}

impl Living {
    /// Opens the tables, reads the list, and starts answering.
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
            .map_err(|source| StartError::Follow { what: "the gateways", source })?;
        let watch = bus
            .bucket(BucketName::Watch)
            .mirror(&tasks, stop.clone())
            .await
            .map_err(|source| StartError::Follow { what: "who watches", source })?;
        let measured = bus
            .bucket(BucketName::Measures)
            .mirror(&tasks, stop.clone())
            .await
            .map_err(|source| StartError::Follow { what: "measures", source })?;
        let rooms = Arc::new(Rooms {
            bus: bus.clone(),
            facts: Facts::new(bus),
            store,
            cache,
            looks: Flights::default(),
            entries: bus.bucket(BucketName::Rooms),
            anchors: bus.bucket(BucketName::Anchors),
            watch,
            measures: bus.bucket(BucketName::Measures),
            measured,
            retain: config.retain,
            gateways,
            lists: Lists::new(&config.apps),
            apps: config.apps,
            metrics: Metrics::registered(registry),
        });
        let refreshed = rooms.lists.refresh(&rooms.cache, &rooms.store, &rooms.metrics).await;
        refreshed.map_err(StartError::Store)?;
        let trouble = Arc::new(Trouble::default());
        tasks.spawn(list::keep_fresh(Arc::clone(&rooms), stop.clone()));
        tasks.spawn(replay::run(Arc::clone(&rooms), Arc::clone(&trouble), stop.clone()));
        answer(&rooms, bus, &tasks, stop)
            .await
            .map_err(|error| StartError::Answer { reason: error.to_string() })?;
        tasks.close();
        Ok(Self { rooms, trouble, tasks })
    }

    /// Whether it does what is asked of it.
    ///
    /// # Errors
    ///
    /// The reason why not, for people.
    pub fn ready(&self) -> Result<(), String> {
        if let Some(age) = self.rooms.lists.stale() {
            return Err(format!("the list of rooms is {} s old", age.as_secs()));
        }
        if let Some(since) = self.trouble.lasting() {
            return Err(format!("events of rooms are not applied for {} s", since.as_secs()));
        }
        Ok(())
    }

    /// Waits until everything has come to its end.
    pub async fn stopped(self) {
        self.tasks.wait().await;
        self.rooms.store.close().await;
    }
}

/// NATS's own error type is none of this crate's names, so its words are passed on.
async fn answer(
    rooms: &Arc<Rooms>,
    bus: &Bus,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let service = bus.answering("qiyu-living", "Live rooms", tasks, stop).await?;
    let held = Arc::clone(rooms);
    let opening = move |asked: OpenRoom| {
        let rooms = Arc::clone(&held);
        async move { open::open(&rooms, asked).await.map_err(|error| told(&error, error.refusal())) }
    };
    service.endpoint(LIVING, opening).await?;
    let held = Arc::clone(rooms);
    let closing = move |asked: CloseRoom| {
        let rooms = Arc::clone(&held);
        async move { close::close(&rooms, asked).await.map_err(|error| told(&error, error.refusal())) }
    };
    service.endpoint(LIVING, closing).await?;
    let held = Arc::clone(rooms);
    let finding = move |asked: FindRoom| {
        let rooms = Arc::clone(&held);
        async move { find::find(&rooms, asked).await }
    };
    service.endpoint(LIVING, finding).await?;
    let held = Arc::clone(rooms);
    let listing = move |asked: ListRooms| {
        let rooms = Arc::clone(&held);
        async move { list::list(&rooms, &asked) }
    };
    service.endpoint(LIVING, listing).await?;
    let held = Arc::clone(rooms);
    let abandoning = move |asked: CloseAbandoned| {
        let rooms = Arc::clone(&held);
        async move {
            let closed = close::close_abandoned(&rooms, asked).await;
            closed.map_err(|error| told(&error, error.refusal()))
        }
    };
    service.endpoint(LIVING, abandoning).await?;
    let held = Arc::clone(rooms);
    let moderating = move |asked: Moderate| {
        let rooms = Arc::clone(&held);
        async move {
            let taken = moderate::moderate(&rooms, asked).await;
            taken.map_err(|error| told(&error, error.refusal()))
        }
    };
    service.endpoint(LIVING, moderating).await?;
    let held = Arc::clone(rooms);
    let pardoning = move |asked: Pardon| {
        let rooms = Arc::clone(&held);
        async move {
            let lifted = moderate::pardon(&rooms, asked).await;
            lifted.map_err(|error| told(&error, error.refusal()))
        }
    };
    service.endpoint(LIVING, pardoning).await?;
    let held = Arc::clone(rooms);
    let measures = move |asked: ListMeasures| {
        let rooms = Arc::clone(&held);
        async move {
            let listed = moderate::list(&rooms, asked).await;
            listed.map_err(|error| told(&error, error.refusal()))
        }
    };
    service.endpoint(LIVING, measures).await
}

/// Logs what was refused: our own trouble matters, a wrong question does not.
fn told(error: &(dyn std::error::Error + 'static), refusal: Refusal) -> Refusal {
    if refusal.code == 500 {
        warn!(error, "command about a room failed");
    } else {
        debug!(error, "command about a room refused");
    }
    refusal
}
