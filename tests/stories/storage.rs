//! Rooms on a real MariaDB and a real Redis: what is kept where, and what people notice when
//! either dies, freezes or forgets (`docs/STORAGE.md`).

use std::process::Output;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;

use crate::harness::{
    MariaDb, PASSWORD, PATIENCE, Person, Redis, Room, Stack, eventually, run_to_end,
};

/// A database that comes back is found again, and the log applied, within this.
const HEALED: Duration = Duration::from_secs(30);

const OBJECT: &str = "qiyu-live-living-provider:living_room_obj:";

const LIST: &str = "qiyu-live-living-provider:living_room_list:10001:1";

/// Where both are, as every process is told.
struct Place {
    database: String,
    cache: String,
}

impl Place {
    fn of(mariadb: &MariaDb, redis: &Redis) -> Self {
        Self { database: mariadb.database("qiyu"), cache: redis.url() }
    }

    fn settings(&self) -> [(&str, &str); 2] {
        [("QIYU_DATABASE_URL", &self.database), ("QIYU_REDIS_URL", &self.cache)]
    }
}

/// Everything in one process, on both.
async fn on(mariadb: &MariaDb, redis: &Redis) -> Stack {
    Stack::with(&Place::of(mariadb, redis).settings()).await
}

async fn page(person: &Person, number: usize, size: usize) -> (Vec<u64>, bool) {
    let (number, size) = (number.to_string(), size.to_string());
    let params = [("type", "1"), ("page", number.as_str()), ("pageSize", size.as_str())];
    let data = person.gets("/living/list", &params).await;
    let rows = data["list"].as_array().unwrap_or_else(|| panic!("no list in {data}"));
    let ids = rows.iter().map(|row| row["id"].as_u64().expect("a number")).collect();
    (ids, data["hasNext"].as_bool().expect("yes or no"))
}

async fn lists(person: &Person, rooms: &[&Room]) {
    let expected: Vec<u64> = rooms.iter().map(|room| room.0).collect();
    eventually(&format!("{expected:?} are listed"), HEALED, async || {
        page(person, 1, 100).await.0 == expected
    })
    .await;
}

async fn is_open(person: &Person, room: &Room) -> bool {
    person.looks_at(room).await["roomId"] == room.0
}

/// A small life of a room, with nobody noticing what is missing behind it.
async fn rooms_go_on(stack: &Stack, anchor: &Person, others: &[&Room]) {
    let nobody = stack.stranger();
    let room = anchor.opens_room().await;
    assert!(is_open(anchor, &room).await, "whoever opened it finds it at once");
    lists(&nobody, &[&[&room], others].concat()).await;
    let [mut ann, bob] = stack.browsers(&room, ["ann", "bob"]).await;
    bob.says(&room, "still here");
    ann.hears("still here").await;
    anchor.closes(&room).await;
    assert!(!is_open(anchor, &room).await, "whoever closed it does not find it");
    lists(&nobody, others).await;
    ann.is_told(5600).await;
}

async fn is_ready(stack: &Stack) -> bool {
    stack.get("/readyz").await.status == 200
}

#[tokio::test]
async fn a_room_is_a_row_and_then_one_record() {
    let (mariadb, redis) = (MariaDb::start().await, Redis::start().await);
    let mut stack = on(&mariadb, &redis).await;
    let anchor = stack.anchor("安的🎣").await;
    let room = anchor.opens_room().await;
    let row = "SELECT id, anchor_id, type, status, room_name FROM qiyu.t_living_room";
    let expected = format!("{room}\t{}\t1\t1\t安的🎣's room", anchor.id);
    assert_eq!(mariadb.asks(row), Ok(expected), "the server speaks latin1, the tables do not");
    let page = anchor.looks_at(&room).await;
    assert_eq!(page["anchorNickName"], "安的🎣");

    let [ann, bob, cid] = stack.browsers(&room, ["ann", "bob", "cid"]).await;
    eventually("three are counted", PATIENCE, async || anchor.counts(&room).await == 3).await;
    ann.logout().await;
    eventually("two are counted", PATIENCE, async || anchor.counts(&room).await == 2).await;

    // The seed's defect 52: two closings at once left two records.
    let id = room.to_string();
    let params = [("roomId", id.as_str())];
    let closes = (0..5).map(|_| anchor.asks("/living/closeLiving", &params));
    let mut codes: Vec<i64> = join_all(closes).await.iter().map(|answer| answer.code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [200, 501, 501, 501, 501]);
    assert_eq!(mariadb.asks(row), Ok(String::new()));
    let record = "SELECT room_id, anchor_id, status, watch_num, end_time >= start_time
                  FROM qiyu.t_living_room_record";
    let expected = format!("{room}\t{}\t0\t3\t1", anchor.id);
    assert_eq!(mariadb.asks(record).as_ref(), Ok(&expected), "with its peak");
    assert!(!is_open(&anchor, &room).await, "no cache tells of it");
    drop((bob, cid));

    // Another life of the program changes nothing, and goes on counting.
    let next = anchor.opens_room().await;
    stack.stops().await;
    stack.starts_again().await;
    assert!(is_open(&anchor, &next).await && !is_open(&anchor, &room).await);
    assert_eq!(anchor.opens_room().await, next);
    assert_eq!(mariadb.asks(record), Ok(expected));
    stack.stop().await;
}

