//! The metrics of fan-out.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use qiyu_schema::Partition;

/// Every metric of this crate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Partitions owned by this process.
    pub(crate) partitions: Gauge,
    /// Events folded.
    pub(crate) events: Counter,
    /// Envelopes handed to gateways.
    pub(crate) envelopes: Counter,
    /// Envelopes not handed over because the gateway's queue was full.
    pub(crate) skipped: Counter,
    /// Events set aside because they could not be understood.
    pub(crate) dead: Counter,
    /// Times an owner had to start again from its recorded position.
    pub(crate) restarts: Counter,
    /// Snapshots written.
    pub(crate) snapshots: Counter,
    /// Hand-overs that are not in the ledger.
    pub(crate) handovers_unrecorded: Counter,
    /// Partitions without an owner, as far as this process knows.
    pub(crate) unowned: Gauge,
    /// How far each partition owned here is behind.
    lags: Family<PartitionLabel, Gauge<f64, AtomicU64>>,
    /// Time from handing an envelope over to the queue's confirmation.
    handover: Handover,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabel {
    partition: String,
}

impl PartitionLabel {
    fn of(partition: Partition) -> Self {
        Self { partition: partition.to_string() }
    }
}

#[derive(Clone, Debug)]
struct Handover(Histogram);

impl Default for Handover {
    fn default() -> Self {
        // From a PubAck over loopback to an election.
        Self(Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]))
    }
}

impl Metrics {
    /// An owner is this far behind.
    pub(crate) fn is_behind(&self, partition: Partition, behind: Duration) {
        self.lags.get_or_create(&PartitionLabel::of(partition)).set(behind.as_secs_f64());
    }

    /// A partition is not owned here any more.
    pub(crate) fn has_left(&self, partition: Partition) {
        self.lags.remove(&PartitionLabel::of(partition));
    }

    /// How far the partitions owned here are behind.
    pub(crate) fn lags(&self) -> Vec<(Partition, Duration)> {
        let lag = |partition| {
            let seconds = self.lags.get(&PartitionLabel::of(partition))?.get();
            Some((partition, Duration::try_from_secs_f64(seconds).unwrap_or_default()))
        };
        Partition::all().filter_map(lag).collect()
    }

    /// An envelope was confirmed.
    pub(crate) fn handed_over(&self, took: Duration) {
        self.handover.0.observe(took.as_secs_f64());
    }

    pub(crate) fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let r = registry.sub_registry_with_prefix("qiyu_fanout");
        r.register("partitions", "Partitions owned by this process", m.partitions.clone());
        r.register("events", "Events folded", m.events.clone());
        r.register("envelopes", "Envelopes handed to gateways", m.envelopes.clone());
        r.register(
            "envelopes_skipped",
            "Envelopes not handed over because the gateway's queue was full",
            m.skipped.clone(),
        );
        r.register("events_dead", "Events set aside as not understandable", m.dead.clone());
        r.register(
            "restarts",
            "Times an owner started again from its recorded position",
            m.restarts.clone(),
        );
        r.register("snapshots", "Snapshots written", m.snapshots.clone());
        r.register(
            "handovers_unrecorded",
            "Hand-overs that are not in the ledger",
            m.handovers_unrecorded.clone(),
        );
        r.register(
            "partitions_unowned",
            "Partitions nobody owns, as far as this process knows",
            m.unowned.clone(),
        );
        r.register(
            "partition_lag_seconds",
            "How far each partition owned here is behind",
            m.lags.clone(),
        );
        r.register(
            "handover_duration_seconds",
            "Time from handing an envelope over to the queue's confirmation",
            m.handover.0.clone(),
        );
        m
    }
}
