//! The metrics that are computed when they are scraped: connection states and
//! lease ages.

use std::{collections::BTreeMap, fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};

use crate::{bus::Bus, metrics::ConnectionLabel};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeaseLabel {
    lease: &'static str,
}

#[derive(Debug)]
struct BusCollector(Bus);

impl Collector for BusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Whether the connection to NATS is up, by what it is for";
        let mut family = encoder.encode_descriptor("connected", help, None, MetricType::Gauge)?;
        for (connection, up) in self.0.connections() {
            let labels = ConnectionLabel::from(connection);
            ConstGauge::new(i64::from(up)).encode(family.encode_family(&labels)?)?;
        }
        let (name, help) = ("lease_age_seconds", "Time since a lease of this process was renewed");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (lease, age) in self.0.lease_ages() {
            let labels = LeaseLabel { lease };
            ConstGauge::new(age.as_secs_f64()).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Bus {
    /// Returns the time since each kind of lease of this process was renewed.
    pub fn lease_ages(&self) -> BTreeMap<&'static str, Duration> {
        self.metrics.lease_ages.ages()
    }

    /// Registers the metrics of this process's traffic with NATS.
    pub fn register(&self, registry: &mut Registry) {
        let nats = registry.sub_registry_with_prefix("qiyu_nats");
        self.metrics.register(nats);
        nats.register_collector(Box::new(BusCollector(self.clone())));
    }
}
