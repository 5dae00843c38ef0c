//! Snapshots of a partition's fold, in chunks: a message may be 1 MB, a room larger.

use bytes::{Bytes, BytesMut};

use crate::{
    bus::Bus,
    log::{APPEND_DEADLINE, AppendCondition, AppendError, ReadError},
    stream,
};
use qiyu_schema::{id::Partition, subject};

/// Well below the megabyte that NATS takes at most.
const CHUNK_BYTES: usize = 512 * 1024;

impl Bus {
    /// Writes the chunks of a snapshot; returns how many. Not found by anybody
    /// until its head is recorded.
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
            self.publish_stored(subject, chunk, &key, any, APPEND_DEADLINE).await?;
        }
        Ok(chunks.len())
    }

    /// Reads a snapshot back; `None` when a chunk is missing.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the stream does not answer.
    pub async fn read_snapshot(
        &self,
        partition: Partition,
        position: u64,
        chunks: usize,
    ) -> Result<Option<Bytes>, ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let snaps = self.control.get_stream_no_info(stream::SNAP).await;
        let snaps = snaps.map_err(|error| open(error.into()))?;
        let mut whole = BytesMut::new();
        for number in 0..chunks {
            let subject = subject::snapshot(partition, position, number);
            match snaps.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => whole.extend_from_slice(&message.payload),
                Err(error)
                    if error.kind()
                        == async_nats::jetstream::stream::RawMessageErrorKind::NoMessageFound =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(open(error.into())),
            }
        }
        Ok(Some(whole.freeze()))
    }

    /// Deletes a snapshot's chunks.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the stream does not answer.
    pub async fn forget_snapshot(
        &self,
        partition: Partition,
        position: u64,
    ) -> Result<(), ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let snaps = self.control.get_stream_no_info(stream::SNAP).await;
        let snaps = snaps.map_err(|error| open(error.into()))?;
        let purged = snaps.purge().filter(subject::snapshot_all(partition, position)).await;
        purged.map(drop).map_err(|error| open(error.into()))
    }
}
