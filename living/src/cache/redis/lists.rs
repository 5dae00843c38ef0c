//! The lists of open rooms in Redis: one process per second reads them for all.

use std::{collections::HashMap, time::Duration};

use qiyu_database::STATEMENT_TIMEOUT;
use qiyu_schema::AppId;
use redis::{Value, cmd};

use super::{
    RedisCache, RedisCallError,
    format::{RoomJson, decode, list_key, lists_lock_key, lists_mark_key, millis, nonce, script},
};
use crate::room::{LISTED_MAX, ListsByType, Room};

/// How long a read of the lists may take before another process reads them.
const LOCK_TTL: Duration = Duration::from_secs(10);
/// How soon after a read the next one may begin. Every process refreshes once a second, and the
/// first one of a second reads.
const READ_INTERVAL: Duration = Duration::from_millis(900);
/// Older lists are not used, and the database is read.
const LISTS_TTL: Duration = Duration::from_secs(10);

const _: () = assert!(STATEMENT_TIMEOUT.as_millis() < LOCK_TTL.as_millis());

/// Returns all lists as of one moment.
const READ: &str = "
local found = {redis.call('EXISTS', KEYS[1])}
for i = 2, #KEYS do found[i] = redis.call('LRANGE', KEYS[i], 0, ARGV[1] - 1) end
return found";

/// Writes one new list under a temporary key.
const WRITE: &str = "redis.call('RPUSH', KEYS[1], unpack(ARGV, 2))
                 return redis.call('PEXPIRE', KEYS[1], ARGV[1])";

/// Replaces the old lists by new ones, if the lock still holds ARGV[1]. KEYS: the lock, the mark,
/// then each new list and its final key. A list without rooms is no key.
const REPLACE: &str = "
local ours = redis.call('GET', KEYS[1]) == ARGV[1]
for i = 3, #KEYS, 2 do
    if not ours then redis.call('UNLINK', KEYS[i])
    elseif redis.call('EXISTS', KEYS[i]) == 0 then redis.call('UNLINK', KEYS[i + 1])
    else
        redis.call('RENAME', KEYS[i], KEYS[i + 1])
        redis.call('PERSIST', KEYS[i + 1])
    end
end
if not ours then return 0 end
redis.call('SET', KEYS[2], 1, 'PX', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1";

/// Releases the lock, if it still holds ARGV[1].
const UNLOCK: &str = "
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1";

impl RedisCache {
    /// Takes the lock of the lists. `None`: another process has it, or had it less than a second
    /// ago.
    pub(crate) async fn lock_lists(&self) -> Result<Option<String>, RedisCallError> {
        let lock = nonce();
        let mut set = cmd("SET");
        set.arg(lists_lock_key()).arg(&lock).arg("NX").arg("PX").arg(millis(LOCK_TTL));
        let taken: Option<String> = self.run("lock the lists", &set).await?;
        Ok(taken.map(|_| lock))
    }

    /// Releases the lock of the lists.
    pub(crate) async fn unlock_lists(&self, lock: &str) {
        let mut unlock = script(UNLOCK, &[lists_lock_key()]);
        unlock.arg(lock);
        self.run::<u8>("unlock the lists", &unlock).await.ok(); // it expires
    }

    /// Returns the lists. `None`: no process has read them lately.
    pub(crate) async fn lists(
        &self,
        wanted: &[(AppId, u8)],
    ) -> Result<Option<ListsByType>, RedisCallError> {
        const ACTION: &str = "read the lists";
        let malformed = || RedisCallError::Malformed { action: ACTION };
        let mut keys = vec![lists_mark_key()];
        keys.extend(wanted.iter().map(|key| list_key(*key)));
        let mut read = script(READ, &keys);
        read.arg(LISTED_MAX);
        let found: Vec<Value> = self.run(ACTION, &read).await?;
        let mut found = found.into_iter();
        let is_marked: u8 = decode(found.next().ok_or_else(malformed)?).ok_or_else(malformed)?;
        if is_marked == 0 {
            return Ok(None);
        }
        let mut lists = HashMap::new();
        for (key, rows) in wanted.iter().zip(found) {
            let rows: Vec<String> = decode(rows).ok_or_else(malformed)?;
            let rooms = rows.iter().map(|row| serde_json::from_str::<RoomJson>(row));
            let rooms = rooms.map(|row| row.map(|row| Room::from(row).into()));
            lists.insert(*key, rooms.collect::<Result<Vec<_>, _>>().map_err(|_| malformed())?);
        }
        Ok(Some(lists))
    }

    /// Replaces all lists at once, and only if the lock was not lost meanwhile. After a failure the
    /// lists are read again a second later.
    pub(crate) async fn replace_lists(&self, lock: &str, lists: &ListsByType) {
        let mut keys = vec![lists_lock_key(), lists_mark_key()];
        for (key, rooms) in lists {
            let rows = rooms.iter().map(|room| RoomJson::from(&**room));
            let rows: Vec<String> =
                rows.filter_map(|row| serde_json::to_string(&row).ok()).collect();
            // The temporary key is the lock's own, so it holds no rows of another reader.
            let temporary = format!("{}_temp:{lock}", list_key(*key));
            keys.extend([temporary.clone(), list_key(*key)]);
            if rows.is_empty() {
                continue;
            }
            let mut write = script(WRITE, &[temporary]);
            write.arg(millis(LOCK_TTL)).arg(rows);
            if self.run::<u8>("write a list", &write).await.is_err() {
                return;
            }
        }
        let mut replace = script(REPLACE, &keys);
        replace.arg(lock).arg(millis(LISTS_TTL)).arg(millis(READ_INTERVAL));
        self.run::<u8>("replace the lists", &replace).await.ok();
    }
}
