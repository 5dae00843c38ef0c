//! Snapshots of a partition's fold, stored in chunks. A message may have 1 MB,
//! and a large room needs more.

use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use bytes::{Bytes, BytesMut};

use crate::{
    bus::Bus,
    log::{APPEND_DEADLINE, AppendCondition, AppendError, ReadError},
    stream,
};
use qiyu_schema::{id::Partition, subject};

/// Well below the megabyte that NATS accepts at most.
const CHUNK_BYTES: usize = 512 * 1024;

impl Bus {
    /// Stores the chunks of a snapshot and returns their number. No reader finds
    /// the snapshot before its head is recorded.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`].
    pub async fn write_snapshot(
        &self,
        partition: Partition,
        position: u64,
        bytes: Bytes,
    ) -> Result<usize, AppendError> {
        let chunks: Vec<Bytes> = (0..bytes.len().max(1))
            .step_by(CHUNK_BYTES)
            .map(|from| bytes.slice(from..bytes.len().min(from + CHUNK_BYTES)))
            .collect();
        for (number, chunk) in chunks.iter().enumerate() {
            let subject = subject::snapshot(partition, position, number);
            let key = format!("snap:{partition}.{position}.{number}");
            let (chunk, any) = (chunk.clone(), AppendCondition::Any);
            self.publish_confirmed(subject, chunk, &key, any, APPEND_DEADLINE).await?;
        }
        Ok(chunks.len())
    }

    /// Reads a snapshot; `None` when a chunk is missing.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the stream does not respond.
    pub async fn read_snapshot(
        &self,
        partition: Partition,
        position: u64,
        chunks: usize,
    ) -> Result<Option<Bytes>, ReadError> {
        let snapshots = self.snapshot_stream().await?;
        let mut whole = BytesMut::new();
        for number in 0..chunks {
            let subject = subject::snapshot(partition, position, number);
            match snapshots.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => whole.extend_from_slice(&message.payload),
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                    return Ok(None);
                }
                Err(error) => return Err(ReadError::unavailable(error)),
            }
        }
        Ok(Some(whole.freeze()))
    }

    /// Deletes a snapshot's chunks.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the stream does not respond.
    pub async fn forget_snapshot(
        &self,
        partition: Partition,
        position: u64,
    ) -> Result<(), ReadError> {
        let snapshots = self.snapshot_stream().await?;
        let purged = snapshots.purge().filter(subject::snapshot_all(partition, position)).await;
        purged.map(drop).map_err(ReadError::unavailable)
    }

    async fn snapshot_stream(&self) -> Result<Stream<()>, ReadError> {
        self.control.get_stream_no_info(stream::SNAP).await.map_err(ReadError::unavailable)
    }
}
