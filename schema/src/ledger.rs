//! What became of each message: `IM_LEDGER`.
//!
//! The log says what was accepted; this says what followed: to which gateways
//! an owner handed it, how it ended at each of them, and who read it later.

use serde::{Deserialize, Serialize};

use crate::id::{AppId, ConnId, Incarnation, MsgId, RoomId, UserId, WorkerId};

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

/// Names in one batch, of exceptions and laggards: about 55 bytes each, so well
/// below the megabyte a message may have.
pub const BATCH_NAMES_MAX: usize = 4_000;
const _: () = assert!(2 * EXCEPTIONS_MAX < BATCH_NAMES_MAX);

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
    /// The one it was for. `None`: those whom the fold knows, or as older builds wrote it.
    #[serde(default)]
    pub to: Option<Recipient>,
    /// Connections besides that had ignored several messages in a row, and have it
    /// on a clock of their own: their outcome follows, as [`Via::Lagging`].
    #[serde(default)]
    pub lagging: u32,
    /// Which ones: at most [`EXCEPTIONS_MAX`], the count is exact.
    #[serde(default, rename = "laggards")]
    pub lagging_recipients: Vec<Recipient>,
}

/// A connection and its user.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipient {
    /// Whose.
    pub user: UserId,
    /// Which.
    pub connection: ConnId,
}

/// Names kept per outcome of either kind. A room of thousands of silent clients must not
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
    /// By an envelope for connections that came too late to a room's end.
    Late,
    /// By an envelope for connections whose users had it on another connection,
    /// which ended before it acknowledged.
    Repeat,
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
    pub reason: UnackedReason,
}

/// Why a connection did not acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnackedReason {
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

/// What the owners of one worker handed to gateways, written together.
///
/// Written behind the deliveries, which wait for nobody: of what a worker
/// handed over in the last moments before a crash there may be no such line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DispatchBatch {
    /// Who reports.
    pub worker: WorkerId,
    /// Which life of it, ms since 1970.
    pub epoch: u64,
    /// When, ms since 1970.
    pub at_ms: u64,
    /// At most [`OUTCOMES_MAX`].
    #[serde(rename = "handovers")]
    pub dispatches: Vec<Dispatch>,
}

/// One message on its way to one gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    /// Which message.
    pub msg_id: MsgId,
    /// To which gateway. `None`: to none, because there was nobody to hear it.
    pub to: Option<Incarnation>,
    /// What became of it there.
    #[serde(rename = "how")]
    pub kind: DispatchKind,
    /// The event that asked for it: a login, a return, a takeover. `None`: the message itself.
    #[serde(rename = "because")]
    pub cause: Option<MsgId>,
}

/// How a message was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DispatchKind {
    /// It lies in the gateway's queue.
    Stored,
    /// The queue was full: the gateway reads it from the log.
    Full,
    /// The queue will never take it.
    Refused,
    /// There was nobody to hand it to.
    #[serde(rename = "nobody")]
    NoRecipient,
    /// A way newer than this build.
    #[serde(other)]
    Other,
}

/// Pages of messages that were read over HTTP, written together. For people:
/// what cannot be written soon is dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadBatch {
    /// When, ms since 1970.
    pub at_ms: u64,
    /// At most [`OUTCOMES_MAX`].
    pub pages: Vec<ReadPage>,
}

/// One page that somebody read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadPage {
    /// Where.
    pub app: AppId,
    /// By whom.
    pub user: UserId,
    /// The room whose history it is. `None`: what waits for the user.
    pub room: Option<RoomId>,
    /// Its oldest message.
    pub first: MsgId,
    /// Its newest. Everything of its kind in between was on it.
    pub last: MsgId,
}
