//! The ids that delivery works with, and a map for ids that this process counts up.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use qiyu_schema::{AppId, RoomId};

/// A room of an app.
pub(crate) type RoomKey = (AppId, RoomId);

/// One delivery of a message by this gateway. A message has several if it comes
/// in several ways: by its envelope, for lagging connections, for a resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DeliveryId(pub(super) u64);

/// The position of an envelope in the gateway's queue: the same at every redelivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct QueuePosition(pub(super) u64);

/// A map whose keys are consecutive numbers that no client chooses.
///
/// A message is looked up once per recipient, so the default hasher, which
/// withstands chosen keys, would cost more than the rest of the look-up.
pub(crate) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// The hasher of [`IdMap`]: one multiplication.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        // The map takes the bucket from the low bits and a tag from the high ones.
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15); // 2^64 / golden ratio
    }
}
