//! The role `verify`: verifies periodically and reports by metrics.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use qiyu_nats::Bus;
use qiyu_schema::Secret;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{GRACE, SystemState, VerifyScope, key::Projection, verify};

/// Minimum delay of the first verification after the start: the system may just have been
/// started, too.
const FIRST_AFTER: Duration = Duration::from_secs(5);
/// Random addition to it: two processes with this role should not read everything at the
/// same time.
const FIRST_SPREAD: Duration = Duration::from_secs(10);
/// Pause after a verification that could not check everything; doubled each time. The
/// owners or the database may be about to start.
const PARTIAL_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Settings of the role `verify`.
#[derive(Clone, Debug)]
pub struct WatchConfig {
    /// Database of the room tables.
    pub database_url: Secret,
    /// With `max_sends`: how long a message may be on its way.
    pub ack_wait: Duration,
    pub max_sends: u32,
    /// Time from the end of a verification to the next one.
    pub interval: Duration,
}

/// Verifies in the background until its token is cancelled.
#[derive(Debug)]
pub struct Watch(TaskTracker);

/// The coverage of one verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coverage {
    /// Everything could be checked.
    Whole,
    /// A part, or nothing, could be checked.
    InPart,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProjectionLabel {
    projection: &'static str,
}

qiyu_runtime::metrics! {
    prefix = "qiyu_verify";
    /// The metrics of the role.
    #[derive(Clone, Debug)]
    struct Metrics {
        differences: Family<ProjectionLabel, Gauge> =
            "Things that are not what the log says, as of when they were last checked";
        unchecked: Gauge = "Projections that could not be checked in the last verification";
        runs: Counter = "Verifications that came to an end";
        failures: Counter = "Verifications that broke off";
        last: Gauge as "last_seconds" =
            "When the last verification ended, since 1970; 0 before the first";
        took: Gauge<f64, AtomicU64> as "took_seconds" = "How long the last verification took";
        interval: Gauge<f64, AtomicU64> as "interval_seconds" =
            "Time from the end of a verification to the next one";
    }
}

impl Watch {
    /// Starts the first verification soon, and the next ones `interval` after an end.
    /// Each reads the whole log: suitable for every few minutes, not for every few
    /// seconds.
    pub fn start(
        config: WatchConfig,
        bus: &Bus,
        registry: &mut Registry,
        stop: CancellationToken,
    ) -> Self {
        let metrics = Metrics::register(registry);
        let every = config.interval;
        metrics.interval.set(every.as_secs_f64());
        let scope = VerifyScope {
            room: None,
            database_url: config.database_url.expose().to_owned(),
            running: SystemState::Running,
            grace: grace(config.ack_wait, config.max_sends),
        };
        let (tasks, bus) = (TaskTracker::new(), bus.clone());
        tasks.spawn(async move {
            let _alarm = stop.clone().drop_guard(); // its end must be noticed, because its metrics are relied on
            let (mut pauses, mut pause) = (Pauses::new(every), first_pause(every));
            let verifying = async {
                loop {
                    tokio::time::sleep(pause).await;
                    pause = pauses.after(Box::pin(once(&bus, &scope, &metrics)).await);
                }
            };
            stop.run_until_cancelled(verifying).await
        });
        tasks.close();
        Self(tasks)
    }

    /// Waits until it has stopped.
    pub async fn stopped(self) {
        self.0.wait().await;
    }
}

/// Returns the grace for every copy of a message, those of a reassignment, and as long
/// again.
fn grace(ack_wait: Duration, max_sends: u32) -> Duration {
    GRACE.max(ack_wait * max_sends * 4)
}

fn first_pause(every: Duration) -> Duration {
    let spread = FIRST_SPREAD.mul_f64(rand::random::<f64>());
    every.min(FIRST_AFTER + spread)
}

/// Computes the pause before the next verification.
#[derive(Debug)]
struct Pauses {
    every: Duration,
    again: Duration,
}

impl Pauses {
    fn new(every: Duration) -> Self {
        Self { every, again: PARTIAL_RETRY_INTERVAL }
    }

    fn after(&mut self, verified: Coverage) -> Duration {
        match verified {
            Coverage::Whole => {
                self.again = PARTIAL_RETRY_INTERVAL;
                self.every
            }
            Coverage::InPart => {
                let pause = self.again.min(self.every);
                self.again = pause * 2;
                pause
            }
        }
    }
}

async fn once(bus: &Bus, scope: &VerifyScope, metrics: &Metrics) -> Coverage {
    let started = Instant::now();
    let report = match verify(bus, scope).await {
        Ok(report) => report,
        Err(error) => {
            metrics.failures.inc();
            warn!(error = format!("{error:#}"), "verification broke off");
            return Coverage::InPart;
        }
    };
    // Projections that could not be checked keep their values.
    let checked = |projection: &Projection| !report.unchecked.contains_key(projection);
    for projection in Projection::ALL.into_iter().filter(checked) {
        let of_it = report.differences.iter().filter(|d| d.projection == projection).count();
        let of = ProjectionLabel { projection: projection.name() };
        metrics.differences.get_or_create(&of).set(of_it.try_into().unwrap_or(i64::MAX));
    }
    metrics.unchecked.set(report.unchecked.len().try_into().unwrap_or(i64::MAX));
    metrics.runs.inc();
    metrics.last.set((qiyu_nats::now_ms() / 1000).try_into().unwrap_or(i64::MAX));
    metrics.took.set(started.elapsed().as_secs_f64());
    for difference in &report.differences {
        let (projection, key) = (difference.projection.name(), &difference.key);
        warn!(projection, key, parted = ?difference.parted, "not what the log says; qiyu verify tells more");
    }
    for (projection, reason) in &report.unchecked {
        warn!(projection = projection.name(), reason, "not verified");
    }
    info!(differences = report.differences.len(), events = report.events, "verified");
    if report.unchecked.is_empty() { Coverage::Whole } else { Coverage::InPart }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_checked_is_tried_again_soon_and_then_less_and_less() {
        let mut pauses = Pauses::new(Duration::from_secs(100));
        let mut seconds = |verified| pauses.after(verified).as_secs();
        assert_eq!(seconds(Coverage::Whole), 100);
        let in_part = [(); 4].map(|()| seconds(Coverage::InPart));
        assert_eq!(in_part, [30, 60, 100, 100]);
        assert_eq!([Coverage::Whole, Coverage::InPart].map(seconds), [100, 30]);
    }

    #[test]
    fn an_outcome_is_missed_later_where_clients_have_longer_to_acknowledge() {
        assert_eq!(grace(Duration::from_secs(4), 2), GRACE);
        assert_eq!(grace(Duration::from_secs(30), 2), Duration::from_secs(240));
    }

    #[test]
    fn the_first_comes_soon_and_never_later_than_the_second_would() {
        for _ in 0..100 {
            assert_eq!(first_pause(Duration::from_secs(1)), Duration::from_secs(1));
            let soon = first_pause(Duration::from_secs(600));
            assert!(FIRST_AFTER <= soon && soon <= FIRST_AFTER + FIRST_SPREAD, "{soon:?}");
        }
    }
}
