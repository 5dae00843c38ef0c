//! Finds the event at which a live item diverges from the log, by reading the log once more
//! for the differing items only.

use std::collections::{BTreeMap, BTreeSet};

use qiyu_fanout::fold::Effect;
use qiyu_nats::{Bus, log::LogEntry};
use qiyu_schema::{MsgId, Partition, event::Record};
use serde::Serialize;

use super::{
    compare::ComparedItem,
    key::{ItemKey, PartitionState},
    rebuild::{Observer, RebuiltFolds},
};

/// Items whose divergence is searched. A broken projection differs in everything.
const DIVERGENCES_MAX: usize = 50;

/// The point at which an item diverges from the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub(super) enum Divergence {
    /// It agrees with the log until this event, the first it does not follow.
    At { event: MsgId, subject: String, at_ms: u64 },
    /// It never agreed with the log; this is the last event about it.
    Never { event: MsgId, subject: String, at_ms: u64 },
    /// It never agreed with the log, and no event is about it.
    #[serde(rename = "unheard")]
    NoEvent,
}

/// Finds the divergences of `differing`, up to [`DIVERGENCES_MAX`].
pub(super) async fn find_divergences(
    bus: &Bus,
    differing: &BTreeMap<ItemKey, ComparedItem>,
    at_ms: u64,
) -> anyhow::Result<BTreeMap<ItemKey, Divergence>> {
    let tracked: Vec<(ItemKey, ComparedItem)> =
        differing.iter().take(DIVERGENCES_MAX).map(|(key, pair)| (*key, pair.clone())).collect();
    let partitions: BTreeSet<Partition> = tracked.iter().map(|(key, _)| key.partition()).collect();
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let partitions: Vec<Partition> = partitions.into_iter().collect();
    let mut rebuilt = RebuiltFolds::begin(bus, &partitions).await?;
    let mut watching = DivergenceTracker { at_ms, tracks: Vec::new() };
    for (key, pair) in tracked {
        let Some(state) = rebuilt.state(key.partition()) else { continue };
        let before = key.expected(state, at_ms);
        let agrees = pair.agrees(before.as_ref());
        let (last, at) = (None, None);
        watching.tracks.push(ItemTrack { key, pair, before, agrees, ever: agrees, last, at });
    }
    rebuilt.advance(bus, &mut watching).await?;
    let parted = watching.tracks.into_iter().map(|track| (track.key, track.parted()));
    Ok(parted.collect())
}

struct DivergenceTracker {
    at_ms: u64,
    tracks: Vec<ItemTrack>,
}

struct ItemTrack {
    key: ItemKey,
    pair: ComparedItem,
    before: Option<String>,
    agrees: bool,
    ever: bool,
    /// The last event that changed it.
    last: Option<(MsgId, String, u64)>,
    /// The event after which they disagreed.
    at: Option<(MsgId, String, u64)>,
}

impl ItemTrack {
    fn parted(self) -> Divergence {
        match (self.ever, self.at, self.last) {
            (true, Some((event, subject, at_ms)), _) => Divergence::At { event, subject, at_ms },
            (_, _, Some((event, subject, at_ms))) => Divergence::Never { event, subject, at_ms },
            (_, _, None) => Divergence::NoEvent,
        }
    }
}

impl Observer for DivergenceTracker {
    fn before(&mut self, _: Partition, _: &PartitionState, _: &LogEntry, _: &Record) {}

    fn after(&mut self, state: &PartitionState, entry: &LogEntry, _: &[Effect]) {
        let partition = entry.partition();
        for track in &mut self.tracks {
            let beyond = 0 < track.pair.until && track.pair.until < entry.seq;
            if beyond || Some(track.key.partition()) != partition {
                continue;
            }
            let now = track.key.expected(state, self.at_ms);
            if now == track.before {
                continue;
            }
            let event = (entry.msg_id(), entry.subject.clone(), entry.written_ms);
            let agrees = track.pair.agrees(now.as_ref());
            if track.agrees && !agrees {
                track.at = Some(event.clone());
            }
            track.last = Some(event);
            (track.before, track.agrees, track.ever) = (now, agrees, track.ever || agrees);
        }
    }
}
