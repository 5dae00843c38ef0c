//! Every number this crate counts.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

/// The counters. A doc comment is the help text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Rooms opened through this process.
    pub(crate) opened: Counter,
    /// Rooms closed through this process.
    pub(crate) closed: Counter,
    /// Claims of an anchor taken over because no opening followed them.
    pub(crate) claims_void: Counter,
    /// Measures taken against users through this process.
    pub(crate) measures: Counter,
    /// Refreshes of the list that failed; the old list was kept.
    pub(crate) refreshes_failed: Counter,
    /// Attempts to apply an event of the log that failed and were repeated.
    pub(crate) replays_failed: Counter,
}

impl Metrics {
    pub(crate) fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let living = registry.sub_registry_with_prefix("qiyu_living");
        living.register(
            "rooms_opened",
            "Rooms opened through this process",
            metrics.opened.clone(),
        );
        living.register(
            "rooms_closed",
            "Rooms closed through this process",
            metrics.closed.clone(),
        );
        living.register(
            "measures_taken",
            "Measures taken against users through this process",
            metrics.measures.clone(),
        );
        living.register(
            "claims_void",
            "Claims of an anchor taken over because no opening followed them",
            metrics.claims_void.clone(),
        );
        living.register(
            "list_refreshes_failed",
            "Refreshes of the list that failed; the old list was kept",
            metrics.refreshes_failed.clone(),
        );
        living.register(
            "replays_failed",
            "Attempts to apply an event of the log that failed and were repeated",
            metrics.replays_failed.clone(),
        );
        metrics
    }
}
