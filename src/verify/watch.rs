//! Verifying from time to time, as metrics.

use std::time::{Duration, Instant};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use qiyu_nats::Bus;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{GRACE, Running, Scope, key::Projection, verify};
use crate::settings::Settings;

/// Verifies in the background until its token is cancelled.
#[derive(Debug)]
pub(crate) struct Watch(TaskTracker);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    projection: &'static str,
}

/// Every metric of it.
#[derive(Clone, Debug, Default)]
struct Metrics {
    /// Things that are not what the log says, in the last verification.
    differences: Family<Of, Gauge>,
    /// Projections that could not be checked in it.
    unchecked: Gauge,
    /// Verifications that came to an end.
    runs: Counter,
    /// Verifications that did not.
    failures: Counter,
    /// When the last one ended, seconds since 1970.
    last: Gauge,
    /// How long it took, milliseconds.
    took: Gauge,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let r = registry.sub_registry_with_prefix("qiyu_verify");
        r.register(
            "differences",
            "Things that are not what the log says, in the last verification",
            m.differences.clone(),
        );
        r.register("unchecked", "Projections that could not be checked in it", m.unchecked.clone());
        r.register("runs", "Verifications that came to an end", m.runs.clone());
        r.register("failures", "Verifications that did not", m.failures.clone());
        r.register("last_seconds", "When the last one ended, since 1970", m.last.clone());
        r.register("took_milliseconds", "How long it took", m.took.clone());
        m
    }
}

impl Watch {
    /// Begins to verify `every` so often. Cheap enough for every few minutes, not
    /// for every few seconds: each time the whole log is read.
    pub(crate) fn start(
        settings: &Settings,
        every: Duration,
        bus: &Bus,
        registry: &mut Registry,
        stop: CancellationToken,
    ) -> Self {
        let metrics = Metrics::register(registry);
        let scope = Scope {
            room: None,
            database_url: settings.database_url.expose().to_owned(),
            running: Running::Yes,
            grace: GRACE,
        };
        let (tasks, bus) = (TaskTracker::new(), bus.clone());
        tasks.spawn(async move {
            let _alarm = stop.clone().drop_guard(); // who looks at its metrics relies on it
            loop {
                if stop.run_until_cancelled(tokio::time::sleep(every)).await.is_none() {
                    return;
                }
                let verifying = Box::pin(once(&bus, &scope, &metrics));
                if stop.run_until_cancelled(verifying).await.is_none() {
                    return;
                }
            }
        });
        tasks.close();
        Self(tasks)
    }

    /// Waits until it has stopped.
    pub(crate) async fn stopped(self) {
        self.0.wait().await;
    }
}

async fn once(bus: &Bus, scope: &Scope, metrics: &Metrics) {
    let started = Instant::now();
    let report = match verify(bus, scope).await {
        Ok(report) => report,
        Err(error) => {
            metrics.failures.inc();
            return warn!(error = format!("{error:#}"), "verification broke off");
        }
    };
    for projection in Projection::ALL {
        let of_it = report.differences.iter().filter(|d| d.projection == projection).count();
        let of = Of { projection: projection.name() };
        metrics.differences.get_or_create(&of).set(of_it.try_into().unwrap_or(i64::MAX));
    }
    metrics.unchecked.set(report.unchecked.len().try_into().unwrap_or(i64::MAX));
    metrics.runs.inc();
    metrics.last.set((qiyu_nats::now_ms() / 1000).try_into().unwrap_or(i64::MAX));
    metrics.took.set(started.elapsed().as_millis().try_into().unwrap_or(i64::MAX));
    for difference in &report.differences {
        let (projection, key) = (difference.projection.name(), &difference.key);
        warn!(projection, key, parted = ?difference.parted, "not what the log says; qiyu verify tells more");
    }
    info!(differences = report.differences.len(), events = report.events, "verified");
}
