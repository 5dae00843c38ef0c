//! The codes of the client's protocol: frame codes, business codes, refusal codes.

/// Frame codes.
pub(crate) mod code {
    pub(crate) const LOGIN: i32 = 1001;
    pub(crate) const LOGOUT: i32 = 1002;
    pub(crate) const BUSINESS: i32 = 1003;
    pub(crate) const HEARTBEAT: i32 = 1004;
    pub(crate) const ACK: i32 = 1005;
    pub(crate) const RECEIPT: i32 = 1006;
}

/// Business codes (`bizCode`).
pub(crate) mod biz {
    pub(crate) const CHAT: i32 = 5555;
    pub(crate) const ROOM_CLOSED: i32 = 5600;
    /// The number of viewers: a notice that fan-out sends.
    pub(crate) const VIEWERS: i32 = 5601;
    pub(crate) const LIKES: i32 = 5602;
    pub(crate) const MUTED: i32 = 5610;
    /// Stored in the log and left to the integrator's own consumer.
    pub(crate) const INTEGRATORS: std::ops::RangeInclusive<i32> = 7000..=7999;
}

/// The reason why a business frame was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RefusalCode {
    RoomNotOpen,
    NotInRoom,
    NotRouted,
    Unreadable,
    TooFast,
    ContentRefused,
    Muted,
    NotStored,
}

impl RefusalCode {
    pub(crate) const ALL: [Self; 8] = [
        Self::RoomNotOpen,
        Self::NotInRoom,
        Self::NotRouted,
        Self::Unreadable,
        Self::TooFast,
        Self::ContentRefused,
        Self::Muted,
        Self::NotStored,
    ];

    /// Returns the number that the client receives as `bizCode`.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::RoomNotOpen => 4004,
            Self::NotInRoom => 4005,
            Self::NotRouted => 4006,
            Self::Unreadable => 4007,
            Self::TooFast => 4008,
            Self::ContentRefused => 4009,
            Self::Muted => 4010,
            Self::NotStored => 5000,
        }
    }
}
