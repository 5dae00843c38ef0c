//! The state of a room in a fold, for the tools that show it.

use qiyu_schema::{ConnId, Incarnation, MsgId, UserId, room::RoomCounts, sanction::SanctionEntry};

/// The state of one room in a fold.
#[derive(Clone, Debug, PartialEq)]
pub struct RoomState {
    /// `None`: the opening of the room is not in the log.
    pub anchor: Option<UserId>,
    /// Since when the anchor is absent, if it was in the room before; ms since 1970.
    pub anchor_gone_ms: Option<u64>,
    /// The closing's place in the log and its writer's time. `None`: it is open.
    pub closed: Option<(MsgId, u64)>,
    /// Connections inside, in the order in which they entered.
    pub members: Vec<Member>,
    /// As lists show them.
    pub counts: RoomCounts,
    /// Measures against users in this room, in the order of user ids; those that
    /// are over are kept for a while.
    pub measures: Vec<(UserId, SanctionEntry)>,
}

/// A connection inside a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub user: UserId,
    pub gateway: Incarnation,
    /// Its number there.
    pub connection: ConnId,
    /// The event it entered with.
    pub joined: MsgId,
}
