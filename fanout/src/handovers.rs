//! Records the dispatches to gateways in the ledger, in batches, behind the deliveries.

use std::time::Duration;

use qiyu_nats::{Bus, chain, ledger_stream::collect_batch, position::Claim};
use qiyu_schema::ledger::{Dispatch, DispatchBatch};
use tokio::sync::mpsc;
use tracing::warn;

use crate::metrics::Metrics;

/// How long a line waits for company: at most fifty publishes a second,
/// for any number of partitions.
const BATCH_WAIT: Duration = Duration::from_millis(20);
/// Lines waiting to be written, 100 bytes each. While the bus is away nothing
/// new is handed over, so only one that is ill for long can fill it.
const LINES_MAX: usize = 65_536;
/// How long a batch is tried before it is given up.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);

/// Collects the dispatches of all owners. Deliveries never wait for it.
#[derive(Clone)]
pub(crate) struct Handovers {
    lines: mpsc::Sender<Dispatch>,
    metrics: Metrics,
}

/// The other end of it.
pub(crate) struct Lines(mpsc::Receiver<Dispatch>);

impl Handovers {
    pub(crate) fn new(metrics: Metrics) -> (Self, Lines) {
        let (lines, written) = mpsc::channel(LINES_MAX);
        (Self { lines, metrics }, Lines(written))
    }

    pub(crate) fn note(&self, line: Dispatch) {
        if self.lines.try_send(line).is_err() {
            self.metrics.handovers_unrecorded.inc();
        }
    }
}

/// Writes dispatches until the last sender is dropped.
pub(crate) async fn record(bus: Bus, by: Claim, mut lines: Lines, metrics: Metrics) {
    let mut number: u64 = 0;
    while let Some(first) = lines.0.recv().await {
        let dispatches = collect_batch(first, &mut lines.0, BATCH_WAIT).await;
        number += 1;
        let (worker, epoch, at_ms) = (by.worker.clone(), by.epoch, qiyu_nats::now_ms());
        let batch = DispatchBatch { worker, epoch, at_ms, dispatches };
        let key = format!("han:{}:{number}", by.worker);
        let stored = bus.record_dispatches(&by.worker, &batch, &key, RECORD_DEADLINE).await;
        if let Err(error) = stored {
            let lines = batch.dispatches.len();
            metrics.handovers_unrecorded.inc_by(u64::try_from(lines).unwrap_or(u64::MAX));
            warn!(lines, error = %chain(&error), "what was handed over is not recorded");
        }
    }
}
