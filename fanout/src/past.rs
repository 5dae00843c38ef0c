//! The fold as it was at any position the log still reaches: from the nearest
//! snapshot before it, and the events between.

use qiyu_nats::{
    Bus,
    bucket::BucketError,
    log::{ReadError, ReadFrom},
};
use qiyu_schema::{AppId, Partition, subject};

use crate::{
    fold::Fold,
    snapshot::{self, LoadError},
};

/// Why the past cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// Snapshots could not be read.
    #[error("find a snapshot of {partition} at or before sequence {position}")]
    Snapshot {
        /// Which partition.
        partition: Partition,
        /// As of when.
        position: u64,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The log could not be read.
    #[error("read the log of {partition}")]
    Read {
        /// Which partition.
        partition: Partition,
        /// Why.
        source: ReadError,
    },
    /// Events between the snapshot and the log's beginning are gone.
    #[error(
        "what {partition} was at sequence {position} is forgotten: its snapshot ends at {base}, \
         and the log begins at {first}"
    )]
    Forgotten {
        /// Which partition.
        partition: Partition,
        /// As of when.
        position: u64,
        /// Where the nearest snapshot stands.
        base: u64,
        /// The log's first sequence.
        first: u64,
    },
}

/// The fold of everything in `partition` up to and with `position`.
///
/// # Errors
///
/// [`PastError`].
pub async fn fold_at(bus: &Bus, partition: Partition, position: u64) -> Result<Fold, PastError> {
    let (base, mut fold) = base(bus, partition, position).await?;
    let filter = subject::partition(partition);
    follow(bus, partition, filter, base, position, &mut fold).await?;
    Ok(fold)
}

/// A fold that knows the measures against users in the whole app as of
/// `position`, and of everything else only what a snapshot knew.
///
/// # Errors
///
/// [`PastError`].
pub async fn measures_at(
    bus: &Bus,
    app: AppId,
    partition: Partition,
    position: u64,
) -> Result<Fold, PastError> {
    let (base, mut fold) = base(bus, partition, position).await?;
    let filter = subject::user_sanctions_in(partition, app);
    follow(bus, partition, filter, base, position, &mut fold).await?;
    Ok(fold)
}

/// Where the log's memory begins: the snapshot that is what the log has
/// forgotten, else nothing at all. With the sequence it stands at.
///
/// # Errors
///
/// [`PastError`].
pub async fn beginning(bus: &Bus, partition: Partition) -> Result<(u64, Fold), PastError> {
    let bounds = bus.log_bounds().await;
    let (first, _) = bounds.map_err(|source| PastError::Read { partition, source })?;
    let positions = snapshots(bus, partition).await?;
    // Before the log's first event, or the oldest there is: better than nothing.
    let before = positions.iter().rev().find(|position| **position < first);
    match before.or(positions.first()) {
        Some(position) if 1 < first => {
            let failed = |error: LoadError| PastError::Snapshot {
                partition,
                position: *position,
                source: error.into(),
            };
            snapshot::load(bus, partition, *position).await.map_err(failed)
        }
        _ => Ok((0, Fold::default())),
    }
}

/// Where the partition's snapshots stand, oldest first.
///
/// # Errors
///
/// [`PastError::Snapshot`].
pub async fn snapshots(bus: &Bus, partition: Partition) -> Result<Vec<u64>, PastError> {
    let listed = snapshot::positions(bus, partition).await;
    listed.map_err(|error| PastError::Snapshot { partition, position: 0, source: error.into() })
}

/// The fold of the snapshot at exactly `position`; `None`: it cannot be read (any more).
///
/// # Errors
///
/// [`PastError::Snapshot`].
pub async fn snapshot_at(
    bus: &Bus,
    partition: Partition,
    position: u64,
) -> Result<Option<Fold>, PastError> {
    let failed =
        |error: LoadError| PastError::Snapshot { partition, position, source: error.into() };
    match snapshot::load(bus, partition, position).await {
        Ok((at, fold)) => Ok((at == position).then_some(fold)),
        Err(error) => Err(failed(error)),
    }
}

async fn base(bus: &Bus, partition: Partition, position: u64) -> Result<(u64, Fold), PastError> {
    let failed = |source| PastError::Snapshot { partition, position, source };
    let loaded = snapshot::load(bus, partition, position).await;
    let (base, fold) = loaded.map_err(|error: LoadError| failed(error.into()))?;
    let newest = snapshot::newest(bus, partition).await;
    let newest = newest.map_err(|error: BucketError| failed(error.into()))?;
    let bounds = bus.log_bounds().await;
    let (first, _) = bounds.map_err(|source| PastError::Read { partition, source })?;
    // Behind the newest snapshot nothing is forgotten: it is made within a minute
    // of any event, and the log remembers an hour at least.
    if base + 1 < first && newest.is_some_and(|newest| base < newest) {
        return Err(PastError::Forgotten { partition, position, base, first });
    }
    Ok((base, fold))
}

async fn follow(
    bus: &Bus,
    partition: Partition,
    filter: String,
    after: u64,
    until: u64,
    fold: &mut Fold,
) -> Result<(), PastError> {
    let failed = |source| PastError::Read { partition, source };
    if until <= after {
        return Ok(());
    }
    let reader = bus.read_history(vec![filter], ReadFrom::After(after)).await.map_err(failed)?;
    let mut reader = reader.to_present_end();
    while let Some(entry) = reader.next().await.map_err(failed)? {
        if until < entry.seq {
            break;
        }
        // An unreadable event was set aside by the owner of the partition, too.
        if let Ok(record) = entry.record() {
            fold.apply(entry.msg_id(), record);
        }
    }
    reader.close().await;
    Ok(())
}
