//! The meaning of a failed publish to JetStream.

use async_nats::jetstream::{self, context::PublishError, context::PublishErrorKind};

/// `message size exceeds maximum allowed` by the stream.
const MESSAGE_TOO_LARGE: u64 = 10054;
/// `maximum messages per subject exceeded`: with discard New, a gateway's queue is full.
pub(crate) const SUBJECT_FULL: u64 = 10077;
/// `wrong last sequence`, as a cluster reports it without the sequence while
/// another write is being agreed on.
const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10164;

/// Returns whether a publish may succeed when it is repeated under the same id.
/// A 503 during an election has the kind `StreamNotFound`.
pub(crate) fn is_transient(error: &PublishError) -> bool {
    match error.kind() {
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending => true,
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::MaxPayloadExceeded => false,
        // On R3, a repeat whose first copy is still being proposed fails with 10158.
        PublishErrorKind::Other => {
            !matches!(error_code(error), Some(SUBJECT_FULL | MESSAGE_TOO_LARGE))
        }
    }
}

/// Returns whether a publish failed because the subject is at another sequence
/// than the one it expected.
pub(crate) fn is_conflict(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::WrongLastSequence
        || error_code(error) == Some(WRONG_LAST_SEQUENCE_CONSTANT)
}

/// Returns the JetStream error code of a failed publish, if the server gave one.
pub(crate) fn error_code(error: &PublishError) -> Option<u64> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<jetstream::Error>().map(|error| error.error_code().0)
}
