//! Access to the log of a system: of a running one, or of a data directory
//! whose nats-server is started for as long as the tool runs.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use qiyu_nats::{
    Bus, BusConfig, Profile, bus,
    server::{self, ChildGuard, ChildServer, DataDir},
};
use qiyu_schema::Secret;
use tokio::time::timeout;

use crate::terminal;

/// Time in which a running NATS must answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Lowest priority, for machines that also run services. At normal priority,
/// a tool that read everything at full speed delayed messages by a factor of five.
const NICENESS: i32 = 19;

/// Lowers the priority of this process. Must be called before further threads exist.
pub fn lower_priority() {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "priority not lowered");
    }
}

/// Where the log lies and how its streams are configured.
#[derive(Clone, Debug)]
pub struct LogAccessConfig {
    /// `None`: the system on `data_dir`.
    pub nats_url: Option<Secret>,
    pub data_dir: PathBuf,
    /// `None`: found on the PATH or in the cache.
    pub nats_server: Option<PathBuf>,
    pub replicas: usize,
    pub retain: Duration,
    pub ack_wait: Duration,
    pub profile: Profile,
}

/// A connection to the log, with the nats-server that was started for it, if any.
pub struct LogAccess {
    pub bus: Bus,
    /// The NATS URL without user and password.
    pub shown_url: String,
    child: Option<ChildServer>,
    _data: Option<DataDir>,
}

impl LogAccess {
    /// Connects to `nats_url`, else to the system on `data_dir`. Must be awaited
    /// on the main thread: see [`ChildServer::start`].
    ///
    /// # Errors
    ///
    /// When no NATS answers, when it holds no log, or when the data directory is empty.
    pub async fn connect(config: &LogAccessConfig) -> anyhow::Result<Self> {
        if let Some(url) = &config.nats_url {
            return Self::open(config, url.clone(), None, None).await;
        }
        let dir = &config.data_dir;
        let running = server::running_url(dir);
        if let Some(url) = running.with_context(|| format!("look into {}", dir.display()))? {
            return Self::open(config, url, None, None).await;
        }
        if !server::holds_data(dir) {
            bail!(
                "there is no data of a qiyu in {}; name its directory with --data-dir, or its \
                 NATS with --nats-url",
                dir.display()
            );
        }
        let data = DataDir::open(dir)?;
        let binary = server::find(config.nats_server.as_deref(), &mut terminal::progress)?;
        let guard = ChildGuard::this_program().context("find this program's own path")?;
        let (path, profile) = (data.path(), config.profile);
        let child =
            ChildServer::start(&binary, path, profile, &guard, &mut terminal::progress).await?;
        let url = child.url().clone();
        Self::open(config, url, Some(child), Some(data)).await
    }

    async fn open(
        config: &LogAccessConfig,
        url: Secret,
        child: Option<ChildServer>,
        data: Option<DataDir>,
    ) -> anyhow::Result<Self> {
        let shown_url = bus::redact_url(url.expose());
        let config = BusConfig {
            url,
            name: "qiyu tool".to_owned(),
            replicas: config.replicas,
            retain: config.retain,
            ack_wait: config.ack_wait,
            profile: config.profile,
        };
        let connected = timeout(CONNECT_TIMEOUT, Bus::connect(&config)).await;
        let bus = connected.with_context(|| format!("no NATS answers at {shown_url}"))??;
        let log = bus.log_bounds().await;
        log.with_context(|| format!("the NATS at {shown_url} holds no log of a qiyu"))?;
        Ok(Self { bus, shown_url, child, _data: data })
    }

    /// Whether services may be running on this log: its NATS ran before the tool.
    pub fn is_running(&self) -> bool {
        self.child.is_none()
    }

    /// Closes the connection and stops the nats-server that was started for it.
    pub async fn close(self) {
        // The connection first: the server need not wait for it to end.
        self.bus.close().await;
        if let Some(child) = self.child
            && let Err(error) = child.stop().await
        {
            tracing::warn!(%error, "nats-server could not be stopped");
        }
    }
}