#[tokio::test]
async fn redis_holds_the_seeds_keys_for_the_seeds_times() {
    let (mariadb, redis) = (MariaDb::start().await, Redis::start().await);
    let stack = on(&mariadb, &redis).await;
    let nobody = stack.stranger();
    let mut rooms = Vec::new();
    for number in 0..5 {
        rooms.push(stack.anchor(&format!("anchor {number}")).await.opens_room().await);
    }
    let newest_first: Vec<&Room> = rooms.iter().rev().collect();
    lists(&nobody, &newest_first).await;
    eventually("Redis has the list", PATIENCE, async || redis.asks(&["LLEN", LIST]) == "5").await;
    let newest: Value = serde_json::from_str(&redis.asks(&["LINDEX", LIST, "0"])).unwrap();
    assert_eq!(newest["id"], rooms[4].0, "newest first");

    // The seed's defects 54 and 56: rows twice, and a next page that is not there.
    let ids: Vec<u64> = newest_first.iter().map(|room| room.0).collect();
    for (number, rows, more) in [(1, &ids[..2], true), (2, &ids[2..4], true), (3, &ids[4..], false)]
    {
        assert_eq!(page(&nobody, number, 2).await, (rows.to_vec(), more), "page {number}");
    }
    // And 55.
    for size in ["0", "-1", "101"] {
        let params = [("type", "1"), ("page", "1"), ("pageSize", size)];
        assert_eq!(nobody.asks("/living/list", &params).await.code, 400, "{size} rows");
    }

    let ann = stack.person("ann").await;
    let none = Room(900_000);
    assert!(is_open(&ann, &rooms[0]).await && !is_open(&ann, &none).await);
    for (room, most) in [(&rooms[0], 1_800), (&none, 60)] {
        let lives = redis.asks(&["TTL", &format!("{OBJECT}{room}")]);
        let lives: i64 = lives.parse().unwrap_or_else(|_| panic!("{lives}"));
        assert!((most - 30..=most).contains(&lives), "{room} lives for {lives} s");
    }
    let hits = stack.metric("qiyu_living_cache_questions_total").await;
    assert!(0.0 < hits, "questions are counted");
    stack.stop().await;
}

#[tokio::test]
async fn redis_dies_freezes_and_forgets_and_rooms_go_on() {
    let (mariadb, mut redis) = (MariaDb::start().await, Redis::start().await);
    let stack = on(&mariadb, &redis).await;
    let (host, anchor) = (stack.anchor("host").await, stack.anchor("anchor").await);
    let stays = host.opens_room().await;
    rooms_go_on(&stack, &anchor, &[&stays]).await;
    assert!(is_open(&host, &stays).await);

    redis.asks(&["FLUSHALL"]);
    assert!(is_open(&host, &stays).await);
    rooms_go_on(&stack, &anchor, &[&stays]).await;
    redis.freezes();
    rooms_go_on(&stack, &anchor, &[&stays]).await;
    assert!(is_ready(&stack).await, "nobody has to come");
    redis.thaws();

    redis.dies();
    let during = anchor.opens_room().await;
    anchor.closes(&during).await;
    rooms_go_on(&stack, &anchor, &[&stays]).await;
    assert!(is_ready(&stack).await);
    redis.comes_back().await;
    eventually("Redis has the list again", HEALED, async || redis.asks(&["LLEN", LIST]) == "1")
        .await;
    rooms_go_on(&stack, &anchor, &[&stays]).await;
    assert!(is_open(&host, &stays).await);
    assert!(!is_open(&host, &during).await);
    assert!(!stack.log().contains(PASSWORD), "{}", stack.log());
    stack.stop().await;
}

#[tokio::test]
async fn mariadb_dies_and_comes_back_and_no_room_is_lost() {
    let (mut mariadb, redis) = (MariaDb::start().await, Redis::start().await);
    let stack = on(&mariadb, &redis).await;
    let (host, anchor) = (stack.anchor("host").await, stack.anchor("anchor").await);
    let (stays, ends) = (host.opens_room().await, anchor.opens_room().await);
    let outside = stack.stranger();
    lists(&outside, &[&ends, &stays]).await;

    mariadb.dies();
    anchor.closes(&ends).await;
    let opened = anchor.opens_room().await;
    lists(&outside, &[&opened, &stays]).await;
    let mut ann = host.ws_into(&opened).await;
    ann.says_surely(&opened, "without a database").await;
    for (room, open) in [(&stays, true), (&ends, false), (&opened, true)] {
        assert_eq!(is_open(&host, room).await, open, "{room}: the log knows");
    }
    eventually("it says that it needs somebody", HEALED, async || !is_ready(&stack).await).await;

    mariadb.comes_back().await;
    // The seed's defect 58: one failure ended the schedule for ever.
    eventually("it is well again", HEALED, async || is_ready(&stack).await).await;
    let rows = "SELECT id FROM qiyu.t_living_room ORDER BY id";
    let expected = format!("{stays}\n{opened}");
    eventually("the rows are there", HEALED, async || mariadb.asks(rows).as_ref() == Ok(&expected))
        .await;
    let records = mariadb.asks("SELECT room_id FROM qiyu.t_living_room_record");
    assert_eq!(records, Ok(ends.to_string()));
    anchor.closes(&opened).await;
    rooms_go_on(&stack, &anchor, &[&stays]).await;
    assert!(!stack.log().contains(PASSWORD), "{}", stack.log());
    stack.stop().await;
}

