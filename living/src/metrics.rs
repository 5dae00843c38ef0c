//! Every number this crate counts.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

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
    /// Rooms answered for without the database, which was away.
    pub(crate) found_without_database: Counter,
    /// Questions to the shared cache, by what was asked and how that ended.
    pub(crate) cache: Family<CacheLabel, Counter>,
}

/// Label of [`Metrics::cache`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CacheLabel {
    pub(crate) what: What,
    pub(crate) outcome: Outcome,
}

/// What the shared cache was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum What {
    /// One room.
    Room,
    /// The lists.
    List,
}

/// How a question to the shared cache ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Outcome {
    /// It knew.
    Hit,
    /// It did not; the database was read.
    Miss,
    /// It did not answer, or not as it should; the database was read.
    Failed,
    /// It was not asked, because it had failed a moment before; likewise.
    Skipped,
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
        living.register(
            "found_without_database",
            "Rooms answered for without the database, which was away",
            metrics.found_without_database.clone(),
        );
        living.register(
            "cache_questions",
            "Questions to the shared cache, by what was asked and how that ended",
            metrics.cache.clone(),
        );
        metrics
    }

    /// A question to the shared cache has ended.
    pub(crate) fn asked(&self, what: What, outcome: Outcome) {
        self.cache.get_or_create(&CacheLabel { what, outcome }).inc();
    }
}
