//! Ids. They are parsed once, where they enter the system, and trusted from there on.

use std::{fmt, num::NonZeroU64, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A value that is not a valid id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{raw:?} is not a valid {of}: {rule}")]
pub struct InvalidId {
    /// The wanted type of id.
    pub of: &'static str,
    /// The value, cut to 80 characters.
    pub raw: String,
    /// The accepted form.
    pub rule: &'static str,
}

impl InvalidId {
    fn new(of: &'static str, raw: impl fmt::Display, rule: &'static str) -> Self {
        let raw = raw.to_string().chars().take(80).collect();
        Self { of, raw, rule }
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($raw:ty) >= $floor:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u64")] // a received number passes the same check
        pub struct $name($raw);

        impl $name {
            /// Returns the plain number.
            pub fn get(self) -> $raw {
                self.0
            }
        }

        impl TryFrom<u64> for $name {
            type Error = InvalidId;
            fn try_from(raw: u64) -> Result<Self, InvalidId> {
                match <$raw>::try_from(raw) {
                    Ok(number) if number >= $floor => Ok(Self(number)),
                    _ => Err(InvalidId::new(
                        stringify!($name),
                        raw,
                        concat!("a whole number, at least ", stringify!($floor)),
                    )),
                }
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            /// Accepts digits only. A sign, a space or a leading zero would give one
            /// id two spellings.
            fn from_str(raw: &str) -> Result<Self, InvalidId> {
                let rule = concat!("a whole number, at least ", stringify!($floor));
                let bad = || InvalidId::new(stringify!($name), raw, rule);
                if raw.starts_with('0') || !raw.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(bad());
                }
                raw.parse::<u64>().map_err(|_| bad())?.try_into()
            }
        }

        /// Prints digits only, so no id can put a dot or a wildcard into a subject.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A tenant. All other ids are unique within one app only.
    AppId(u32) >= 10_000
);
number!(
    /// A user. Real ids exceed 2^53, so an id must never pass through a float.
    UserId(u64) >= 10_000
);
number!(
    /// A live room. An id is never used again within an app.
    RoomId(u64) >= 1
);
number!(
    /// A message: its position in the log. It is the same for every recipient
    /// and every redelivery.
    MsgId(u64) >= 1
);

/// The number of the stream `IM_IN`, in the low byte of its message ids.
///
/// A partition that moves to a further stream gets that stream's number. The
/// stream starts above the last sequence of this one, so ids keep rising.
const LOG_NUMBER: u64 = 1;

impl MsgId {
    /// Returns the id of the event stored at `seq` of `IM_IN`.
    pub const fn at(seq: u64) -> Self {
        Self(seq << 8 | LOG_NUMBER)
    }

    /// Returns the sequence in `IM_IN` of this id.
    pub fn seq(self) -> u64 {
        self.0 >> 8
    }

    /// Returns the newest sequence whose id is not above this number; 0 if there
    /// is none. The number need not be the id of a message.
    pub fn seq_not_above(self) -> u64 {
        self.0.saturating_sub(LOG_NUMBER) >> 8
    }

    /// Returns the oldest sequence whose id is not below this number, which need
    /// not be the id of a message.
    pub fn seq_not_below(self) -> u64 {
        self.0.saturating_sub(LOG_NUMBER).div_ceil(1 << 8)
    }
}

/// A connection of one gateway incarnation, which never uses the number again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnId(pub NonZeroU64);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Arc<str>")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns the text: 1 to 64 of `[A-Za-z0-9_-]`.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<Arc<str>> for $name {
            type Error = InvalidId;
            fn try_from(raw: Arc<str>) -> Result<Self, InvalidId> {
                let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
                if (1..=64).contains(&raw.len()) && raw.bytes().all(good) {
                    Ok(Self(raw))
                } else {
                    Err(InvalidId::new(stringify!($name), raw, "1 to 64 of A-Z a-z 0-9 _ -"))
                }
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(raw: &str) -> Result<Self, InvalidId> {
                Arc::<str>::from(raw).try_into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

name!(
    /// The lasting name of a gateway. Each start makes a new [`Incarnation`] of it.
    GatewayId
);
name!(
    /// A fan-out worker.
    WorkerId
);
name!(
    /// The sender's id for a message. A message sent again under the same id
    /// within 24 h is not stored again.
    ClientMsgId
);

/// One start of a gateway, printed as `<id>.<epoch>`.
///
/// It has a subject, a consumer and members of its own. A restart is another
/// incarnation, so nothing of the old one is mistaken for the new one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    pub id: GatewayId,
    /// Rises with every start: the larger of the previous epoch + 1 and the
    /// clock in ms since 1970.
    pub epoch: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.epoch)
    }
}

/// One of the [`Partition::COUNT`] slices of the log.
#[derive(
    Default, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Partition(u8);

impl Partition {
    /// Must never change in a running cluster: it determines the partition of
    /// every room's history.
    pub const COUNT: u8 = 64;

    /// Returns all partitions, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// Returns the partition of a room's events.
    pub fn of_room(app: AppId, room: RoomId) -> Self {
        Self::of(format_args!("{app}.{room}"))
    }

    /// Returns the partition of a user's sessions and direct messages.
    pub fn of_user(app: AppId, user: UserId) -> Self {
        Self::of(format_args!("{app}.{user}"))
    }

    /// Returns the number of this partition, in `0..COUNT`.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    fn of(key: impl fmt::Display) -> Self {
        let mut hash = Fnv1a(0x811c_9dc5);
        fmt::Write::write_fmt(&mut hash, format_args!("{key}")).ok(); // hashing does not fail
        Self(u8::try_from(hash.0 % u32::from(Self::COUNT)).unwrap_or(0))
    }
}

