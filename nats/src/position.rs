//! The owner of a partition and its position, as the bucket `positions` holds them.

use serde::{Deserialize, Serialize};

use crate::{bucket::BucketError, bus::Bus, stream::BucketName};
use qiyu_schema::{
    codec,
    id::{Partition, WorkerId},
};

/// The ownership of a partition by one worker process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub worker: WorkerId,
    /// Start of the worker's process, ms since 1970.
    pub epoch: u64,
}

/// The position up to which a partition is folded and dispatched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Sequence of the last such event.
    pub seq: u64,
    /// The owner that recorded it.
    pub by: Claim,
}

/// Returns the key of a partition's position.
pub fn key(partition: Partition) -> String {
    partition.to_string()
}

impl Bus {
    /// Returns the recorded position of a partition; 0 if there is none yet.
    ///
    /// # Errors
    ///
    /// Fails when the bucket does not respond.
    pub async fn position(&self, partition: Partition) -> Result<u64, BucketError> {
        let entry = self.bucket(BucketName::Positions).read(&key(partition)).await?;
        let position = entry.value.as_deref().and_then(|v| codec::decode::<Position>(v).ok());
        Ok(position.map_or(0, |position| position.seq))
    }
}
