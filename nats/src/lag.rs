//! How far fan-out is behind, told once a second: the brake between the log,
//! which takes whatever comes, and those who have to deliver it.

use std::time::Duration;

use futures_util::StreamExt;

use crate::bus::Bus;
use qiyu_schema::{codec, id::Partition};

/// Every partition's reports.
const ALL: &str = "im.lag.*";

fn subject(partition: Partition) -> String {
    format!("im.lag.{partition}")
}

impl Bus {
    /// Reports how far a partition is behind. May be lost: the next report follows.
    pub async fn report_lag(&self, partition: Partition, behind: Duration) {
        let behind_ms = u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        if let Ok(payload) = codec::encode(&behind_ms)
            && self.is_connected()
        {
            self.publish_and_forget(subject(partition), payload).await;
        }
    }

    /// Listens to the reports of all partitions.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn lag_reports(&self) -> Result<LagReports, async_nats::SubscribeError> {
        Ok(LagReports(self.consume.client().subscribe(ALL).await?))
    }
}

/// The reports of all partitions.
#[derive(Debug)]
pub struct LagReports(async_nats::Subscriber);

impl LagReports {
    /// The next report; `None` when the bus is closed.
    pub async fn next(&mut self) -> Option<(Partition, Duration)> {
        loop {
            let message = self.0.next().await?;
            let partition = message.subject.rsplit('.').next().and_then(|p| p.parse().ok());
            let behind = codec::decode::<u64>(&message.payload).ok();
            if let (Some(partition), Some(behind_ms)) = (partition, behind) {
                return Some((partition, Duration::from_millis(behind_ms)));
            }
        }
    }
}
