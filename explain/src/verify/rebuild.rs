//! Applies the log to new folds.

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use qiyu_fanout::{
    fold::Effect,
    past::{self, PastError},
};
use qiyu_nats::{
    Bus,
    log::{LogEntry, ReadFrom},
};
use qiyu_schema::{MsgId, Partition, event::Record, subject};

use super::key::PartitionState;

/// Gaps of the log that are remembered; one is bad enough.
const GAPS_MAX: usize = 50;
/// Partitions whose first states are read concurrently.
const CONCURRENT_READS_MAX: usize = 16;

/// The folds of some partitions, as far as the log has been read.
pub(super) struct RebuiltFolds {
    partitions: HashMap<Partition, RebuiltPartition>,
    /// The last applied sequence.
    read: u64,
    /// Gaps between the log's first event and its last: (first, last) of each.
    gaps: Vec<(u64, u64)>,
}

struct RebuiltPartition {
    state: PartitionState,
    /// The sequence of its first state, which includes everything before.
    base: u64,
}

/// Observes events as they are applied.
pub(super) trait Observer {
    /// Called before an event is applied.
    fn before(
        &mut self,
        partition: Partition,
        state: &PartitionState,
        entry: &LogEntry,
        record: &Record,
    );
    /// Called after an event was applied, with its effects.
    fn after(&mut self, state: &PartitionState, entry: &LogEntry, effects: &[Effect]);
}

/// Observes nothing.
pub(super) struct NoObserver;

impl Observer for NoObserver {
    fn before(&mut self, _: Partition, _: &PartitionState, _: &LogEntry, _: &Record) {}
    fn after(&mut self, _: &PartitionState, _: &LogEntry, _: &[Effect]) {}
}

impl RebuiltFolds {
    /// Starts at the beginning of the log.
    pub(super) async fn begin(bus: &Bus, partitions: &[Partition]) -> anyhow::Result<Self> {
        let begun: Vec<(Partition, RebuiltPartition)> = stream::iter(partitions.to_vec())
            .map(|partition| async move {
                let (base, fold) = past::beginning(bus, partition).await?;
                let state = PartitionState { fold, ..PartitionState::default() };
                Ok::<_, PastError>((partition, RebuiltPartition { state, base }))
            })
            .buffer_unordered(CONCURRENT_READS_MAX)
            .try_collect()
            .await?;
        let read = begun.iter().map(|(_, begun)| begun.base).min().unwrap_or(0);
        Ok(Self { partitions: begun.into_iter().collect(), read, gaps: Vec::new() })
    }

    /// Applies the events up to the log's current end. Returns their number.
    pub(super) async fn advance(
        &mut self,
        bus: &Bus,
        observer: &mut impl Observer,
    ) -> anyhow::Result<u64> {
        let whole = self.is_whole();
        let partitions: Vec<Partition> = self.partitions.keys().copied().collect();
        let filters = subject::partitions(&partitions);
        let (first, _) = bus.log_bounds().await?;
        let reader = bus.read_history(filters, ReadFrom::After(self.read)).await?;
        let (mut reader, mut events) = (reader.to_end_at_opening(), 0);
        while let Some(entry) = reader.next().await? {
            let expected = self.read.max(first.saturating_sub(1)) + 1; // the log forgets its oldest
            if whole && expected < entry.seq && self.gaps.len() < GAPS_MAX {
                self.gaps.push((expected, entry.seq - 1));
            }
            self.read = entry.seq;
            let Some(partition) = entry.partition() else { continue };
            let Some(rebuilding) = self.partitions.get_mut(&partition) else { continue };
            if entry.seq <= rebuilding.base {
                continue;
            }
            events += 1;
            let Ok(record) = entry.record() else { continue }; // set aside by its owner, too
            observer.before(partition, &rebuilding.state, &entry, &record);
            rebuilding.state.note(entry.msg_id(), &record);
            let effects = rebuilding.state.fold.apply(entry.msg_id(), record);
            observer.after(&rebuilding.state, &entry, &effects.unwrap_or_default());
        }
        reader.close().await;
        // Events that were deleted by age meanwhile are no gap.
        let (first, _) = bus.log_bounds().await?;
        self.gaps.retain(|(missing, _)| first <= *missing);
        Ok(events)
    }

    /// Whether it covers the whole log.
    pub(super) fn is_whole(&self) -> bool {
        self.partitions.len() == Partition::all().count()
    }

    /// Returns the gaps of the log: (first, last) of each. Known only for the whole
    /// log.
    pub(super) fn gaps(&self) -> &[(u64, u64)] {
        &self.gaps
    }

    pub(super) fn state(&self, partition: Partition) -> Option<&PartitionState> {
        self.partitions.get(&partition).map(|rebuilding| &rebuilding.state)
    }

    pub(super) fn states(&self) -> impl Iterator<Item = &PartitionState> {
        self.partitions.values().map(|rebuilding| &rebuilding.state)
    }

    /// Returns the last applied event.
    pub(super) fn position(&self) -> MsgId {
        MsgId::at(self.read)
    }
}
