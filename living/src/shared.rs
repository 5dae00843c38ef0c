//! The cache in Redis, with the seed's keys and times.
//!
//! | key | what | for |
//! |---|---|---|
//! | `…:living_room_obj:<room>` | an open room, or that there is none | 30 min, 1 min |
//! | `…:living_room_list:<app>:<type>` | the newest 1000, newest first | until the next |
//! | `…:living_room_lists_read` | that the lists were read | 10 s |
//! | `…:refresh_living_room_list_lock` | who reads them | 10 s, then the rest of the second |
//!
//! **No reader keeps what it read too late.** Who finds nothing leaves a lease in
//! its place, and what it reads is kept only while that very lease is there.
//! An opening and a closing take away whatever is there, a lease too.
//!
//! **Nothing is believed that a lost word could have changed.** An entry carries
//! the moment, by Redis's clock, at which its reader began. When a closing
//! could not be told to Redis, entries from before the next contact are read anew.
//!
//! **The wait is bounded.** Each question has [`PATIENCE`]; after one that failed
//! nobody asks for [`REST`], and then one question finds out.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use qiyu_schema::{AppId, MsgId, RoomId, UserId, ticket::fresh_nonce};
use redis::{
    Client, Cmd, FromRedisValue, RedisError, Value,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cmd, from_redis_value,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::{
    list::{LISTED_MAX, Listed},
    room::Room,
    store::STATEMENT_PATIENCE,
};

/// What the seed's keys of rooms begin with: the name of its program.
const PREFIX: &str = "qiyu-live-living-provider";
/// How long a room is kept. The seed's number.
const ROOM_TTL: Duration = Duration::from_secs(30 * 60);
/// How long it is kept that there is no such room. The seed's number.
const NOTHING_TTL: Duration = Duration::from_secs(60);
/// How long a reader may take before what it reads is not kept any more.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// How long the reader of the lists may take before another reads them.
const LOCK_TTL: Duration = Duration::from_secs(10);
/// How soon after a reading the next one may begin: every process ticks once a
/// second, and the first one of a second reads.
const READ_EVERY: Duration = Duration::from_millis(900);
/// Lists that are older are nobody's: the database is asked.
const LISTS_TTL: Duration = Duration::from_secs(10);
/// How long a question may take; a connection that has to be made included.
/// Some hundred times what it takes on one network: beyond it, the database is quicker.
/// (In the tests of this file a busy machine must not be taken for a Redis that is away.)
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 3000 } else { 300 });
/// How long nobody asks after a question that failed.
const REST: Duration = Duration::from_secs(1);

const _: () = assert!(STATEMENT_PATIENCE.as_millis() < LEASE_TTL.as_millis());
const _: () = assert!(STATEMENT_PATIENCE.as_millis() < LOCK_TTL.as_millis());

/// Gives what is there and younger than ARGV[1]; else leaves a lease with the time of now.
const FIND: &str = "
local held = redis.call('GET', KEYS[1])
local at = held and tonumber(string.match(held, '^(%d+) ') or '')
if at and tonumber(ARGV[1]) < at then return {0, held} end
local now = redis.call('TIME')
local lease = now[1] .. string.format('%06d', now[2]) .. ' lease ' .. ARGV[2]
redis.call('SET', KEYS[1], lease, 'PX', ARGV[3])
return {1, lease}";

/// Replaces the lease ARGV[1] with ARGV[2] for ARGV[3] ms.
const KEEP: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1";

/// Gives all lists of one and the same moment.
const LISTS: &str = "
local found = {redis.call('EXISTS', KEYS[1])}
for i = 2, #KEYS do found[i] = redis.call('LRANGE', KEYS[i], 0, ARGV[1] - 1) end
return found";

/// Puts new lists in the place of the old ones, if the lock is still ARGV[1]'s.
/// KEYS: the lock, the mark, then each new list and its place. A list of no
/// room is no key.
const SWAP: &str = "
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

