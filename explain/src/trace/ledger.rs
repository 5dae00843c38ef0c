//! Reads the ledger's records of a message.

use std::time::Duration;

use qiyu_nats::{
    Bus,
    ledger_stream::{LedgerEntry, LedgerKind, LedgerRecord},
    stream::OUTBOX_AGE_MAX,
};
use qiyu_schema::ledger::Via;

use super::{
    follow::millis,
    message::{
        GatewayOutcome, HttpRead, MessageKind, MessageTrace, PlannedDelivery, ReadPath,
        RecordedDispatch,
    },
};

/// Time after a dispatch in which its outcome is searched: the time an envelope may stay in
/// a queue, and as long again for its copies.
const OUTCOME_HORIZON: Duration = Duration::from_secs(OUTBOX_AGE_MAX.as_secs() + 300);
/// Minimum of that time, also when every expected outcome has been found: messages sent
/// without an envelope end later.
const OUTCOME_AFTERMATH: Duration = Duration::from_secs(60);
/// Tolerance between the times of log and ledger: both are of one server, but not taken
/// together.
const BEFORE: Duration = Duration::from_secs(1);

/// Reads all records about the message.
pub(super) async fn look(bus: &Bus, trace: &mut MessageTrace) -> anyhow::Result<()> {
    for (from_ms, until_ms) in windows(trace) {
        look_between(bus, from_ms, until_ms, trace).await?;
    }
    // These are few, and may come a day late: read to the end.
    let mut reader =
        bus.read_ledger(&[LedgerKind::Resumes, LedgerKind::Reads], trace.stored_ms).await?;
    while let Some(entry) = reader.next().await? {
        note(entry, trace);
    }
    reader.close().await;
    trace.outcomes.sort_by_key(|settled| settled.at_ms);
    trace.handovers.sort_by_key(|handover| handover.at_ms);
    Ok(())
}

/// Returns the time ranges around the dispatches, merged where they overlap.
fn windows(trace: &MessageTrace) -> Vec<(u64, u64)> {
    let mut starts: Vec<u64> = trace.dispatches.iter().map(|dispatch| dispatch.at_ms).collect();
    starts.push(trace.stored_ms);
    starts.sort_unstable();
    let mut windows: Vec<(u64, u64)> = Vec::new();
    for start in starts {
        let (from, until) =
            (start.saturating_sub(millis(BEFORE)), start.saturating_add(millis(OUTCOME_HORIZON)));
        match windows.last_mut() {
            Some((_, last)) if from <= *last => *last = until,
            _ => windows.push((from, until)),
        }
    }
    windows
}

async fn look_between(
    bus: &Bus,
    from_ms: u64,
    until_ms: u64,
    trace: &mut MessageTrace,
) -> anyhow::Result<()> {
    let here = |dispatch: &&PlannedDelivery| (from_ms..=until_ms).contains(&dispatch.at_ms);
    let latest = trace.dispatches.iter().filter(here).map(|d| d.at_ms).max().unwrap_or(from_ms);
    let at_least_ms = latest.saturating_add(millis(OUTCOME_AFTERMATH));
    let mut reader =
        bus.read_ledger(&[LedgerKind::Outcomes, LedgerKind::Dispatches], from_ms).await?;
    loop {
        let Some(entry) = reader.next().await? else {
            trace.searched.ledger_until_ms = qiyu_nats::now_ms();
            break;
        };
        let done = at_least_ms < entry.stored_ms && is_settled(trace, from_ms, until_ms);
        if done || until_ms < entry.stored_ms {
            break;
        }
        trace.searched.ledger_until_ms = entry.stored_ms;
        note(entry, trace);
    }
    reader.close().await;
    Ok(())
}

/// Whether every envelope of this range has an outcome, or never will.
fn is_settled(trace: &MessageTrace, from_ms: u64, until_ms: u64) -> bool {
    let dispatches = trace.dispatches.iter().filter(|d| (from_ms..=until_ms).contains(&d.at_ms));
    dispatches.into_iter().all(|dispatch| {
        let ended = |settled: &GatewayOutcome| {
            let apart =
                |s: &GatewayOutcome| s.gateway == dispatch.to && s.outcome.via == Via::Lagging;
            settled.answers(dispatch)
                && (settled.outcome.lagging == 0 || trace.outcomes.iter().any(apart))
        };
        trace.gone(&dispatch.to).is_some() || trace.outcomes.iter().any(ended)
    })
}

fn note(entry: LedgerEntry, trace: &mut MessageTrace) {
    match entry.record {
        LedgerRecord::Outcomes(batch) => {
            let about = batch.outcomes.into_iter().filter(|o| o.msg_id == trace.msg_id);
            for outcome in about {
                let (gateway, at_ms) = (batch.gateway.clone(), entry.stored_ms);
                trace.outcomes.push(GatewayOutcome { gateway, at_ms, outcome });
            }
        }
        LedgerRecord::Dispatches(batch) => {
            let about = batch.dispatches.into_iter().filter(|h| h.msg_id == trace.msg_id);
            trace.handovers.extend(about.map(|handover| RecordedDispatch {
                worker: batch.worker.clone(),
                epoch: batch.epoch,
                at_ms: entry.stored_ms,
                to: handover.to,
                how: handover.kind,
                because: handover.cause,
            }));
        }
        LedgerRecord::Reads(batch) => {
            for page in batch.pages {
                let on_it =
                    page.app == trace.app && (page.first..=page.last).contains(&trace.msg_id);
                let way = match trace.kind {
                    MessageKind::Room { room, biz_code: CHAT } if page.room == Some(room) => {
                        ReadPath::History
                    }
                    MessageKind::Direct { to, .. } if page.room.is_none() && page.user == to => {
                        ReadPath::OfflinePull
                    }
                    _ => continue,
                };
                // A message that was acknowledged before does not wait any
                // more.
                let taken = trace.taken.as_ref();
                let gone = way == ReadPath::OfflinePull
                    && taken.is_some_and(|taken| taken.at_ms <= entry.stored_ms);
                if on_it && !gone {
                    let (user, at_ms) = (page.user, entry.stored_ms);
                    trace.readings.push(HttpRead { user, at_ms, way });
                }
            }
        }
    }
}

/// The business code that `/im/history` shows.
const CHAT: i32 = 5555;
