//! What this process goes through with NATS, counted.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge},
    registry::Registry,
};

use crate::{bus::Bus, lease, stream::BucketName};

/// What a connection to NATS is for; see [`crate::bus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Appends and envelopes.
    Publish,
    /// Pulls.
    Consume,
    /// Buckets, commands, management.
    Control,
    /// Leases.
    Lease,
}

impl Purpose {
    /// As NATS and the metrics show it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
            Self::Control => "control",
            Self::Lease => "lease",
        }
    }
}

/// Label of what is counted by connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ConnectionLabel {
    connection: &'static str,
}

impl From<Purpose> for ConnectionLabel {
    fn from(purpose: Purpose) -> Self {
        Self { connection: purpose.as_str() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeaseLabel {
    lease: &'static str,
}

/// Every metric of this crate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Connections that broke.
    pub(crate) disconnects: Family<ConnectionLabel, Counter>,
    /// Times NATS messages were dropped because this process read too slowly.
    pub(crate) dropped: Counter,
    /// Appends tried again because no confirmation came.
    pub(crate) retries: Counter,
    pub(crate) leases: Leases,
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        // From the start at 0: who looks for an increase would miss the first one.
        for purpose in [Purpose::Publish, Purpose::Consume, Purpose::Control, Purpose::Lease] {
            drop(self.disconnects.get_or_create(&purpose.into()));
        }
        registry.register(
            "disconnects",
            "Connections to NATS that broke, by what they are for",
            self.disconnects.clone(),
        );
        registry.register(
            "dropped",
            "Times NATS messages were dropped because this process read too slowly",
            self.dropped.clone(),
        );
        registry.register(
            "retries",
            "Appends tried again because no confirmation came",
            self.retries.clone(),
        );
    }
}

/// The leases this process holds, so that their ages can be told when asked:
/// an age written down by whoever renews would stand still with it.
#[derive(Clone, Default)]
pub(crate) struct Leases(Arc<Mutex<Vec<Held>>>);

type Held = (BucketName, Weak<lease::Shared>);

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leases").field(&self.0.lock().len()).finish()
    }
}

impl Leases {
    /// A lease was taken.
    pub(crate) fn add(&self, bucket: BucketName, lease: &Arc<lease::Shared>) {
        let mut leases = self.0.lock();
        leases.retain(|(_, lease)| 0 < lease.strong_count()); // few, and few ever die
        leases.push((bucket, Arc::downgrade(lease)));
    }

    /// How long ago each was renewed; the freshest of its kind, because the
    /// lease of a life that is over ages on beside the next one's.
    pub(crate) fn ages(&self) -> BTreeMap<&'static str, Duration> {
        let mut ages = BTreeMap::new();
        for (bucket, lease) in self.0.lock().iter() {
            if let Some(age) = lease.upgrade().and_then(|lease| lease.age_unless_lost()) {
                let kept = ages.entry(bucket.as_str()).or_insert(age);
                *kept = age.min(*kept);
            }
        }
        ages
    }
}

/// What is looked at when somebody asks.
struct Looked(Bus);

impl fmt::Debug for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Collector for Looked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Whether the connection to NATS is up, by what it is for";
        let mut family = encoder.encode_descriptor("connected", help, None, MetricType::Gauge)?;
        for (connection, up) in self.0.connections() {
            let labels = ConnectionLabel::from(connection);
            ConstGauge::new(i64::from(up)).encode(family.encode_family(&labels)?)?;
        }
        let (name, help) = ("lease_age_seconds", "Time since a lease of this process was renewed");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (lease, age) in self.0.metrics.leases.ages() {
            let labels = LeaseLabel { lease };
            ConstGauge::new(age.as_secs_f64()).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Bus {
    /// How long ago each kind of lease this process holds was renewed.
    pub fn lease_ages(&self) -> BTreeMap<&'static str, Duration> {
        self.metrics.leases.ages()
    }

    /// Makes what is measured of this process's dealings with NATS readable.
    pub fn register(&self, registry: &mut Registry) {
        let nats = registry.sub_registry_with_prefix("qiyu_nats");
        self.metrics.register(nats);
        nats.register_collector(Box::new(Looked(self.clone())));
    }
}
