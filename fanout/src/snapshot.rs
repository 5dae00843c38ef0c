//! Snapshots of the fold: so that taking over a partition does not mean
//! reading its whole log, and so that state that the log has expired is kept.

use std::time::Duration;

use qiyu_nats::{Bus, bucket::BucketError, chain, log::ReadError, stream::BucketName};
use qiyu_schema::{Partition, codec};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use crate::{fold::Fold, metrics::Metrics};

/// A snapshot is due after this many events.
pub(crate) const SNAPSHOT_EVENTS: u64 = 20_000;
/// Or after this long, if anything happened.
pub(crate) const SNAPSHOT_EVERY: Duration = Duration::from_secs(60);

/// The newest snapshots kept, at any age.
const NEWEST_KEPT: usize = 3;
/// Of the older ones, one in each of these is kept as long as the log reaches.
const THINNED_TO_MS: u64 = 3600 * 1000;

/// Where a whole snapshot lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    position: u64,
    chunks: usize,
    at_ms: u64,
}

fn key(partition: Partition) -> String {
    format!("{partition}.snapshots")
}

/// A fold that cannot be had at the moment, or at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Which snapshots there are.
    #[error("read the list of snapshots")]
    List(#[from] BucketError),
    /// A snapshot, or the log's bounds. Not a reason to take an older one: what
    /// the log has forgotten meanwhile would be lost for good.
    #[error("read a snapshot")]
    Read(#[from] ReadError),
    /// The log no longer reaches back to where the last readable snapshot ends.
    #[error(
        "the log of {partition} begins at {first}, and no snapshot reaches that far: its rooms \
         and waiting messages cannot be known"
    )]
    Forgotten { partition: Partition, first: u64 },
}

/// The newest snapshot at or before `position`, and where it stands. An empty
/// fold at 0 if there never was one and the log is whole.
pub(crate) async fn load(
    bus: &Bus,
    partition: Partition,
    position: u64,
) -> Result<(u64, Fold), LoadError> {
    let slot = bus.bucket(BucketName::Positions).read(&key(partition)).await?;
    let heads = decoded(slot.value.as_deref());
    for head in heads.iter().rev().filter(|head| head.position <= position) {
        match bus.read_snapshot(partition, head.position, head.chunks).await? {
            Some(bytes) => match codec::decode(&bytes) {
                Ok(fold) => return Ok((head.position, fold)),
                // An older build wrote it otherwise: the log knows the same.
                Err(error) => {
                    warn!(%partition, position = head.position, error = %chain(&error), "snapshot unread")
                }
            },
            None => warn!(%partition, position = head.position, "snapshot incomplete"),
        }
    }
    // Events before the log's first were folded once, and their fold is gone.
    let (first, _) = bus.log_bounds().await?;
    if !heads.is_empty() && 1 < first {
        return Err(LoadError::Forgotten { partition, first });
    }
    Ok((0, Fold::default()))
}

/// Where the snapshots stand, oldest first.
pub(crate) async fn positions(bus: &Bus, partition: Partition) -> Result<Vec<u64>, BucketError> {
    let slot = bus.bucket(BucketName::Positions).read(&key(partition)).await?;
    Ok(decoded(slot.value.as_deref()).into_iter().map(|head| head.position).collect())
}

/// Where the newest snapshot stands, if there is one.
pub(crate) async fn newest(bus: &Bus, partition: Partition) -> Result<Option<u64>, BucketError> {
    let slot = bus.bucket(BucketName::Positions).read(&key(partition)).await?;
    Ok(decoded(slot.value.as_deref()).last().map(|head| head.position))
}

/// Writes `fold` as of `position`, then removes snapshots that are not needed any more.
pub(crate) async fn save(
    bus: Bus,
    partition: Partition,
    position: u64,
    fold: Fold,
    metrics: Metrics,
) {
    let encoded = tokio::task::spawn_blocking(move || codec::encode(&fold)).await;
    let bytes = match encoded {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return warn!(%partition, error = %chain(&error), "snapshot not encoded"),
        Err(error) => return warn!(%partition, error = %chain(&error), "snapshot not encoded"),
    };
    let size = bytes.len();
    let chunks = match bus.write_snapshot(partition, position, bytes).await {
        Ok(chunks) => chunks,
        Err(error) => return warn!(%partition, error = %chain(&error), "snapshot not written"),
    };
    let head = Head { position, chunks, at_ms: qiyu_nats::now_ms() };
    match record(&bus, partition, head).await {
        Ok(forgotten) => {
            metrics.snapshots.inc();
            info!(%partition, position, bytes = size, "snapshot written");
            for head in forgotten {
                if let Err(error) = bus.forget_snapshot(partition, head.position).await {
                    debug!(%partition, error = %chain(&error), "old snapshot not deleted");
                }
            }
        }
        Err(error) => warn!(%partition, error = %chain(&error), "snapshot not recorded"),
    }
}

/// Adds `head`; returns those that fell out. Whoever wrote it, a snapshot is a
/// function of its position, so a lost compare-and-set is simply tried again.
async fn record(bus: &Bus, partition: Partition, head: Head) -> Result<Vec<Head>, BucketError> {
    let (bucket, key) = (bus.bucket(BucketName::Positions), key(partition));
    let first = bus.log_bounds().await.map_or(0, |(first, _)| first);
    loop {
        let slot = bucket.read(&key).await?;
        let mut heads = decoded(slot.value.as_deref());
        heads.retain(|h| h.position != head.position);
        heads.push(head);
        heads.sort_unstable_by_key(|h| h.position);
        let (kept, forgotten) = thin(heads, first);
        let value = codec::encode(&kept).expect("plain data encodes");
        match bucket.set_if(&key, slot.revision, value, None).await {
            Ok(_) => return Ok(forgotten),
            Err(BucketError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Keeps the newest few, one an hour of the others, and always the newest one
/// that lies before the log's first event: it *is* the state that the log has expired.
fn thin(heads: Vec<Head>, log_first: u64) -> (Vec<Head>, Vec<Head>) {
    let base = heads.iter().rposition(|head| head.position < log_first).unwrap_or(0);
    let newest = heads.len().saturating_sub(NEWEST_KEPT);
    let mut last_hour = None;
    let mut index = 0;
    heads.into_iter().partition(|head| {
        let at = index;
        index += 1;
        if at < base {
            return false;
        }
        let hour = Some(head.at_ms / THINNED_TO_MS);
        let first_of_hour = last_hour != hour;
        last_hour = hour;
        at == base || newest <= at || first_of_hour
    })
}

fn decoded(value: Option<&[u8]>) -> Vec<Head> {
    value.and_then(|value| codec::decode(value).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64, minutes: u64) -> Head {
        Head { position, chunks: 1, at_ms: minutes * 60_000 }
    }

    #[test]
    fn the_newest_one_an_hour_and_the_forgotten_prefix_are_kept() {
        let heads = vec![
            at(10, 0),   // older than what is needed
            at(20, 30),  // the newest before the log's first event
            at(30, 61),  // first of its hour
            at(40, 62),  // thinned out
            at(50, 121), // first of its hour, and the newest three follow
            at(60, 122),
            at(70, 123),
        ];
        let (kept, forgotten) = thin(heads, 25);
        let positions = |heads: &[Head]| heads.iter().map(|h| h.position).collect::<Vec<_>>();
        assert_eq!(positions(&kept), [20, 30, 50, 60, 70]);
        assert_eq!(positions(&forgotten), [10, 40]);
    }
}
