//! Writing outcomes down, in batches, before their envelopes are acknowledged.

use std::{sync::Arc, time::Duration};

use qiyu_nats::{Bus, chain, ledger_stream::LedgerKind};
use qiyu_schema::{
    Incarnation,
    ledger::{BATCH_NAMES_MAX, LedgerBatch, OUTCOMES_MAX},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, field, warn};

use crate::{delivery::in_flight::Entry, metrics::Metrics};

/// How long an outcome waits for company.
const BATCH_WAIT: Duration = Duration::from_millis(20);
/// After a failure that waiting cannot mend, so that it is no busy loop.
const RECORD_RETRY: Duration = Duration::from_secs(1);
/// How long one batch is tried before it is tried anew.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);

/// Records settled entries until `stop`, then what is left.
///
/// The channel has no bound of its own: what is in it was delivered and not
/// acknowledged, and the queue's consumer bounds that.
pub(crate) async fn record_settled(
    bus: Bus,
    gateway: Incarnation,
    mut settled: mpsc::UnboundedReceiver<Arc<Entry>>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut number: u64 = 0;
    let mut batch: Vec<Arc<Entry>> = Vec::with_capacity(OUTCOMES_MAX);
    loop {
        let first = tokio::select! {
            biased;
            entry = settled.recv() => entry,
            // Last: what is settled already is still recorded.
            () = stop.cancelled() => return,
        };
        let Some(first) = first else { return };
        batch.push(first);
        let more = tokio::time::sleep(BATCH_WAIT);
        tokio::pin!(more);
        let mut names = batch.iter().map(|entry| entry.names()).sum::<usize>();
        while batch.len() < OUTCOMES_MAX && names < BATCH_NAMES_MAX {
            tokio::select! {
                biased;
                Some(entry) = settled.recv() => {
                    names += entry.names();
                    batch.push(entry);
                }
                () = &mut more => break,
            }
        }
        let (resumed, others): (Vec<Arc<Entry>>, Vec<Arc<Entry>>) =
            batch.iter().cloned().partition(|entry| entry.is_resumed());
        for (entries, shelf) in [(others, LedgerKind::Outcomes), (resumed, LedgerKind::Resumes)] {
            number += 1;
            if !entries.is_empty() && !write(&bus, &gateway, number, &entries, shelf, &stop).await {
                return; // unrecorded, so unacknowledged: whoever takes the queue over sees to it
            }
        }
        for entry in batch.drain(..) {
            entry.note_recorded();
            let (msg_id, room) = (entry.msg_id, entry.room.map(field::display));
            debug!(%msg_id, room, "message settled");
            metrics.envelopes_pending.dec();
            if let Some(ack) = entry.ack() {
                bus.ack(&ack).await;
            }
        }
    }
}

/// Whether it is recorded; `false` only when told to stop meanwhile.
async fn write(
    bus: &Bus,
    gateway: &Incarnation,
    number: u64,
    batch: &[Arc<Entry>],
    shelf: LedgerKind,
    stop: &CancellationToken,
) -> bool {
    let outcomes = batch.iter().map(|entry| entry.outcome()).collect();
    let at_ms = qiyu_nats::now_ms();
    let record = LedgerBatch { gateway: gateway.clone(), at_ms, outcomes };
    let key = format!("led:{gateway}:{number}");
    loop {
        let stored = match shelf {
            LedgerKind::Resumes => {
                bus.record_resumes(&gateway.id, &record, &key, RECORD_DEADLINE).await
            }
            _ => bus.record_outcomes(&gateway.id, &record, &key, RECORD_DEADLINE).await,
        };
        let Err(error) = stored else { return true };
        warn!(%gateway, error = %chain(&error), "outcomes not recorded yet, their envelopes stay unacknowledged");
        if stop.run_until_cancelled(tokio::time::sleep(RECORD_RETRY)).await.is_none() {
            return false;
        }
    }
}
