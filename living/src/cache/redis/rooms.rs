//! Single rooms in Redis: look up, store, remove.

use std::time::Duration;

use qiyu_database::STATEMENT_TIMEOUT;
use qiyu_schema::RoomId;
use redis::{Value, cmd};

use super::{
    RedisCache, RedisCallError,
    format::{RoomJson, millis, nonce, room_key, script},
};
use crate::room::Room;

/// How long a room is cached.
const ROOM_TTL: Duration = Duration::from_secs(30 * 60);
/// How long the absence of a room is cached.
const NOT_OPEN_TTL: Duration = Duration::from_secs(60);
/// How long a read may take. A later result is not stored.
const LEASE_TTL: Duration = Duration::from_secs(10);

const _: () = assert!(STATEMENT_TIMEOUT.as_millis() < LEASE_TTL.as_millis());

/// Returns the entry if it is younger than ARGV[1]; else leaves a lease with the current time.
const FIND: &str = "
local held = redis.call('GET', KEYS[1])
local at = held and tonumber(string.match(held, '^(%d+) ') or '')
if at and tonumber(ARGV[1]) < at then return {0, held} end
local now = redis.call('TIME')
local lease = now[1] .. string.format('%06d', now[2]) .. ' lease ' .. ARGV[2]
redis.call('SET', KEYS[1], lease, 'PX', ARGV[3])
return {1, lease}";

/// Replaces the lease ARGV[1] with ARGV[2] for ARGV[3] ms.
const STORE: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1";

/// The answer of Redis for one room.
#[derive(Debug)]
pub(crate) enum CachedRoom {
    Open(Room),
    NotOpen,
    /// The room is not cached. The caller is to read it, and to store it under this lease.
    LeaseGranted(String),
    /// The room is not cached, and another caller is reading it.
    LeasedToAnother,
}

/// The age up to which entries are trusted.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    /// Entries whose read began after this are trusted, in µs by Redis's clock. `None`: unknown,
    /// because Redis was not contacted since the last unsent removal.
    trusted_since: Option<u64>,
    /// Removals that did not reach Redis.
    unsent_removals: u64,
}

impl RedisCache {
    /// Looks up a room. A miss grants a lease to one caller.
    pub(crate) async fn find(&self, room: RoomId) -> Result<CachedRoom, RedisCallError> {
        const ACTION: &str = "find a room";
        let malformed = RedisCallError::Malformed { action: ACTION };
        let since = self.trusted_since().await?;
        let mut find = script(FIND, &[room_key(room)]);
        find.arg(since).arg(nonce()).arg(millis(LEASE_TTL));
        let (is_lease, held): (u8, String) = self.run(ACTION, &find).await?;
        if is_lease == 1 {
            return Ok(CachedRoom::LeaseGranted(held));
        }
        let Some((_, entry)) = held.split_once(' ') else { return Err(malformed) };
        if entry.starts_with("lease ") {
            return Ok(CachedRoom::LeasedToAnother);
        }
        match serde_json::from_str::<Option<RoomJson>>(entry) {
            Ok(Some(room)) => Ok(CachedRoom::Open(room.into())),
            Ok(None) => Ok(CachedRoom::NotOpen),
            Err(_) => Err(malformed), // until it expires
        }
    }

    /// Stores the result of a read under `lease`, unless the room has changed meanwhile.
    pub(crate) async fn store(&self, room: RoomId, lease: &str, found: Option<&Room>) {
        let at = lease.split_once(' ').map_or("0", |(at, _)| at);
        let json = found.map(RoomJson::from);
        let Ok(json) = serde_json::to_string(&json) else { return };
        let ttl = if found.is_some() { ROOM_TTL } else { NOT_OPEN_TTL };
        let mut store = script(STORE, &[room_key(room)]);
        store.arg(lease).arg(format!("{at} {json}")).arg(millis(ttl));
        // A result that is not stored is read again.
        self.run::<u8>("store a room", &store).await.ok();
    }

    /// Removes a room's entry or lease.
    pub(crate) async fn remove(&self, room: RoomId) {
        let mut unlink = cmd("UNLINK");
        unlink.arg(room_key(room));
        if self.run::<Value>("remove a room", &unlink).await.is_err() {
            let mut freshness = self.freshness.lock();
            freshness.trusted_since = None;
            freshness.unsent_removals += 1;
        }
    }

    /// Returns the moment since which entries are trusted, in µs by Redis's clock.
    async fn trusted_since(&self) -> Result<u64, RedisCallError> {
        let unsent = {
            let freshness = self.freshness.lock();
            if let Some(since) = freshness.trusted_since {
                return Ok(since);
            }
            freshness.unsent_removals
        };
        let (seconds, micros): (u64, u64) = self.run("read the time", &cmd("TIME")).await?;
        let now = seconds.saturating_mul(1_000_000).saturating_add(micros);
        let mut freshness = self.freshness.lock();
        if freshness.unsent_removals == unsent {
            freshness.trusted_since = Some(now);
        }
        Ok(now)
    }
}
