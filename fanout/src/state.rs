//! A room as a fold knows it, for people and tools to look at.

use qiyu_schema::{ConnId, Incarnation, MsgId, UserId, measure::MeasureEntry, room::RoomCounts};

/// Everything a fold knows of one room that somebody may ask about.
#[derive(Clone, Debug, PartialEq)]
pub struct RoomState {
    /// Whose room. `None`: its opening is not in the log.
    pub anchor: Option<UserId>,
    /// Since when the anchor, who was inside before, is not; ms since 1970.
    pub anchor_gone_ms: Option<u64>,
    /// The closing's place in the log and its writer's time. `None`: it is open.
    pub closed: Option<(MsgId, u64)>,
    /// Connections inside, in the order in which they entered.
    pub members: Vec<Member>,
    /// As lists show them.
    pub counts: RoomCounts,
    /// Measures against users in this room, in the order of user ids; those that
    /// are over are kept for a while.
    pub measures: Vec<(UserId, MeasureEntry)>,
}

/// A connection inside a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Whose.
    pub user: UserId,
    /// Which life of which gateway holds it.
    pub gateway: Incarnation,
    /// Its number there.
    pub connection: ConnId,
    /// The event it entered with.
    pub joined: MsgId,
}
