//! What fan-out counts.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

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
}

impl Metrics {
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
        m
    }
}
