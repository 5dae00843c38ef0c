//! What became of each message at each gateway: `IM_LEDGER`.

use serde::{Deserialize, Serialize};

use crate::id::{AppId, ConnId, Incarnation, MsgId, RoomId, UserId};

/// Outcomes of one gateway, written together. Stored *before* the envelopes
/// they settle are acknowledged, so a crash between repeats work and loses no record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerBatch {
    /// Who reports.
    pub gateway: Incarnation,
    /// When, ms since 1970.
    pub at_ms: u64,
    /// At most [`OUTCOMES_MAX`].
    pub outcomes: Vec<Outcome>,
}

/// A batch is written when it holds this many outcomes, or after 20 ms.
/// Measured: one publish per outcome costs 13 to 33 % of the throughput, batches nothing.
pub const OUTCOMES_MAX: usize = 256;

/// Exceptions in one batch: about 55 bytes each, so well below the megabyte a
/// message may have.
pub const BATCH_EXCEPTIONS_MAX: usize = 4_000;
const _: () = assert!(EXCEPTIONS_MAX < BATCH_EXCEPTIONS_MAX);

/// How one message ended at one gateway.
///
/// `resolved = acknowledged + given_up + left` once it is settled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Where.
    pub app: AppId,
    /// The room it was said in. `None`: a 1:1 message.
    pub room: Option<RoomId>,
    /// Which message.
    pub msg_id: MsgId,
    /// How it reached the gateway.
    pub via: Via,
    /// Connections it was for.
    pub resolved: u32,
    /// Copies put on a socket's queue, first sends only.
    pub written: u32,
    /// Connections that acknowledged it.
    pub acknowledged: u32,
    /// Copies sent again.
    pub resent: u32,
    /// Connections that never acknowledged.
    pub given_up: u32,
    /// Connections that ended first.
    pub left: u32,
    /// Who did not acknowledge, and why: at most [`EXCEPTIONS_MAX`], the counts are exact.
    pub exceptions: Vec<Exception>,
}

/// Names kept per outcome. A room of thousands of silent clients must not
/// make a record larger than a message may be.
pub const EXCEPTIONS_MAX: usize = 100;

/// How a message reached its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// By its envelope.
    Envelope,
    /// Read from the log, its envelope having been lost.
    Log,
    /// Read from the log for a connection that came back and asked for it.
    Resume,
    /// By its envelope, for connections that had ignored several messages in a
    /// row: the envelope is not held up for them.
    Lagging,
    /// A way newer than this build.
    #[serde(other)]
    Other,
}

/// One connection that did not acknowledge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exception {
    /// Whose.
    pub user: UserId,
    /// Which.
    pub connection: ConnId,
    /// Why not.
    pub reason: Reason,
}

/// Why a connection did not acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Sent as often as allowed, never acknowledged.
    NotAcknowledged,
    /// It was already ignoring messages; written once, not counted on.
    Lagging,
    /// The connection ended first.
    Left,
    /// The room was closed before the message.
    RoomClosed,
    /// A reason newer than this build.
    #[serde(other)]
    Other,
}
