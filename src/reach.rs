//! The bus a tool looks at: a running system's, or that of a system which does
//! not run, whose nats-server is then started for as long as somebody looks.

use std::time::Duration;

use anyhow::{Context as _, bail};
use qiyu_nats::{
    Bus, BusConfig, bus,
    server::{self, ChildServer, DataDir, Guard},
};
use qiyu_schema::Secret;
use tokio::time::timeout;

use crate::{settings::Settings, up::note};

/// How long a running NATS may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Below the processes that serve people, where they share a machine: without
/// it, reading everything at full speed made a message five times as late.
const NICENESS: i32 = 19;

/// Lets whoever serves people go first. Must be called before further threads are made.
pub(crate) fn step_back() {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "priority not lowered");
    }
}

/// A bus to look at.
pub(crate) struct Reached {
    pub(crate) bus: Bus,
    /// Where, without user and password.
    pub(crate) shown: String,
    child: Option<ChildServer>,
    _data: Option<DataDir>,
}

impl Reached {
    /// The bus of `--nats-url`, else that of the system on `--data-dir`. Must be
    /// awaited on the main thread: see [`ChildServer::start`].
    pub(crate) async fn reach(settings: &Settings) -> anyhow::Result<Self> {
        if let Some(url) = &settings.nats_url {
            return Self::at(settings, url.clone(), None, None).await;
        }
        let dir = &settings.data_dir;
        let running = server::running_url(dir);
        if let Some(url) = running.with_context(|| format!("look into {}", dir.display()))? {
            return Self::at(settings, url, None, None).await;
        }
        if !server::holds_data(dir) {
            bail!(
                "there is no data of a qiyu in {}; name its directory with --data-dir, or its \
                 NATS with --nats-url",
                dir.display()
            );
        }
        let data = DataDir::open(dir)?;
        let binary = server::find(settings.nats_server.as_deref(), &mut note)?;
        let guard = Guard::this_program().context("find this program's own path")?;
        let (path, profile) = (data.path(), settings.profile);
        let child = ChildServer::start(&binary, path, profile, &guard, &mut note).await?;
        let url = child.url().clone();
        Self::at(settings, url, Some(child), Some(data)).await
    }

    async fn at(
        settings: &Settings,
        url: Secret,
        child: Option<ChildServer>,
        data: Option<DataDir>,
    ) -> anyhow::Result<Self> {
        let shown = bus::shown(url.expose());
        let config = BusConfig {
            url,
            name: "qiyu tool".to_owned(),
            replicas: settings.replicas,
            retain: settings.retain,
            ack_wait: settings.ack_wait,
            profile: settings.profile,
        };
        let connected = timeout(PATIENCE, Bus::connect(&config)).await;
        let bus = connected.with_context(|| format!("no NATS answers at {shown}"))??;
        let log = bus.log_bounds().await;
        log.with_context(|| format!("the NATS at {shown} holds no log of a qiyu"))?;
        Ok(Self { bus, shown, child, _data: data })
    }

    /// Whether a system may be at work on it: its NATS was there before us.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_none()
    }

    /// Ends what was started for looking.
    pub(crate) async fn leave(self) {
        // First, so that the server need not wait for us.
        self.bus.close().await;
        if let Some(child) = self.child
            && let Err(error) = child.stop().await
        {
            tracing::warn!(%error, "nats-server could not be stopped");
        }
    }
}