/// Two living processes and two of the api on one empty database, and one of each dies.
#[tokio::test]
async fn processes_share_one_database_and_one_cache() {
    let (mariadb, redis) = (MariaDb::start().await, Redis::start().await);
    let place = Place::of(&mariadb, &redis);
    let roles = ["gateway,api,fanout,presence", "living", "living"];
    let mut stack = Stack::roles(&roles, &place.settings()).await;
    let anchor = stack.anchor("anchor").await;
    let first = anchor.opens_room().await;
    for _ in 0..8 {
        assert!(is_open(&anchor, &first).await, "whichever of them is asked");
    }
    anchor.closes(&first).await;
    for _ in 0..8 {
        assert!(!is_open(&anchor, &first).await, "whichever of them is asked");
    }
    stack.kills(("living", 0)).await;
    rooms_go_on(&stack, &anchor, &[]).await;
    stack.revives(("living", 0)).await;
    rooms_go_on(&stack, &anchor, &[]).await;
    let records = mariadb.asks("SELECT COUNT(*) FROM qiyu.t_living_room_record");
    assert_eq!(records, Ok("3".to_owned()));
    stack.stop().await;
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// `qiyu rebuild`, while the system runs.
async fn is_rebuilt(stack: &Stack, settings: &[(&str, &str)]) -> String {
    let output = run_to_end(&["rebuild", "--data-dir", &stack.data_dir()], settings).await;
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

#[tokio::test]
async fn one_command_makes_the_tables_anew() {
    let (mariadb, redis) = (MariaDb::start().await, Redis::start().await);
    let place = Place::of(&mariadb, &redis);
    let settings = place.settings();
    let stack = Stack::with(&settings).await;
    let (anchor, host) = (stack.anchor("anchor").await, stack.anchor("host").await);
    let (over, open) = (anchor.opens_room().await, host.opens_room().await);
    anchor.closes(&over).await;
    let all = "SELECT * FROM qiyu.t_living_room; SELECT * FROM qiyu.t_living_room_record";
    let before = mariadb.asks(all).unwrap();
    assert_eq!(before.lines().count(), 2, "{before}");
    mariadb.asks("DELETE FROM qiyu.t_living_room_record").unwrap();
    mariadb.asks("UPDATE qiyu.t_living_room SET room_name = 'wrong'").unwrap();

    for _ in 0..2 {
        let said = is_rebuilt(&stack, &settings).await;
        assert!(said.contains("open     1") && said.contains("closed   1"), "{said}");
        assert_eq!(mariadb.asks(all).as_ref(), Ok(&before));
    }
    assert!(is_open(&host, &open).await && !is_open(&host, &over).await);
    let data_dir = stack.data_dir();
    stack.stop().await;

    let output = run_to_end(&["rebuild", "--data-dir", &data_dir], &settings).await;
    assert!(!output.status.success(), "there is no log to read: {}", said(&output));
    assert!(said(&output).contains(&data_dir), "it says which: {}", said(&output));
}

#[tokio::test]
async fn sqlite_is_made_anew_by_the_same_command() {
    let stack = Stack::start().await;
    let (anchor, host) = (stack.anchor("anchor").await, stack.anchor("host").await);
    let (over, open) = (anchor.opens_room().await, host.opens_room().await);
    anchor.closes(&over).await;
    let said = is_rebuilt(&stack, &[]).await;
    assert!(said.contains("open     1") && said.contains("closed   1"), "{said}");
    assert!(is_open(&host, &open).await && !is_open(&host, &over).await);
    lists(&host, &[&open]).await;
    stack.stop().await;
}

#[tokio::test]
async fn a_database_that_cannot_be_used_ends_the_start_with_its_name() {
    let mariadb = MariaDb::start().await;
    let url = mariadb.database("qiyu").replace("a-password", "another-password");
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data").display().to_string();
    let settings = [
        ("QIYU_DATABASE_URL", &*url),
        ("QIYU_HTTP_LISTEN", "127.0.0.1:0"),
        ("QIYU_WS_LISTEN", "127.0.0.1:0"),
        ("QIYU_TCP_LISTEN", "127.0.0.1:0"),
    ];
    let output = run_to_end(&["up", "--data-dir", &data], &settings).await;
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("localhost/qiyu"), "it says which: {said}");
    assert!(!said.contains("another-password") && !said.contains("panicked"), "{said}");
}
