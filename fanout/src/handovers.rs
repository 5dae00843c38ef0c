//! Writing down what was handed to gateways, in batches, behind the deliveries.

use std::time::Duration;

use qiyu_nats::{Bus, chain, position::Claim, record::gather};
use qiyu_schema::ledger::{Handover, HandoverBatch};
use tokio::sync::mpsc;
use tracing::warn;

use crate::metrics::Metrics;

/// How long a line waits for company: at most fifty publishes a second,
/// whatever the number of partitions.
const BATCH_WAIT: Duration = Duration::from_millis(20);
/// Lines waiting to be written, 100 bytes each. While the bus is away nothing
/// new is handed over, so only one that is ill for long can fill it.
const LINES_MAX: usize = 65_536;
/// How long a batch is tried before it is given up.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);

/// Where owners note what they hand over. Deliveries never wait for it.
#[derive(Clone)]
pub(crate) struct Handovers {
    lines: mpsc::Sender<Handover>,
    metrics: Metrics,
}

/// The other end of it.
pub(crate) struct Lines(mpsc::Receiver<Handover>);

impl Handovers {
    pub(crate) fn new(metrics: Metrics) -> (Self, Lines) {
        let (lines, written) = mpsc::channel(LINES_MAX);
        (Self { lines, metrics }, Lines(written))
    }

    pub(crate) fn note(&self, line: Handover) {
        if self.lines.try_send(line).is_err() {
            self.metrics.handovers_unrecorded.inc();
        }
    }
}

/// Writes lines until nobody is left to note any.
pub(crate) async fn record(bus: Bus, by: Claim, mut lines: Lines, metrics: Metrics) {
    let mut number: u64 = 0;
    while let Some(first) = lines.0.recv().await {
        let handovers = gather(first, &mut lines.0, BATCH_WAIT).await;
        number += 1;
        let (worker, epoch, at_ms) = (by.worker.clone(), by.epoch, qiyu_nats::now_ms());
        let batch = HandoverBatch { worker, epoch, at_ms, handovers };
        let key = format!("han:{}:{number}", by.worker);
        let stored = bus.record_handovers(&by.worker, &batch, &key, RECORD_DEADLINE).await;
        if let Err(error) = stored {
            let lines = batch.handovers.len();
            metrics.handovers_unrecorded.inc_by(u64::try_from(lines).unwrap_or(u64::MAX));
            warn!(lines, error = %chain(&error), "what was handed over is not recorded");
        }
    }
}
