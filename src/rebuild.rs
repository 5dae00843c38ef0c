//! `qiyu rebuild`: the tables about rooms, made anew from the log of a running system.

use std::time::Duration;

use anyhow::{Context as _, bail};
use qiyu_living::Rebuilt;
use qiyu_nats::{Bus, BusConfig, bus, server};
use qiyu_schema::Secret;
use tokio::time::timeout;

use crate::{run::say, settings::Settings};

/// How long a running NATS may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the tables anew and tells what became of them.
pub(crate) async fn rebuild(settings: &Settings) -> anyhow::Result<()> {
    let url = nats_url(settings)?;
    let shown = bus::redact_url(url.expose());
    let config = BusConfig {
        url,
        name: "qiyu rebuild".to_owned(),
        replicas: settings.replicas,
        retain: settings.retain,
        ack_wait: settings.ack_wait,
        profile: settings.profile,
    };
    let connected = timeout(PATIENCE, Bus::connect(&config)).await;
    let bus = connected.with_context(|| format!("no NATS answers at {shown}"))??;
    let (database, redis) = (settings.database_url.expose(), settings.redis_url.as_ref());
    let rebuilt = qiyu_living::rebuild(database, redis, &bus).await;
    bus.close().await;
    let Rebuilt { open, closed, retired, position } = rebuilt?;
    let database = qiyu_runtime::url::redact_url(database);
    say(&format!(
        "rebuilt {database} from the log at {shown}\n  open     {open}\n  closed   {closed}\n  \
         retired  {retired}\n  position {position}"
    ));
    Ok(())
}

/// The NATS that was named, else that of the system running on the data directory.
fn nats_url(settings: &Settings) -> anyhow::Result<Secret> {
    if let Some(url) = &settings.nats_url {
        return Ok(url.clone());
    }
    let dir = settings.data_dir.display();
    let running = server::running_url(&settings.data_dir);
    match running.with_context(|| format!("look into {dir}"))? {
        Some(url) => Ok(url),
        None => bail!(
            "no qiyu runs on {dir}, so there is no log to read; start it, name another directory \
             with --data-dir, or a NATS with --nats-url"
        ),
    }
}
