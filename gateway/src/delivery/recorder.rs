//! Recording outcomes, in batches, before their envelopes are acknowledged.

use std::time::Duration;

use qiyu_nats::{Bus, chain, ledger_stream::LedgerKind, outbox::AckHandle, trace_context::Span};
use qiyu_schema::{
    Incarnation,
    ledger::{BATCH_NAMES_MAX, LedgerBatch, OUTCOMES_MAX, Outcome, Via},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, field, warn};

use super::{handle::DeliveryHandle, ids::QueuePosition, input::Input};
use crate::metrics::Metrics;

/// How long an outcome waits for others.
const BATCH_WAIT: Duration = Duration::from_millis(20);
/// The pause after a failure that waiting cannot mend, so that it is no busy loop.
const RECORD_BACKOFF: Duration = Duration::from_secs(1);
/// How long one attempt to write a batch may take.
const RECORD_TIMEOUT: Duration = Duration::from_secs(10);

/// Work for the recorder.
pub(crate) enum RecorderRequest {
    Record(ResolvedDelivery),
    /// Acknowledge an envelope that needs no record, or has one.
    Acknowledge(AckHandle),
}

/// A delivery after its last recipient was resolved.
pub(crate) struct ResolvedDelivery {
    pub(super) outcome: Outcome,
    /// `None`: it has no envelope.
    pub(super) envelope: Option<(QueuePosition, AckHandle)>,
    pub(super) span: Span,
}

/// Records outcomes and acknowledges envelopes.
pub(crate) struct Recorder {
    pub(crate) bus: Bus,
    pub(crate) gateway: Incarnation,
    pub(crate) delivery: DeliveryHandle,
    pub(crate) metrics: Metrics,
}

impl Recorder {
    /// Runs until `stop`, then records all deliveries that are resolved already.
    ///
    /// The channel has no limit of its own: it holds envelopes that are delivered
    /// and not acknowledged, and the queue's consumer limits those.
    pub(crate) async fn run(
        self,
        mut requests: mpsc::UnboundedReceiver<RecorderRequest>,
        stop: CancellationToken,
    ) {
        let mut last_batch: u64 = 0;
        loop {
            let first = tokio::select! {
                biased;
                request = requests.recv() => request,
                // Last: resolved deliveries are recorded first.
                () = stop.cancelled() => return,
            };
            match first {
                None => return,
                Some(RecorderRequest::Acknowledge(ack)) => self.bus.ack(&ack).await,
                Some(RecorderRequest::Record(first)) => {
                    let batch = self.collect_batch(first, &mut requests).await;
                    if !self.record(&batch, &mut last_batch, &stop).await {
                        return; // unrecorded, so unacknowledged: the reaper recovers the queue
                    }
                    self.acknowledge(batch).await;
                }
            }
        }
    }

    /// Collects the resolved deliveries of the next 20 ms, as far as they fit.
    async fn collect_batch(
        &self,
        first: ResolvedDelivery,
        requests: &mut mpsc::UnboundedReceiver<RecorderRequest>,
    ) -> Vec<ResolvedDelivery> {
        let mut names = first.names();
        let mut batch = vec![first];
        let wait = tokio::time::sleep(BATCH_WAIT);
        tokio::pin!(wait);
        while batch.len() < OUTCOMES_MAX && names < BATCH_NAMES_MAX {
            tokio::select! {
                biased;
                Some(request) = requests.recv() => match request {
                    RecorderRequest::Acknowledge(ack) => self.bus.ack(&ack).await,
                    RecorderRequest::Record(resolved) => {
                        names += resolved.names();
                        batch.push(resolved);
                    }
                },
                () = &mut wait => break,
            }
        }
        batch
    }

    /// Writes a batch to the ledger, resumes apart from the others. Returns
    /// `false` only if it was stopped meanwhile.
    async fn record(
        &self,
        batch: &[ResolvedDelivery],
        last_batch: &mut u64,
        stop: &CancellationToken,
    ) -> bool {
        let outcomes = batch.iter().map(|resolved| resolved.outcome.clone());
        let (resumes, others): (Vec<Outcome>, Vec<Outcome>) =
            outcomes.partition(|outcome| outcome.via == Via::Resume);
        for (outcomes, kind) in [(others, LedgerKind::Outcomes), (resumes, LedgerKind::Resumes)] {
            *last_batch += 1;
            if !outcomes.is_empty() && !self.write(outcomes, kind, *last_batch, stop).await {
                return false;
            }
        }
        true
    }

    async fn write(
        &self,
        outcomes: Vec<Outcome>,
        kind: LedgerKind,
        number: u64,
        stop: &CancellationToken,
    ) -> bool {
        let (bus, gateway) = (&self.bus, &self.gateway);
        let at_ms = qiyu_nats::now_ms();
        let record = LedgerBatch { gateway: gateway.clone(), at_ms, outcomes };
        let key = format!("led:{gateway}:{number}");
        loop {
            let stored = match kind {
                LedgerKind::Resumes => {
                    bus.record_resumes(&gateway.id, &record, &key, RECORD_TIMEOUT).await
                }
                _ => bus.record_outcomes(&gateway.id, &record, &key, RECORD_TIMEOUT).await,
            };
            let Err(error) = stored else { return true };
            warn!(%gateway, error = %chain(&error), "outcomes not recorded yet, their envelopes stay unacknowledged");
            if stop.run_until_cancelled(tokio::time::sleep(RECORD_BACKOFF)).await.is_none() {
                return false;
            }
        }
    }

    /// Acknowledges the envelopes of a recorded batch, and tells the delivery task.
    async fn acknowledge(&self, batch: Vec<ResolvedDelivery>) {
        let mut positions = Vec::with_capacity(batch.len());
        for ResolvedDelivery { outcome, envelope, mut span } in batch {
            span.set_attribute("qiyu.acknowledged", || outcome.acknowledged.to_string());
            span.set_attribute("qiyu.given_up", || outcome.given_up.to_string());
            let (msg_id, room) = (outcome.msg_id, outcome.room.map(field::display));
            debug!(%msg_id, room, "message settled");
            self.metrics.envelopes_pending.dec();
            if let Some((position, ack)) = envelope {
                self.bus.ack(&ack).await;
                positions.push(position);
            }
        }
        if !positions.is_empty() {
            self.delivery.apply(Input::OutcomesRecorded { positions }).await;
        }
    }
}

impl ResolvedDelivery {
    /// Returns the number of connections that its outcome names.
    fn names(&self) -> usize {
        self.outcome.exceptions.len() + self.outcome.lagging_recipients.len()
    }
}