/// FNV-1a, 32 bits, of text as it is written, without a copy of it: the same hash as
/// the server's own `partition()` computes.
struct Fnv1a(u32);

impl fmt::Write for Fnv1a {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        Ok(())
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{:02}", self.0)
    }
}

impl FromStr for Partition {
    type Err = InvalidId;
    fn from_str(raw: &str) -> Result<Self, InvalidId> {
        let bad = || InvalidId::new("Partition", raw, "p00 to p63");
        let number: u8 = raw.strip_prefix('p').ok_or_else(bad)?.parse().map_err(|_| bad())?;
        if number < Self::COUNT { Ok(Self(number)) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_spelling_and_a_floor() {
        assert_eq!("285608972927369217".parse::<UserId>().unwrap().get(), 285_608_972_927_369_217);
        for bad in
            ["", "9999", "010000", "+10000", "1e5", " 10000", "10000 ", "18446744073709551616"]
        {
            assert!(bad.parse::<UserId>().is_err(), "{bad:?}");
        }
        assert!(AppId::try_from(1 << 40).is_err());
    }

    #[test]
    fn a_name_cannot_contain_subject_syntax() {
        for bad in ["", "a.b", "a*", ">", "a b", "é", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<GatewayId>().is_err(), "{bad:?}");
        }
        assert!("gw-1_A".parse::<ClientMsgId>().is_ok());
    }

    #[test]
    fn a_message_id_names_its_sequence() {
        assert_eq!(MsgId::at(7).seq(), 7);
        assert!(MsgId::at(7) < MsgId::at(8));
    }

    #[test]
    fn any_number_has_a_sequence_below_and_above_it() {
        let id = |raw: u64| MsgId::try_from(raw).unwrap();
        let seven = MsgId::at(7).get();
        for (number, not_above, not_below) in [
            (1, 0, 0),
            (2, 0, 1),
            (MsgId::at(1).get(), 1, 1),
            (seven - 1, 6, 7),
            (seven, 7, 7),
            (seven + 1, 7, 8),
            (seven + 255, 7, 8),
        ] {
            let found = (id(number).seq_not_above(), id(number).seq_not_below());
            assert_eq!(found, (not_above, not_below), "{number}");
        }
        assert!(id(u64::MAX).seq_not_above() < id(u64::MAX).seq_not_below());
    }

    #[test]
    fn a_partition_is_the_one_the_server_would_compute() {
        // FNV-1a test vectors: "a" and "foobar".
        assert_eq!(Partition::of("a").0, (0xe40c_292c_u32 % 64) as u8);
        assert_eq!(Partition::of("foobar").0, (0xbf9c_f968_u32 % 64) as u8);
        assert_eq!(Partition::all().count(), 64);
        assert_eq!("p07".parse::<Partition>().unwrap().to_string(), "p07");
    }
}
