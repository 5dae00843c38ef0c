//! The metrics of the connections to NATS.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::lease_ages::LeaseAges;

/// The kind of traffic of one connection to NATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Appends and envelopes.
    Publish,
    /// Pulls.
    Consume,
    /// Buckets, commands, stream management.
    Control,
    /// Renewals of one lease.
    Lease,
}

impl Purpose {
    const ALL: [Self; 4] = [Self::Publish, Self::Consume, Self::Control, Self::Lease];

    /// Returns the name that NATS and the metrics display.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
            Self::Control => "control",
            Self::Lease => "lease",
        }
    }
}

/// The label of a metric per connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ConnectionLabel {
    connection: &'static str,
}

impl From<Purpose> for ConnectionLabel {
    fn from(purpose: Purpose) -> Self {
        Self { connection: purpose.as_str() }
    }
}

/// Every metric of this crate. They count from the first connection on, and are
/// registered later.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) disconnects: Family<ConnectionLabel, Counter>,
    pub(crate) dropped: Counter,
    pub(crate) retries: Counter,
    pub(crate) lease_ages: LeaseAges,
}

impl Metrics {
    /// Registers the counters, with every label value at 0: a query for an
    /// increase would miss the first one otherwise.
    pub(crate) fn register(&self, registry: &mut Registry) {
        for purpose in Purpose::ALL {
            drop(self.disconnects.get_or_create(&purpose.into()));
        }
        let help = "Connections to NATS that broke, by what they are for";
        registry.register("disconnects", help, self.disconnects.clone());
        let help = "Times NATS messages were dropped because this process read too slowly";
        registry.register("dropped", help, self.dropped.clone());
        let help = "Appends tried again because no confirmation came";
        registry.register("retries", help, self.retries.clone());
    }
}
