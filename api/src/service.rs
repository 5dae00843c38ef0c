//! Starting, serving, stopping.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use prometheus_client::registry::Registry;
use qiyu_nats::{Bus, brake::Brakes, bucket::BucketError, lag::Lags};
use qiyu_presence::{Gateways, Sessions};
use qiyu_schema::{AppId, Secret, ticket::TicketKey};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    edge::Edge,
    identity::{KeyError, Keys},
    metrics::Metrics,
    origins::Origins,
    profile::{ProfileError, Profiles},
    rate::Rates,
    reads::{self, Reads},
    routes, server,
};

/// What the HTTP edge needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The apps there are. The contract's routes have no parameter for it, so
    /// over HTTP people are always in the first one.
    pub apps: Vec<AppId>,
    /// HS256 logins are verified, and dev logins signed, with it. `None`: only the JWKS counts.
    pub jwt_secret: Option<Secret>,
    /// Keys of a login system, RS256 or ES256. `None`: only the secret counts.
    pub jwks_file: Option<PathBuf>,
    /// Whether anybody may log in as anybody. For trying things out.
    pub dev_login: bool,
    /// For integrators. `None`: their routes are off.
    pub api_key: Option<Secret>,
    /// How long a ticket for an IM connection is valid.
    pub token_ttl: Duration,
    /// Sites whose pages may use the routes, `https://live.example.com`; `*`: all, without
    /// cookies. Empty: only pages of the same host.
    pub origins: Vec<String>,
    /// Requests a second from one address, and of one user from wherever.
    pub http_rate: f64,
    /// Requests at once, likewise.
    pub http_burst: u32,
    /// `sqlite://…` (the file and its directory are made), `mysql://…` or `mariadb://…`.
    pub database_url: String,
    /// What tickets are signed with; gateways have the same.
    pub ticket_key: TicketKey,
}

/// The edge could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There must be one.
    #[error("no app is configured")]
    NoApp,
    /// Logins could not be believed, or made.
    #[error("load the keys of logins")]
    Keys(#[source] KeyError),
    /// People would have no names.
    #[error("open the table of users")]
    Profiles(#[source] ProfileError),
    /// Nobody could be sent anywhere.
    #[error("follow the gateways")]
    Gateways(#[source] BucketError),
    /// Integrators would not be answered over NATS.
    #[error("answer calls of integrators")]
    Calls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The HTTP edge, until stopped.
pub struct Api {
    edge: Arc<Edge>,
    tasks: TaskTracker,
}

impl Api {
    /// Makes everything [`Api::router`] needs.
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
        let app = *config.apps.first().ok_or(StartError::NoApp)?;
        let keys = Keys::load(config.jwt_secret.as_ref(), config.jwks_file.as_deref())
            .map_err(StartError::Keys)?;
        if config.dev_login && !keys.can_sign() {
            return Err(StartError::Keys(KeyError::NothingToSignWith));
        }
        let profiles = Profiles::open(&config.database_url).await.map_err(StartError::Profiles)?;
        let tasks = TaskTracker::new();
        let gateways = Gateways::follow(bus, &tasks, stop.clone()).await;
        let gateways = gateways.map_err(StartError::Gateways)?;
        let (reads, pages) = Reads::new();
        tasks.spawn(reads::record(bus.clone(), pages, stop.clone()));
        let edge = Arc::new(Edge {
            bus: bus.clone(),
            app,
            apps: config.apps,
            api_key: config.api_key,
            brakes: Brakes::default(),
            keys,
            dev_login: config.dev_login,
            ticket_key: config.ticket_key,
            token_ttl: config.token_ttl,
            origins: Origins::new(&config.origins),
            profiles,
            reads,
            sessions: Sessions::new(bus, gateways.clone()),
            gateways,
            address_rates: Rates::new(config.http_rate, config.http_burst),
            user_rates: Rates::new(config.http_rate, config.http_burst),
            metrics: Metrics::registered(registry),
        });
        let calls = |error: Box<dyn std::error::Error + Send + Sync>| StartError::Calls(error);
        let lags = bus.lags().await.map_err(|error| calls(error.into()))?;
        tasks.spawn(heed_brakes(Arc::clone(&edge), lags, stop.clone()));
        let description = "Messages, tickets, presence and measures, for integrators";
        let answering = bus.answering("qiyu-server", description, &tasks, stop).await;
        let answering = answering.map_err(calls)?;
        server::answer_calls(&answering, &edge).await.map_err(calls)?;
        tasks.close();
        Ok(Self { edge, tasks })
    }

    /// The routes and the page. To be served with the clients' addresses
    /// (`into_make_service_with_connect_info::<SocketAddr>()`), by which the rate is counted.
    pub fn router(&self) -> Router {
        routes::router(Arc::clone(&self.edge))
    }

    /// Whether it can answer.
    ///
    /// # Errors
    ///
    /// The reason why not, for people.
    pub fn ready(&self) -> Result<(), String> {
        if self.edge.bus.is_connected() { Ok(()) } else { Err("NATS is not connected".into()) }
    }

    /// Waits until everything has come to its end. The listener is the root's to stop, before this.
    pub async fn stopped(self) {
        self.tasks.wait().await;
        self.edge.profiles.close().await;
    }
}

/// Knows which partitions take nothing at the moment, as gateways do.
async fn heed_brakes(edge: Arc<Edge>, mut lags: Lags, stop: CancellationToken) {
    while let Some(Some((partition, behind))) = stop.run_until_cancelled(lags.next()).await {
        edge.brakes.report(partition, behind);
    }
}
