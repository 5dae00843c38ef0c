//! Tests of the cache in a real Redis.

use std::{sync::Arc, time::Instant};

use qiyu_schema::{AppId, MsgId, RoomId};
use test_servers::Redis;

use super::{
    format::{lists_lock_key, room_key},
    *,
};
use crate::room::{ListsByType, Room};

/// Time limit for everything that happens eventually.
const TIMEOUT: Duration = Duration::from_secs(20);

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

fn listed(rooms: &[u64]) -> ListsByType {
    let of_type_1 = rooms.iter().map(|number| Arc::new(room(*number))).collect();
    ListsByType::from([((app(), 1), of_type_1), ((app(), 2), vec![])])
}

const KEYS: [u8; 2] = [1, 2];

async fn read_lists(cache: &RedisCache) -> Option<ListsByType> {
    cache.lists(&KEYS.map(|room_type| (app(), room_type))).await.unwrap()
}

async fn lease(cache: &RedisCache, number: u64) -> String {
    match cache.find(id(number)).await.unwrap() {
        CachedRoom::LeaseGranted(lease) => lease,
        found => panic!("{found:?} is there already"),
    }
}

/// Looks up a room until Redis answers.
async fn find_eventually(cache: &RedisCache, number: u64) -> CachedRoom {
    let started = Instant::now();
    loop {
        match cache.find(id(number)).await {
            Ok(found) => return found,
            Err(error) => assert!(started.elapsed() < TIMEOUT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn keys_and_times_are_those_of_the_first_qiyu() {
    let redis = Redis::start().await;
    let cache = RedisCache::new(&redis.url()).unwrap();
    let (open, nothing) = (lease(&cache, 7).await, lease(&cache, 8).await);
    cache.store(id(7), &open, Some(&room(7))).await;
    cache.store(id(8), &nothing, None).await;
    assert!(matches!(cache.find(id(7)).await, Ok(CachedRoom::Open(found)) if found == room(7)));
    assert!(matches!(cache.find(id(8)).await, Ok(CachedRoom::NotOpen)));

    let lock = cache.lock_lists().await.unwrap().unwrap();
    cache.replace_lists(&lock, &listed(&[9, 7])).await;
    assert_eq!(read_lists(&cache).await, Some(listed(&[9, 7])));
    let ttl = |key: &str| {
        redis.asks(&["PTTL", &format!("qiyu-live-living-provider:{key}")]).parse().unwrap()
    };
    for (key, most) in [
        ("living_room_obj:7", 30 * 60_000),
        ("living_room_obj:8", 60_000),
        ("refresh_living_room_list_lock", 1_000),
    ] {
        let left: i64 = ttl(key);
        let expired = key.ends_with("lock") && left == -2; // it expires within a second
        assert!((1..=most).contains(&left) || expired, "{key}: {left} ms");
    }
    assert_eq!(ttl("living_room_list:10001:1"), -1, "it stays until the next is there");
    assert_eq!(ttl("living_room_list:10001:2"), -2, "an empty list is no key");
}

#[tokio::test]
async fn a_read_that_began_before_a_change_is_not_stored() {
    let redis = Redis::start().await;
    let cache = RedisCache::new(&redis.url()).unwrap();
    for before in [None, Some(&room(7))] {
        let late = lease(&cache, 7).await;
        assert!(
            matches!(cache.find(id(7)).await, Ok(CachedRoom::LeasedToAnother)),
            "one caller reads"
        );
        cache.remove(id(7)).await; // it opens, or closes
        cache.store(id(7), &late, before).await;
        let fresh = lease(&cache, 7).await;
        cache.store(id(7), &late, before).await; // nor under a later lease
        assert!(matches!(cache.find(id(7)).await, Ok(CachedRoom::LeasedToAnother)));
        cache.store(id(7), &fresh, None).await;
        assert!(matches!(cache.find(id(7)).await, Ok(CachedRoom::NotOpen)));
        cache.remove(id(7)).await;
    }
}

#[tokio::test]
async fn entries_from_before_an_unsent_removal_are_read_again() {
    let redis = Redis::start().await;
    let (cache, other) =
        (RedisCache::new(&redis.url()).unwrap(), RedisCache::new(&redis.url()).unwrap());
    let (kept, held) = (lease(&cache, 7).await, lease(&cache, 8).await);
    cache.store(id(7), &kept, Some(&room(7))).await;
    assert!(matches!(find_eventually(&cache, 7).await, CachedRoom::Open(_)));

    redis.freezes();
    cache.remove(id(7)).await;
    cache.remove(id(8)).await;
    redis.thaws();
    // The removals were lost, or come late: here they are lost.
    redis.asks(&["SET", &room_key(id(7)), &format!("{} null", at(&kept) - 1)]);
    redis.asks(&["SET", &room_key(id(8)), &held]);
    other.store(id(8), &held, Some(&room(8))).await; // its read began before the closing
    for number in [7, 8] {
        assert!(
            matches!(find_eventually(&cache, number).await, CachedRoom::LeaseGranted(_)),
            "{number}"
        );
    }
}

fn at(lease: &str) -> u64 {
    lease.split_once(' ').unwrap().0.parse().unwrap()
}

/// A list never holds rows of two readers, or of a reader that died.
#[tokio::test]
async fn a_reader_that_lost_the_lock_changes_no_list() {
    let redis = Redis::start().await;
    let cache = RedisCache::new(&redis.url()).unwrap();
    let slow = cache.lock_lists().await.unwrap().unwrap();
    assert_eq!(cache.lock_lists().await.unwrap(), None, "one at a time");
    redis.asks(&["DEL", &lists_lock_key()]); // it took longer than its lock
    let quick = cache.lock_lists().await.unwrap().unwrap();
    cache.replace_lists(&quick, &listed(&[3, 2])).await;
    cache.replace_lists(&slow, &listed(&[2, 1])).await;
    assert_eq!(read_lists(&cache).await, Some(listed(&[3, 2])));
    assert_eq!(redis.asks(&["KEYS", "*_temp*"]), "", "nothing is left behind");

    cache.unlock_lists(&slow).await;
    assert_eq!(redis.asks(&["EXISTS", &lists_lock_key()]), "1", "nor does it release a later lock");
}

#[tokio::test]
async fn empty_lists_are_cached_and_flushed_lists_are_not() {
    let redis = Redis::start().await;
    let cache = RedisCache::new(&redis.url()).unwrap();
    assert_eq!(read_lists(&cache).await, None);
    let lock = cache.lock_lists().await.unwrap().unwrap();
    cache.replace_lists(&lock, &listed(&[])).await;
    assert_eq!(read_lists(&cache).await, Some(listed(&[])));
    redis.asks(&["FLUSHALL"]);
    assert_eq!(read_lists(&cache).await, None);
    assert!(cache.lock_lists().await.unwrap().is_some(), "the next reader writes them again");
}

#[tokio::test]
async fn an_unavailable_redis_costs_one_wait_and_is_used_again_after_its_return() {
    let mut redis = Redis::start().await;
    let cache = RedisCache::new(&redis.url()).unwrap();
    lease(&cache, 7).await;
    redis.freezes();
    let failed = cache.find(id(7)).await.unwrap_err();
    assert!(!matches!(failed, RedisCallError::Unavailable), "{failed}");
    assert!(matches!(cache.find(id(7)).await, Err(RedisCallError::Unavailable)), "no second wait");
    redis.thaws();
    find_eventually(&cache, 7).await;

    redis.dies();
    cache.find(id(7)).await.unwrap_err();
    assert!(matches!(cache.find(id(7)).await, Err(RedisCallError::Unavailable)), "no second wait");
    redis.comes_back().await;
    assert!(matches!(find_eventually(&cache, 7).await, CachedRoom::LeaseGranted(_)), "it is empty");
}
