//! The metrics of this crate.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
};

qiyu_runtime::metrics! {
    prefix = "qiyu_living";
    /// The metrics of this crate.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Metrics {
        pub(crate) opened: Counter as "rooms_opened" = "Rooms opened through this process";
        pub(crate) closed: Counter as "rooms_closed" = "Rooms closed through this process";
        pub(crate) sanctions: Counter as "measures_taken" =
            "Measures taken against users through this process";
        pub(crate) claims_void: Counter =
            "Claims of an anchor taken over because no opening followed them";
        pub(crate) refreshes_failed: Counter as "list_refreshes_failed" =
            "Refreshes of the list that failed; the old list was kept";
        pub(crate) replays_failed: Counter =
            "Attempts to apply an event of the log that failed and were repeated";
        pub(crate) found_without_database: Counter =
            "Rooms answered for without the database, which was away";
        pub(crate) cache: Family<CacheLabel, Counter> as "cache_questions" =
            "Questions to the shared cache, by what was asked and how that ended";
    }
}

/// The labels of [`Metrics::cache`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CacheLabel {
    pub(crate) what: CacheQuery,
    pub(crate) outcome: CacheOutcome,
}

/// The kind of a query to the shared cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum CacheQuery {
    Room,
    List,
}

/// The outcome of a query to the shared cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum CacheOutcome {
    Hit,
    /// The database was read.
    Miss,
    /// The cache did not answer, or not as expected; the database was read.
    Failed,
    /// The cache was not queried, because it had failed a moment before; the database was read.
    Skipped,
}

impl Metrics {
    /// Counts a query to the shared cache.
    pub(crate) fn cache_queried(&self, what: CacheQuery, outcome: CacheOutcome) {
        self.cache.get_or_create(&CacheLabel { what, outcome }).inc();
    }
}
