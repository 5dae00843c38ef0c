//! Reports of how far fan-out is behind, once a second. Gateways and api derive
//! [`Backpressure`](crate::backpressure::Backpressure) from them.

use std::time::Duration;

use futures_util::StreamExt;

use crate::bus::Bus;
use qiyu_schema::{codec, id::Partition};

const PREFIX: &str = "im.lag.";
/// The subject of all partitions' reports.
const ALL: &str = "im.lag.*";

impl Bus {
    /// Reports the lag of a partition. A report may be lost: the next one follows.
    pub async fn report_lag(&self, partition: Partition, behind: Duration) {
        let behind_ms = u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        if let Ok(payload) = codec::encode(&behind_ms)
            && self.is_connected()
        {
            self.publish_and_forget(format!("{PREFIX}{partition}"), payload).await;
        }
    }

    /// Subscribes to the reports of all partitions.
    ///
    /// # Errors
    ///
    /// Fails when the connection is closed.
    pub async fn lag_reports(&self) -> Result<LagReports, async_nats::SubscribeError> {
        Ok(LagReports(self.consume.client().subscribe(ALL).await?))
    }
}

/// The reports of all partitions.
#[derive(Debug)]
pub struct LagReports(async_nats::Subscriber);

impl LagReports {
    /// Returns the next report; `None` when the bus is closed.
    pub async fn next(&mut self) -> Option<(Partition, Duration)> {
        loop {
            let message = self.0.next().await?;
            let partition = message.subject.strip_prefix(PREFIX).and_then(|p| p.parse().ok());
            let behind = codec::decode::<u64>(&message.payload).ok();
            if let (Some(partition), Some(behind_ms)) = (partition, behind) {
                return Some((partition, Duration::from_millis(behind_ms)));
            }
        }
    }
}
