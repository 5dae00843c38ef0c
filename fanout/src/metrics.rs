//! The metrics of fan-out.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use qiyu_runtime::metrics::{Latency, LatencyBounds};
use qiyu_schema::Partition;

qiyu_runtime::metrics! {
    prefix = "qiyu_fanout";
    /// The metrics of this crate.
    #[derive(Clone, Debug)]
    pub(crate) struct Metrics {
        pub(crate) partitions: Gauge = "Partitions owned by this process";
        pub(crate) events: Counter = "Events folded";
        pub(crate) envelopes: Counter = "Envelopes handed to gateways";
        pub(crate) skipped: Counter as "envelopes_skipped" =
            "Envelopes not handed over because the gateway's queue was full";
        pub(crate) dead: Counter as "events_dead" = "Events set aside as not understandable";
        pub(crate) restarts: Counter = "Times an owner started again from its recorded position";
        pub(crate) snapshots: Counter = "Snapshots written";
        pub(crate) handovers_unrecorded: Counter = "Hand-overs that are not in the ledger";
        pub(crate) unowned: Gauge as "partitions_unowned" =
            "Partitions nobody owns, as far as this process knows";
        lags: Family<PartitionLabel, Gauge<f64, AtomicU64>> as "partition_lag_seconds" =
            "How far each partition owned here is behind";
        handover: Latency<EnqueueBounds> as "handover_duration_seconds" =
            "Time from handing an envelope over to the queue's confirmation";
    }
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

/// The bounds of the time until a gateway's queue confirms an envelope: from a
/// PubAck over loopback to an election.
#[derive(Debug)]
pub(crate) struct EnqueueBounds;

impl LatencyBounds for EnqueueBounds {
    const SECONDS: &'static [f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
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
        self.handover.observe(took);
    }
}