/// Gives the lock back, if it is still ARGV[1]'s.
const UNLOCK: &str = "
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1";

/// Redis did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SharedError {
    #[error("{doing} in Redis")]
    Failed { doing: &'static str, source: RedisError },
    #[error("{doing} in Redis: no answer within {PATIENCE:?}")]
    Silent { doing: &'static str },
    #[error("{doing} in Redis: the answer makes no sense")]
    Nonsense { doing: &'static str },
    /// The last question failed a moment ago.
    #[error("Redis is not asked at the moment")]
    Resting,
}

/// What Redis knows of one room.
#[derive(Debug)]
pub(crate) enum Found {
    Room(Room),
    /// There is no open room of that id.
    Nothing,
    /// Nothing is known; the asker is to read it, and to keep it under this lease.
    Lease(String),
    /// Somebody else is reading it just now.
    Leased,
}

/// A room as it lies in Redis: the seed's names.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    id: RoomId,
    app_id: AppId,
    anchor_id: UserId,
    #[serde(rename = "type")]
    room_type: u8,
    room_name: String,
    covert_img: String,
    good_num: u64,
    start_time: u64,
    log_pos: MsgId,
}

/// The cache in Redis.
pub(crate) struct Shared {
    connection: ConnectionManager,
    circuit: Mutex<Circuit>,
    belief: Mutex<Belief>,
}

/// Whether Redis is asked.
#[derive(Debug)]
enum Circuit {
    Closed,
    /// The last question failed; at this moment one may try again.
    OpenUntil(Instant),
}

/// Which entries are believed.
#[derive(Debug, Default)]
struct Belief {
    /// Those whose reader began after this, in µs by Redis's clock. `None`: to be found out.
    since: Option<u64>,
    /// Words Redis did not hear.
    lost: u64,
}

impl Shared {
    /// Connects when it is first asked: Redis may come later than we do.
    ///
    /// # Errors
    ///
    /// When the URL is none.
    pub(crate) fn new(url: &str) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE))
            .set_number_of_retries(0); // the circuit decides when
        let connection = ConnectionManager::new_lazy_with_config(Client::open(url)?, config)?;
        let (circuit, belief) = (Mutex::new(Circuit::Closed), Mutex::default());
        Ok(Self { connection, circuit, belief })
    }

    /// What is known of a room. Nothing: then the asker is the one to read it.
    pub(crate) async fn find(&self, room: RoomId) -> Result<Found, SharedError> {
        const DOING: &str = "look for a room";
        let since = self.believed_since().await?;
        let mut script = eval(FIND, &[object_key(room)]);
        script.arg(since).arg(nonce()).arg(millis(LEASE_TTL));
        let (is_lease, held): (u8, String) = self.ask(DOING, &script).await?;
        if is_lease == 1 {
            return Ok(Found::Lease(held));
        }
        let entry = held.split_once(' ').map(|(_, entry)| entry);
        let entry = entry.ok_or(SharedError::Nonsense { doing: DOING })?;
        if entry.starts_with("lease ") {
            return Ok(Found::Leased);
        }
        match serde_json::from_str::<Option<Object>>(entry) {
            Ok(Some(object)) => Ok(Found::Room(object.into())),
            Ok(None) => Ok(Found::Nothing),
            Err(_) => Err(SharedError::Nonsense { doing: DOING }), // until it expires
        }
    }

    /// Keeps what was read under `lease`, unless the room has changed meanwhile.
    pub(crate) async fn keep(&self, room: RoomId, lease: &str, found: Option<&Room>) {
        let at = lease.split_once(' ').map_or("0", |(at, _)| at);
        let object = found.map(Object::from);
        let Ok(object) = serde_json::to_string(&object) else { return };
        let ttl = if found.is_some() { ROOM_TTL } else { NOTHING_TTL };
        let mut script = eval(KEEP, &[object_key(room)]);
        script.arg(lease).arg(format!("{at} {object}")).arg(millis(ttl));
        // What is not kept is read again.
        self.ask::<u8>("keep a room", &script).await.ok();
    }

    /// Forgets what is known of a room, and what is being read of it.
    pub(crate) async fn forget(&self, room: RoomId) {
        let mut forget = cmd("UNLINK");
        forget.arg(object_key(room));
        if self.ask::<Value>("forget a room", &forget).await.is_err() {
            let mut belief = self.belief.lock();
            belief.since = None;
            belief.lost += 1;
        }
    }

    /// The moment since which entries are believed.
    async fn believed_since(&self) -> Result<u64, SharedError> {
        let lost = {
            let belief = self.belief.lock();
            if let Some(since) = belief.since {
                return Ok(since);
            }
            belief.lost
        };
        let (seconds, micros): (u64, u64) = self.ask("ask the time", &cmd("TIME")).await?;
        let now = seconds.saturating_mul(1_000_000).saturating_add(micros);
        let mut belief = self.belief.lock();
        if belief.lost == lost {
            belief.since = Some(now);
        }
        Ok(now)
    }

    /// Takes the lock of the lists. `None`: another has it, or had it less than a second ago.
    pub(crate) async fn lock(&self) -> Result<Option<String>, SharedError> {
        let token = nonce();
        let mut set = cmd("SET");
        set.arg(lock_key()).arg(&token).arg("NX").arg("PX").arg(millis(LOCK_TTL));
        let taken: Option<String> = self.ask("lock the lists", &set).await?;
        Ok(taken.map(|_| token))
    }

    pub(crate) async fn unlock(&self, lock: &str) {
        let mut script = eval(UNLOCK, &[lock_key()]);
        script.arg(lock);
        self.ask::<u8>("unlock the lists", &script).await.ok(); // it expires
    }

    /// The lists somebody has read lately. `None`: nobody has.
    pub(crate) async fn lists(
        &self,
        wanted: &[(AppId, u8)],
    ) -> Result<Option<Listed>, SharedError> {
        const DOING: &str = "read the lists";
        let nonsense = || SharedError::Nonsense { doing: DOING };
        let mut keys = vec![mark_key()];
        keys.extend(wanted.iter().map(|key| list_key(*key)));
        let mut script = eval(LISTS, &keys);
        script.arg(LISTED_MAX);
        let found: Vec<Value> = self.ask(DOING, &script).await?;
        let mut found = found.into_iter();
        let are_there: u8 = of_redis(found.next().ok_or_else(nonsense)?).ok_or_else(nonsense)?;
        if are_there == 0 {
            return Ok(None);
        }
        let mut lists = HashMap::new();
        for (key, rows) in wanted.iter().zip(found) {
            let rows: Vec<String> = of_redis(rows).ok_or_else(nonsense)?;
            let rooms = rows.iter().map(|row| serde_json::from_str::<Object>(row));
            let rooms = rooms.map(|row| row.map(|row| Room::from(row).into()));
            lists.insert(*key, rooms.collect::<Result<Vec<_>, _>>().map_err(|_| nonsense())?);
        }
        Ok(Some(lists))
    }

    /// Puts `lists` in the place of the old ones: all at once, and only if the
    /// lock was not lost meanwhile. What fails here is read again a second later.
    pub(crate) async fn swap_lists(&self, lock: &str, lists: &Listed) {
        let mut keys = vec![lock_key(), mark_key()];
        for (key, rooms) in lists {
            let (place, rows) = (list_key(*key), rooms.iter().map(|room| Object::from(&**room)));
            let rows: Vec<String> =
                rows.filter_map(|row| serde_json::to_string(&row).ok()).collect();
            // The lock's own, so that no other's rows and none of a crash are in it.
            let fresh = format!("{place}_temp:{lock}");
            keys.extend([fresh.clone(), place]);
            if rows.is_empty() {
                continue;
            }
            let mut push = eval(
                "redis.call('RPUSH', KEYS[1], unpack(ARGV, 2))
                 return redis.call('PEXPIRE', KEYS[1], ARGV[1])",
                &[fresh],
            );
            push.arg(millis(LOCK_TTL)).arg(rows);
            if self.ask::<u8>("write a list", &push).await.is_err() {
                return;
            }
        }
        let mut script = eval(SWAP, &keys);
        script.arg(lock).arg(millis(LISTS_TTL)).arg(millis(READ_EVERY));
        self.ask::<u8>("swap the lists", &script).await.ok();
    }

    /// Asks Redis, unless it was found to be away a moment ago.
    async fn ask<T: FromRedisValue>(
        &self,
        doing: &'static str,
        command: &Cmd,
    ) -> Result<T, SharedError> {
        if !self.may_ask() {
            return Err(SharedError::Resting);
        }
        let mut connection = self.connection.clone();
        let answer = tokio::time::timeout(PATIENCE, command.query_async(&mut connection)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|source| SharedError::Failed { doing, source }),
            Err(_) => Err(SharedError::Silent { doing }),
        };
        self.learn(answer.as_ref().err());
        answer
    }

    /// Of all who come while Redis rests, the first after its rest asks for the others.
    fn may_ask(&self) -> bool {
        let mut circuit = self.circuit.lock();
        match *circuit {
            Circuit::Closed => true,
            Circuit::OpenUntil(again) if again <= Instant::now() => {
                *circuit = Circuit::OpenUntil(Instant::now() + REST);
                true
            }
            Circuit::OpenUntil(_) => false,
        }
    }

    fn learn(&self, failure: Option<&SharedError>) {
        let mut circuit = self.circuit.lock();
        match (failure, &*circuit) {
            (None, Circuit::Closed) => {}
            (None, Circuit::OpenUntil(_)) => {
                info!("Redis answers again");
                *circuit = Circuit::Closed;
            }
            (Some(error), before) => {
                if matches!(before, Circuit::Closed) {
                    let error = error as &dyn std::error::Error;
                    warn!(error, "Redis is away, the database is asked instead");
                }
                *circuit = Circuit::OpenUntil(Instant::now() + REST);
            }
        }
    }
}

