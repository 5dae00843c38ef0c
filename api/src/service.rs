//! Starts and stops the service.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use prometheus_client::registry::Registry;
use qiyu_nats::{Bus, backpressure::Backpressure, bucket::BucketError};
use qiyu_presence::{Gateways, Sessions};
use qiyu_runtime::limiter::{KeyedLimiter, Rate};
use qiyu_schema::{AppId, Secret, ticket::TicketKey};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    context::ApiContext,
    identity::{KeyError, Keys},
    metrics::Metrics,
    origins::Origins,
    page_reads::{self, PageReads},
    profile::{ProfileError, Profiles},
    router, server,
};

/// Remembered addresses or users, about 4 MiB.
const LIMITED_KEYS_MAX: usize = 65_536;

/// The configuration of the service.
#[derive(Clone, Debug)]
pub struct Config {
    /// The served apps. The routes for users have no parameter for it, so they always use the first
    /// one.
    pub apps: Vec<AppId>,
    /// Verifies HS256 logins, and signs dev logins. `None`: only the JWKS counts.
    pub jwt_secret: Option<Secret>,
    /// The keys of a login system, RS256 or ES256. `None`: only the secret counts.
    pub jwks_file: Option<PathBuf>,
    /// Whether a caller may log in as any user. For trials.
    pub dev_login: bool,
    /// The key of integrators. `None`: their routes are off.
    pub api_key: Option<Secret>,
    /// How long a ticket for a gateway connection is valid.
    pub token_ttl: Duration,
    /// The origins of pages that may use the routes, as in `https://live.example.com`. `*`: all,
    /// without cookies. Empty: only pages of the same host.
    pub origins: Vec<String>,
    /// Requests a second of one address, and of one user from all addresses.
    pub http_rate: f64,
    /// Requests of one address or user at once.
    pub http_burst: u32,
    /// `sqlite://…` (the file and its directory are created), `mysql://…` or `mariadb://…`.
    pub database_url: String,
    /// Signs tickets. The gateways have the same key.
    pub ticket_key: TicketKey,
}

/// The service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no app is configured")]
    NoApp,
    #[error("load the keys of logins")]
    Keys(#[source] KeyError),
    #[error("open the table of users")]
    Profiles(#[source] ProfileError),
    #[error("follow the gateways")]
    Gateways(#[source] BucketError),
    #[error("register the calls of integrators")]
    Calls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The running service.
pub struct Api {
    context: Arc<ApiContext>,
    tasks: TaskTracker,
}

impl Api {
    /// Starts all parts that [`Api::router`] needs.
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
        let (page_reads, pages) = PageReads::new();
        tasks.spawn(page_reads::record_queued(bus.clone(), pages, stop.clone()));
        let limiter_rate = Some(Rate { per_second: config.http_rate, burst: config.http_burst });
        let context = Arc::new(ApiContext {
            bus: bus.clone(),
            app,
            apps: config.apps,
            api_key: config.api_key,
            backpressure: Backpressure::default(),
            keys,
            dev_login: config.dev_login,
            ticket_key: config.ticket_key,
            token_ttl: config.token_ttl,
            origins: Origins::new(&config.origins),
            profiles,
            page_reads,
            sessions: Sessions::new(bus, gateways.clone()),
            gateways,
            address_limiter: KeyedLimiter::new(limiter_rate, LIMITED_KEYS_MAX),
            user_limiter: KeyedLimiter::new(limiter_rate, LIMITED_KEYS_MAX),
            metrics: Metrics::register(registry),
        });
        let calls = |error: Box<dyn std::error::Error + Send + Sync>| StartError::Calls(error);
        let lags = bus.lag_reports().await.map_err(|error| calls(error.into()))?;
        tasks.spawn({
            let (context, stop) = (Arc::clone(&context), stop.clone());
            async move { context.backpressure.follow(lags, stop).await }
        });
        let description = "Messages, tickets, presence and measures, for integrators";
        let service = bus.command_service("qiyu-server", description, &tasks, stop).await;
        let service = service.map_err(calls)?;
        server::register_endpoints(&service, &context).await.map_err(calls)?;
        tasks.close();
        Ok(Self { context, tasks })
    }

    /// Returns the routes and the page. They are to be served with the clients' addresses
    /// (`into_make_service_with_connect_info::<SocketAddr>()`), because rates are counted by them.
    pub fn router(&self) -> Router {
        router::router(Arc::clone(&self.context))
    }

    /// Returns whether the bus is connected.
    ///
    /// # Errors
    ///
    /// The reason, as text for operators.
    pub fn ready(&self) -> Result<(), String> {
        if self.context.bus.is_connected() { Ok(()) } else { Err("NATS is not connected".into()) }
    }

    /// Waits until all tasks have ended. The caller stops the listener before.
    pub async fn stopped(self) {
        self.tasks.wait().await;
        self.context.profiles.close().await;
    }
}
