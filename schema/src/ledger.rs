//! The records of `IM_LEDGER`: the outcome of each message after its acceptance.
//!
//! The log holds the accepted messages. The ledger holds the dispatches to
//! gateways, the outcome at each gateway, and the pages read over HTTP.

use serde::{Deserialize, Serialize};

use crate::id::{AppId, ConnId, Incarnation, MsgId, RoomId, UserId, WorkerId};

/// Outcomes of one gateway, stored together.
///
/// A batch is stored *before* the envelopes it resolves are acknowledged. A
/// crash between the two repeats work and loses no record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerBatch {
    pub gateway: Incarnation,
    /// Writer's clock, ms since 1970.
    pub at_ms: u64,
    /// At most [`OUTCOMES_MAX`].
    pub outcomes: Vec<Outcome>,
}

/// Outcomes per batch; a batch is stored when it is full or after 20 ms.
/// Measured: one publish per outcome costs 13 to 33 % of the throughput, batches nothing.
pub const OUTCOMES_MAX: usize = 256;

/// Named connections in one batch, over all outcomes. One takes about 55 bytes,
/// so a batch stays well below the megabyte a message may have.
pub const BATCH_NAMES_MAX: usize = 4_000;
const _: () = assert!(2 * EXCEPTIONS_MAX < BATCH_NAMES_MAX);

/// Named connections per outcome and list. Thousands of silent clients in a room
/// must not make a record larger than a message may be.
pub const EXCEPTIONS_MAX: usize = 100;

/// The outcome of one message at one gateway.
///
/// Once it is final, `resolved = acknowledged + given_up + left`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub app: AppId,
    /// `None`: a direct message.
    pub room: Option<RoomId>,
    pub msg_id: MsgId,
    pub via: Via,
    /// Connections the message was for.
    pub resolved: u32,
    /// Copies put on a socket's queue, first sends only.
    pub written: u32,
    pub acknowledged: u32,
    /// Copies sent again.
    pub resent: u32,
    /// Connections that never acknowledged.
    pub given_up: u32,
    /// Connections that closed before they acknowledged.
    pub left: u32,
    /// Connections that did not acknowledge: at most [`EXCEPTIONS_MAX`]. The counts are exact.
    pub exceptions: Vec<Exception>,
    /// The single recipient. `None`: the recipients the fold knows, or a record
    /// of an older build.
    #[serde(default)]
    pub to: Option<Recipient>,
    /// Further connections that were lagging: they had ignored several messages
    /// in a row. Their outcome follows as [`Via::Lagging`].
    #[serde(default)]
    pub lagging: u32,
    /// The lagging connections: at most [`EXCEPTIONS_MAX`]. `lagging` is exact.
    #[serde(default, rename = "laggards")]
    pub lagging_recipients: Vec<Recipient>,
}

/// A connection and its user.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipient {
    pub user: UserId,
    pub connection: ConnId,
}

/// The way a message reached its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// By its envelope.
    Envelope,
    /// Read from the log, because its envelope was lost.
    Log,
    /// Read from the log for a connection that resumed.
    Resume,
    /// By its envelope, for lagging connections. The envelope does not wait for them.
    Lagging,
    /// By an envelope for connections that joined after the room was closed.
    Late,
    /// By an [`Envelope::Repeat`](crate::envelope::Envelope::Repeat).
    Repeat,
    /// A way newer than this build.
    #[serde(other)]
    Other,
}

/// One connection that did not acknowledge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exception {
    pub user: UserId,
    pub connection: ConnId,
    pub reason: UnackedReason,
}

/// The reason a connection did not acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnackedReason {
    /// Sent as often as allowed, never acknowledged.
    NotAcknowledged,
    /// Lagging: written once, not counted.
    Lagging,
    /// The connection closed first.
    Left,
    /// The room was closed before the message.
    RoomClosed,
    /// A reason newer than this build.
    #[serde(other)]
    Other,
}

/// Dispatches to gateways by the owners of one worker, stored together.
///
/// A worker stores them after the envelopes, and no delivery waits for that. A
/// crash may therefore lose the records of its last moments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DispatchBatch {
    pub worker: WorkerId,
    /// Start of the worker's process, ms since 1970.
    pub epoch: u64,
    /// Writer's clock, ms since 1970.
    pub at_ms: u64,
    /// At most [`OUTCOMES_MAX`].
    #[serde(rename = "handovers")]
    pub dispatches: Vec<Dispatch>,
}

/// The dispatch of one message to one gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    pub msg_id: MsgId,
    /// `None`: no gateway held a recipient.
    pub to: Option<Incarnation>,
    #[serde(rename = "how")]
    pub kind: DispatchKind,
    /// The event that caused it: a login, a return, a takeover. `None`: the message itself.
    #[serde(rename = "because")]
    pub cause: Option<MsgId>,
}

/// The result of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DispatchKind {
    /// The gateway's queue holds the envelope.
    Stored,
    /// The queue was full: the gateway reads the message from the log.
    Full,
    /// The queue can never take the envelope.
    Refused,
    /// The message had no recipient.
    #[serde(rename = "nobody")]
    NoRecipient,
    /// A result newer than this build.
    #[serde(other)]
    Other,
}

/// Pages of messages read over HTTP, stored together. They serve people only:
/// a page that cannot be stored soon is dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadBatch {
    /// Writer's clock, ms since 1970.
    pub at_ms: u64,
    /// At most [`OUTCOMES_MAX`].
    pub pages: Vec<ReadPage>,
}

/// One page that a user read. It held every message of its kind from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadPage {
    pub app: AppId,
    pub user: UserId,
    /// The room whose history it is. `None`: the user's pending direct messages.
    pub room: Option<RoomId>,
    /// Oldest message of the page.
    pub first: MsgId,
    /// Newest message of the page.
    pub last: MsgId,
}