impl From<&Room> for Object {
    fn from(room: &Room) -> Self {
        Self {
            id: room.room,
            app_id: room.app,
            anchor_id: room.anchor,
            room_type: room.room_type,
            room_name: room.name.clone(),
            covert_img: room.cover.clone(),
            good_num: room.good_num,
            start_time: room.opened_at_ms,
            log_pos: room.opened,
        }
    }
}

impl From<Object> for Room {
    fn from(object: Object) -> Self {
        Self {
            app: object.app_id,
            room: object.id,
            anchor: object.anchor_id,
            room_type: object.room_type,
            name: object.room_name,
            cover: object.covert_img,
            good_num: object.good_num,
            opened: object.log_pos,
            opened_at_ms: object.start_time,
        }
    }
}

/// Sent whole each time: shorter than a round trip to find out whether Redis knows it.
fn eval(script: &str, keys: &[String]) -> Cmd {
    let mut eval = cmd("EVAL");
    eval.arg(script).arg(keys.len()).arg(keys);
    eval
}

fn of_redis<T: FromRedisValue>(value: Value) -> Option<T> {
    from_redis_value(value).ok()
}

fn nonce() -> String {
    format!("{:032x}", fresh_nonce())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn object_key(room: RoomId) -> String {
    format!("{PREFIX}:living_room_obj:{room}")
}

fn list_key((app, room_type): (AppId, u8)) -> String {
    format!("{PREFIX}:living_room_list:{app}:{room_type}")
}

fn mark_key() -> String {
    format!("{PREFIX}:living_room_lists_read")
}

fn lock_key() -> String {
    format!("{PREFIX}:refresh_living_room_list_lock")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::servers::Redis;

    /// How long anything here may take to come true.
    const SOON: Duration = Duration::from_secs(20);

    fn app() -> AppId {
        "10001".parse().unwrap()
    }

    fn id(id: u64) -> RoomId {
        RoomId::try_from(id).unwrap()
    }

    fn room(number: u64) -> Room {
        Room {
            app: app(),
            room: id(number),
            anchor: "18446744073709551615".parse().unwrap(),
            room_type: 1,
            name: "安的直播间🎣".into(),
            cover: String::new(),
            good_num: 0,
            opened: MsgId::at(number),
            opened_at_ms: 1_700_000_000_000,
        }
    }

    fn listed(rooms: &[u64]) -> Listed {
        let of_type_1 = rooms.iter().map(|number| Arc::new(room(*number))).collect();
        Listed::from([((app(), 1), of_type_1), ((app(), 2), vec![])])
    }

    const KEYS: [u8; 2] = [1, 2];

    async fn read_lists(shared: &Shared) -> Option<Listed> {
        shared.lists(&KEYS.map(|room_type| (app(), room_type))).await.unwrap()
    }

    async fn lease(shared: &Shared, number: u64) -> String {
        match shared.find(id(number)).await.unwrap() {
            Found::Lease(lease) => lease,
            found => panic!("{found:?} is there already"),
        }
    }

    /// Until Redis answers; what it answers.
    async fn find_again(shared: &Shared, number: u64) -> Found {
        let started = Instant::now();
        loop {
            match shared.find(id(number)).await {
                Ok(found) => return found,
                Err(error) => assert!(started.elapsed() < SOON, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn keys_and_times_are_the_seeds() {
        let redis = Redis::start().await;
        let shared = Shared::new(&redis.url()).unwrap();
        let (open, nothing) = (lease(&shared, 7).await, lease(&shared, 8).await);
        shared.keep(id(7), &open, Some(&room(7))).await;
        shared.keep(id(8), &nothing, None).await;
        assert!(matches!(shared.find(id(7)).await, Ok(Found::Room(found)) if found == room(7)));
        assert!(matches!(shared.find(id(8)).await, Ok(Found::Nothing)));

        let lock = shared.lock().await.unwrap().unwrap();
        shared.swap_lists(&lock, &listed(&[9, 7])).await;
        assert_eq!(read_lists(&shared).await, Some(listed(&[9, 7])));
        let ttl = |key: &str| {
            redis.asks(&["PTTL", &format!("qiyu-live-living-provider:{key}")]).parse().unwrap()
        };
        for (key, most) in [
            ("living_room_obj:7", 30 * 60_000),
            ("living_room_obj:8", 60_000),
            ("refresh_living_room_list_lock", 1_000),
        ] {
            let left: i64 = ttl(key);
            let expired = key.ends_with("lock") && left == -2; // it lasts for a second only
            assert!((1..=most).contains(&left) || expired, "{key}: {left} ms");
        }
        assert_eq!(ttl("living_room_list:10001:1"), -1, "it stays until the next is there");
        assert_eq!(ttl("living_room_list:10001:2"), -2, "an empty list is no key");
    }

    /// The seed's defect 53, and the same the other way round: what a slow reader
    /// has read is not kept once the room has opened or closed.
    #[tokio::test]
    async fn what_was_read_before_a_change_is_not_kept() {
        let redis = Redis::start().await;
        let shared = Shared::new(&redis.url()).unwrap();
        for before in [None, Some(&room(7))] {
            let late = lease(&shared, 7).await;
            assert!(matches!(shared.find(id(7)).await, Ok(Found::Leased)), "one reads");
            shared.forget(id(7)).await; // it opens, or closes
            shared.keep(id(7), &late, before).await;
            let fresh = lease(&shared, 7).await;
            shared.keep(id(7), &late, before).await; // nor under another's lease
            assert!(matches!(shared.find(id(7)).await, Ok(Found::Leased)));
            shared.keep(id(7), &fresh, None).await;
            assert!(matches!(shared.find(id(7)).await, Ok(Found::Nothing)));
            shared.forget(id(7)).await;
        }
    }

    #[tokio::test]
    async fn nothing_is_believed_that_a_lost_word_could_have_changed() {
        let redis = Redis::start().await;
        let (shared, other) =
            (Shared::new(&redis.url()).unwrap(), Shared::new(&redis.url()).unwrap());
        let (kept, held) = (lease(&shared, 7).await, lease(&shared, 8).await);
        shared.keep(id(7), &kept, Some(&room(7))).await;
        assert!(matches!(find_again(&shared, 7).await, Found::Room(_)));

        redis.freezes();
        shared.forget(id(7)).await;
        shared.forget(id(8)).await;
        redis.thaws();
        // The words were lost, or came late: here they are lost.
        redis.asks(&["SET", &object_key(id(7)), &format!("{} null", at(&kept) - 1)]);
        redis.asks(&["SET", &object_key(id(8)), &held]);
        other.keep(id(8), &held, Some(&room(8))).await; // who read it before the closing
        for number in [7, 8] {
            assert!(matches!(find_again(&shared, number).await, Found::Lease(_)), "{number}");
        }
    }

    fn at(lease: &str) -> u64 {
        lease.split_once(' ').unwrap().0.parse().unwrap()
    }

    /// The seed's defect 57: rows of two readers in one list, or of a reader that died.
    #[tokio::test]
    async fn of_two_readers_the_one_that_lost_the_lock_changes_nothing() {
        let redis = Redis::start().await;
        let shared = Shared::new(&redis.url()).unwrap();
        let slow = shared.lock().await.unwrap().unwrap();
        assert_eq!(shared.lock().await.unwrap(), None, "one at a time");
        redis.asks(&["DEL", &lock_key()]); // it took longer than its lock
        let quick = shared.lock().await.unwrap().unwrap();
        shared.swap_lists(&quick, &listed(&[3, 2])).await;
        shared.swap_lists(&slow, &listed(&[2, 1])).await;
        assert_eq!(read_lists(&shared).await, Some(listed(&[3, 2])));
        assert_eq!(redis.asks(&["KEYS", "*_temp*"]), "", "nothing is left behind");

        shared.unlock(&slow).await;
        assert_eq!(redis.asks(&["EXISTS", &lock_key()]), "1", "nor does it open another's lock");
    }

    #[tokio::test]
    async fn lists_that_are_empty_are_there_and_flushed_ones_are_not() {
        let redis = Redis::start().await;
        let shared = Shared::new(&redis.url()).unwrap();
        assert_eq!(read_lists(&shared).await, None);
        let lock = shared.lock().await.unwrap().unwrap();
        shared.swap_lists(&lock, &listed(&[])).await;
        assert_eq!(read_lists(&shared).await, Some(listed(&[])));
        redis.asks(&["FLUSHALL"]);
        assert_eq!(read_lists(&shared).await, None);
        assert!(shared.lock().await.unwrap().is_some(), "whoever comes first writes them anew");
    }

    #[tokio::test]
    async fn a_redis_that_is_silent_costs_one_wait_and_heals() {
        let mut redis = Redis::start().await;
        let shared = Shared::new(&redis.url()).unwrap();
        lease(&shared, 7).await;
        redis.freezes();
        let failed = shared.find(id(7)).await.unwrap_err();
        assert!(!matches!(failed, SharedError::Resting), "{failed}");
        assert!(matches!(shared.find(id(7)).await, Err(SharedError::Resting)), "nobody waits");
        redis.thaws();
        find_again(&shared, 7).await;

        redis.dies();
        shared.find(id(7)).await.unwrap_err();
        assert!(matches!(shared.find(id(7)).await, Err(SharedError::Resting)), "nobody waits");
        redis.comes_back().await;
        assert!(matches!(find_again(&shared, 7).await, Found::Lease(_)), "it is empty");
    }
}
