//! `qiyu up`: the whole system in one process, on a nats-server of its own.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
pub(crate) use qiyu_explain::terminal::progress as note;
use qiyu_nats::{
    bus,
    server::{self, ChildGuard, ChildServer, DataDir, NatsServer},
};
use qiyu_schema::Secret;
use rand::distr::{Alphanumeric, SampleString as _};
use tokio_util::sync::CancellationToken;

use crate::{
    run::{Foundation, Role, System, kept_gateway_id, profile_name, say},
    settings::Settings,
};

/// Characters of a login key we make: 380 random bits.
const JWT_SECRET_CHARS: usize = 64;

/// What is there before the first task starts.
#[derive(Debug)]
pub(crate) struct Ground {
    data: DataDir,
    /// None: NATS is somebody else's.
    binary: Option<NatsServer>,
}

impl Ground {
    /// Takes the data directory and has a nats-server ready, which may mean a
    /// download: it blocks, and Ctrl-C ends it at once.
    pub(crate) fn prepare(settings: &Settings) -> anyhow::Result<Self> {
        let data = DataDir::open(&settings.data_dir)?;
        let binary = match settings.nats_url {
            Some(_) => None,
            None => Some(server::find(settings.nats_server.as_deref(), &mut note)?),
        };
        Ok(Self { data, binary })
    }
}

/// Runs everything until `stop`, or until a part of it dies. Must be awaited
/// on the main thread: see [`ChildServer::start`].
pub(crate) async fn up(
    settings: &Settings,
    ground: Ground,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let Ground { data, binary } = ground;
    let starting = Up::start(settings, &data, binary.as_ref());
    let Some(up) = stop.run_until_cancelled(Box::pin(starting)).await else {
        return Ok(data.retract()?); // the child was killed as the start was dropped
    };
    let mut up = up?;
    let (greeting, ready) = (up.greeting(settings), up.system.becomes_ready(note));
    let life = async {
        ready.await;
        say(&greeting);
        std::future::pending().await
    };
    let ended = tokio::select! {
        biased; // a death during a stop is part of the stop
        () = stop.cancelled() => Ok(()),
        death = up.died() => Err(death),
        () = life => Ok(()),
    };
    match &ended {
        Ok(()) => up.stop().await,
        // Without one of its parts it cannot end in good order: it ends soon.
        Err(_) => {
            if tokio::time::timeout(DEATH_PATIENCE, up.stop()).await.is_err() {
                note("not everything has stopped; ending all the same");
            }
        }
    }
    data.retract()?;
    ended
}

/// How long the rest may take to stop after a part has died.
const DEATH_PATIENCE: Duration = Duration::from_secs(3);

/// A running system and what it stands on.
struct Up {
    system: System,
    child: Option<ChildServer>,
    /// Of NATS, without user and password.
    nats_shown: String,
}

impl Up {
    async fn start(
        settings: &Settings,
        data: &DataDir,
        binary: Option<&NatsServer>,
    ) -> anyhow::Result<Self> {
        let mut child = None;
        let mut nats_url = settings.nats_url.clone();
        if let Some(binary) = binary {
            let guard = ChildGuard::this_program().context("find this program's own path")?;
            let server =
                ChildServer::start(binary, data.path(), settings.profile, &guard, &mut note)
                    .await?;
            nats_url = Some(server.url().clone());
            child = Some(server);
        }
        let nats_url = nats_url.context("neither QIYU_NATS_URL nor a nats-server")?;
        data.announce(&nats_url).context("write nats.url in the data directory")?;
        let nats_shown = bus::redact_url(nats_url.expose());
        let profile = profile_name(settings.profile);
        let foundation = Foundation {
            gateway_id: match &settings.gateway_id {
                Some(id) => id.clone(),
                None => kept_gateway_id(data.path())?,
            },
            jwt_secret: Some(match &settings.jwt_secret {
                Some(secret) => secret.clone(),
                None => kept_jwt_secret(data.path())?,
            }),
            profile: match child {
                Some(_) => profile.to_owned(),
                None => format!("declared: {profile}"),
            },
            nats_url,
        };
        let verifies = settings.verify_every.is_some();
        let roles = Role::ALL.into_iter().filter(|role| *role != Role::Verify || verifies);
        let roles: Vec<Role> = roles.collect();
        let starting = Box::pin(System::start(&roles, settings, foundation));
        let started = tokio::select! {
            biased; // services wait long for a NATS that is gone: name the cause
            death = ended(&mut child) => Err(death),
            started = starting => started,
        };
        match started {
            Ok(system) => Ok(Self { system, child, nats_shown }),
            Err(error) => {
                stop_child(child).await;
                data.retract()?;
                Err(error)
            }
        }
    }

    /// People and black-box tests read this.
    fn greeting(&self, settings: &Settings) -> String {
        let mut text = format!("qiyu is up (Ctrl-C stops it)\n{}", self.system.listeners("page"));
        text += &format!("  {:<10} {}", "nats", self.nats_shown);
        if self.child.is_some() {
            text += &format!("   (data in {})", settings.data_dir.display());
        }
        text
    }

    /// Returns when a part has died, and says which. Cancel safe.
    async fn died(&mut self) -> anyhow::Error {
        tokio::select! {
            biased; // without NATS everything dies: name the cause
            death = ended(&mut self.child) => death,
            name = self.system.died() => anyhow!("{name} died; its last log lines tell why"),
        }
    }

    async fn stop(self) {
        self.system.stop().await;
        stop_child(self.child).await;
    }
}

/// Returns when a child there is has ended by itself.
async fn ended(child: &mut Option<ChildServer>) -> anyhow::Error {
    let Some(child) = child else { return std::future::pending().await };
    match child.ended().await {
        Ok(status) => anyhow!("nats-server ended by itself ({status}); see {:?}", child.log()),
        Err(error) => anyhow!(error).context("wait for nats-server"),
    }
}

async fn stop_child(child: Option<ChildServer>) {
    if let Some(child) = child
        && let Err(error) = child.stop().await
    {
        tracing::warn!(%error, "nats-server could not be stopped");
    }
}

/// The key of login tokens, made once: tokens survive a restart.
fn kept_jwt_secret(data_dir: &Path) -> anyhow::Result<Secret> {
    let path = data_dir.join("jwt-secret");
    let make = || Alphanumeric.sample_string(&mut rand::rng(), JWT_SECRET_CHARS);
    let kept =
        server::read_or_create_private(&path, make).with_context(|| format!("keep {path:?}"))?;
    Ok(Secret::new(kept))
}
