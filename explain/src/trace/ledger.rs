//! What the ledger tells of a message.

use std::time::Duration;

use qiyu_nats::{
    Bus,
    record::{LedgerEntry, LedgerPage, Shelf},
    stream::OUTBOX_AGE_MAX,
};
use qiyu_schema::ledger::Via;

use super::{
    after::millis,
    life::{Dispatch, HandedOver, Life, Reading, Settled, Way, What},
};

/// How long after it was handed over an envelope's outcome is looked for: while
/// it may lie in a queue, and as long again as its copies may take.
const OUTCOME_HORIZON: Duration = Duration::from_secs(OUTBOX_AGE_MAX.as_secs() + 300);
/// And for how long at least, even when all that is expected has been found:
/// what was sent beside its envelope ends later.
const OUTCOME_AFTERMATH: Duration = Duration::from_secs(60);
/// The log's and the ledger's times are of one server, but taken one after the other.
const BEFORE: Duration = Duration::from_secs(1);

/// Looks for everything about the message.
pub(super) async fn look(bus: &Bus, life: &mut Life) -> anyhow::Result<()> {
    for (from_ms, until_ms) in windows(life) {
        look_between(bus, from_ms, until_ms, life).await?;
    }
    // Few, and perhaps a day late: read to the end.
    let mut reader = bus.read_ledger(&[Shelf::Resumes, Shelf::Reads], life.stored_ms).await?;
    while let Some(entry) = reader.next().await? {
        note(entry, life);
    }
    reader.close().await;
    life.outcomes.sort_by_key(|settled| settled.at_ms);
    life.handovers.sort_by_key(|handover| handover.at_ms);
    Ok(())
}

/// The times around which something was handed over, none inside another.
fn windows(life: &Life) -> Vec<(u64, u64)> {
    let mut starts: Vec<u64> = life.dispatches.iter().map(|dispatch| dispatch.at_ms).collect();
    starts.push(life.stored_ms);
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
    life: &mut Life,
) -> anyhow::Result<()> {
    let here = |dispatch: &&Dispatch| (from_ms..=until_ms).contains(&dispatch.at_ms);
    let latest = life.dispatches.iter().filter(here).map(|d| d.at_ms).max().unwrap_or(from_ms);
    let at_least_ms = latest.saturating_add(millis(OUTCOME_AFTERMATH));
    let mut reader = bus.read_ledger(&[Shelf::Outcomes, Shelf::Handovers], from_ms).await?;
    loop {
        let Some(entry) = reader.next().await? else {
            life.searched.ledger_until_ms = qiyu_nats::now_ms();
            break;
        };
        let done = at_least_ms < entry.stored_ms && is_settled(life, from_ms, until_ms);
        if done || until_ms < entry.stored_ms {
            break;
        }
        life.searched.ledger_until_ms = entry.stored_ms;
        note(entry, life);
    }
    reader.close().await;
    Ok(())
}

/// Whether every envelope of this window has an outcome, or never will.
fn is_settled(life: &Life, from_ms: u64, until_ms: u64) -> bool {
    let dispatches = life.dispatches.iter().filter(|d| (from_ms..=until_ms).contains(&d.at_ms));
    dispatches.into_iter().all(|dispatch| {
        let ended = |settled: &Settled| {
            let apart = |s: &Settled| s.gateway == dispatch.to && s.outcome.via == Via::Lagging;
            settled.answers(dispatch)
                && (settled.outcome.lagging == 0 || life.outcomes.iter().any(apart))
        };
        life.gone(&dispatch.to).is_some() || life.outcomes.iter().any(ended)
    })
}

fn note(entry: LedgerEntry, life: &mut Life) {
    match entry.page {
        LedgerPage::Outcomes(batch) => {
            let about = batch.outcomes.into_iter().filter(|o| o.msg_id == life.msg_id);
            for outcome in about {
                let (gateway, at_ms) = (batch.gateway.clone(), entry.stored_ms);
                life.outcomes.push(Settled { gateway, at_ms, outcome });
            }
        }
        LedgerPage::Handovers(batch) => {
            let about = batch.handovers.into_iter().filter(|h| h.msg_id == life.msg_id);
            life.handovers.extend(about.map(|handover| HandedOver {
                worker: batch.worker.clone(),
                epoch: batch.epoch,
                at_ms: entry.stored_ms,
                to: handover.to,
                how: handover.how,
                because: handover.because,
            }));
        }
        LedgerPage::Reads(batch) => {
            for page in batch.pages {
                let on_it = page.app == life.app && (page.first..=page.last).contains(&life.msg_id);
                let way = match life.what {
                    What::Said { room, biz_code: CHAT } if page.room == Some(room) => Way::History,
                    What::Whispered { to, .. } if page.room.is_none() && page.user == to => {
                        Way::OfflinePull
                    }
                    _ => continue,
                };
                // What had been acknowledged before does not wait any more.
                let taken = life.taken.as_ref();
                let gone = way == Way::OfflinePull
                    && taken.is_some_and(|taken| taken.at_ms <= entry.stored_ms);
                if on_it && !gone {
                    let (user, at_ms) = (page.user, entry.stored_ms);
                    life.readings.push(Reading { user, at_ms, way });
                }
            }
        }
    }
}

/// What `/im/history` shows.
const CHAT: i32 = 5555;
