//! How far the owner of a partition has come, as the bucket `positions` holds it.

use serde::{Deserialize, Serialize};

use crate::{bucket::BucketError, bus::Bus, stream::BucketName};
use qiyu_schema::{
    codec,
    id::{Partition, WorkerId},
};

/// Who owns a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The worker.
    pub worker: WorkerId,
    /// Which life of it, ms since 1970.
    pub epoch: u64,
}

/// Everything up to here is folded, and what follows from it handed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// The sequence of the last such event.
    pub seq: u64,
    /// Who says so.
    pub by: Claim,
}

/// The key of a partition's position.
pub fn key(partition: Partition) -> String {
    partition.to_string()
}

impl Bus {
    /// How far a partition is folded and handed over; 0: not at all yet.
    ///
    /// # Errors
    ///
    /// When the bucket does not answer.
    pub async fn position(&self, partition: Partition) -> Result<u64, BucketError> {
        let slot = self.bucket(BucketName::Positions).read(&key(partition)).await?;
        let position = slot.value.as_deref().and_then(|v| codec::decode::<Position>(v).ok());
        Ok(position.map_or(0, |position| position.seq))
    }
}
