//! `qiyu verify`: every projection is compared with the log. Each is broken by
//! hand here, and found, and named.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{APP, FAST, MariaDb, Nats, PATIENCE, Room, Socket, Stack, eventually, packed};

/// Ends as [`Verdict::Same`] and so on, with what was said.
async fn verify(stack: &Stack, args: &[&str]) -> (Verdict, String) {
    let output = stack.command(&[&["verify"], args].concat()).await;
    let verdict = match output.status.code() {
        Some(0) => Verdict::Same,
        Some(1) => Verdict::Differs,
        Some(2) => Verdict::Unchecked,
        other => panic!("verify ended with {other:?}"),
    };
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    (verdict, String::from_utf8_lossy(&output.stdout).into_owned() + &complained)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Same,
    Differs,
    Unchecked,
}

async fn is_as_the_log_says(stack: &Stack) -> String {
    let (verdict, said) = verify(stack, &[]).await;
    assert_eq!(verdict, Verdict::Same, "{said}");
    said
}

/// What `qiyu trace` knows of a message.
async fn traced(stack: &Stack, msg_id: u64) -> Value {
    let output = stack.command(&["trace", &msg_id.to_string(), "--format", "json"]).await;
    serde_json::from_slice(&output.stdout).expect("one JSON value")
}

/// Runs SQL on the tables of `qiyu up`, with what python3 has.
fn sql(stack: &Stack, statement: &str) {
    let path = Path::new(&stack.data_dir()).join("qiyu.db");
    let script = "import sqlite3, sys\nwith sqlite3.connect(sys.argv[1]) as db:\n    \
                  assert db.execute(sys.argv[2]).rowcount == 1, sys.argv[2]";
    let ended = Command::new("python3").args(["-c", script]).arg(path).arg(statement).status();
    assert!(ended.expect("python3 is there").success(), "{statement}");
}

/// What has happened.
struct Past {
    room: Room,
    ann: Socket,
    bob: Socket,
    /// What Ann said in the room.
    said: u64,
    /// What she told somebody who is away.
    whispered: u64,
}

/// A room with people who have talked in it, and one that is over.
async fn a_room_with_a_past(stack: &Stack) -> Past {
    let over = stack.anchor("zoe").await;
    let closed = over.opens_room().await;
    over.closes(&closed).await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let said = ann.says_surely(&room, "tea?").await;
    bob.hears("tea?").await;
    let away = stack.person("cid").await;
    let whispered = ann.whispers_surely(&away, "psst").await;
    stack.owes_nothing().await;
    Past { room, ann, bob, said, whispered }
}

#[tokio::test]
async fn while_people_talk_come_and_go_everything_is_what_the_log_says() {
    let mut stack = Stack::with(FAST).await;
    let Past { room, mut ann, mut bob, .. } = a_room_with_a_past(&stack).await;
    let talking = async {
        for round in 0..20 {
            let text = round.to_string();
            ann.says_surely(&room, &text).await;
            bob.hears(&text).await;
            let passer_by = stack.person("dan").await.ws_into(&room).await;
            passer_by.drops_without_goodbye();
        }
    };
    let (said, ()) = tokio::join!(is_as_the_log_says(&stack), talking);
    for projection in ["membership", "sessions", "presence", "rooms", "anchors", "counters"] {
        assert!(said.contains(projection), "{projection} was not compared: {said}");
    }
    stack.owes_nothing().await;
    let said = is_as_the_log_says(&stack).await;
    let sums = said.lines().find(|line| line.contains(&format!("room {room}:")));
    let sums = sums.unwrap_or_else(|| panic!("{said}"));
    // Who left while a message came may count as in flight for a minute; nothing is lost of it.
    let number = |word: &str| word.parse::<u64>().ok();
    let [messages, accepted, parts @ ..] = &sums
        .split_once(':')
        .unwrap()
        .1
        .split([' ', ';'])
        .filter_map(number)
        .collect::<Vec<_>>()[..]
    else {
        panic!("{sums}");
    };
    assert_eq!((*messages, *accepted), (21, parts[..5].iter().sum()), "{sums}");
    assert!(21 <= parts[0] && parts[4] == 0, "{sums}");
    assert!(said.contains("1:1: 1 = 0 acknowledged + 1 waiting"), "{said}");

    // After a sudden end, and where nothing runs.
    stack.is_killed().await;
    is_as_the_log_says(&stack).await;
    stack.starts_again().await;
    is_as_the_log_says(&stack).await;
    stack.stops().await;
}

#[tokio::test]
async fn whatever_is_broken_by_hand_is_found_and_named() {
    let stack = Stack::with(&[("QIYU_VERIFY_EVERY", "1s")]).await;
    let Past { room, ann, bob, said, whispered } = a_room_with_a_past(&stack).await;
    is_as_the_log_says(&stack).await;
    eventually("it verifies itself, and finds nothing", PATIENCE, async || {
        let runs = stack.get("/metrics").await.text().contains("qiyu_verify_differences{");
        runs && stack.metric("qiyu_verify_differences").await == 0.0
    })
    .await;
    let life = traced(&stack, said).await;
    let gateway = life["audience"][0]["gateway"].clone();
    let anchor = bob.person.looks_at(&room).await["anchorId"].as_u64().unwrap();

    let mut nats = Nats::of(Path::new(&stack.data_dir())).await;
    let breaks = [
        // As it was before the second of them came: a count that stood still.
        (format!("$KV.watch.{APP}.{room}"), json!({ "watch_num": 1, "good_num": 0 })),
        (
            format!("$KV.rooms.{APP}.{room}"),
            json!({ "anchor": anchor, "room_type": 1, "name": "renamed", "cover": "",
                "opened": 257, "opened_at_ms": 0 }),
        ),
        (format!("$KV.anchors.{APP}.{anchor}"), json!({ "room": 999_999, "at_ms": 0 })),
        (format!("$KV.anchors.{APP}.{}", anchor + 1), json!({ "room": room.0, "at_ms": 0 })),
        (format!("$KV.anchors.{APP}.{}", anchor + 2), json!("nonsense")),
        (
            format!("$KV.presence.{APP}.{}", bob.person.id + 1_000_000),
            json!([{ "gateway": gateway, "connection": 99, "room": null, "since_ms": 0 }]),
        ),
        (
            format!("$KV.measures.{APP}.{room}.{}", bob.person.id),
            json!({ "folded": said, "mute": { "msg_id": said, "at_ms": 0, "until_ms": null,
                "reason": "by hand", "by": null }, "ban": null, "kick": null }),
        ),
        (
            "im.ledger.by-hand".to_owned(),
            json!({ "gateway": gateway, "at_ms": 0, "outcomes": [{ "app": APP, "room": room.0,
                "msg_id": said, "via": "envelope", "resolved": 9, "written": 9,
                "acknowledged": 1, "resent": 0, "given_up": 0, "left": 0, "exceptions": [] }] }),
        ),
    ];
    for (subject, value) in breaks {
        let answer = nats.commands(&subject, &packed(&value)).await;
        assert!(String::from_utf8_lossy(&answer).contains("\"seq\""), "{subject} took it");
    }
    nats.empties("IM_INBOX").await; // what cid was told while away
    sql(&stack, &format!("UPDATE t_living_room SET anchor_id = 999999 WHERE id = {room}"));
    sql(&stack, "DELETE FROM t_living_room_record");

    let (verdict, told) = verify(&stack, &[]).await;
    assert_eq!(verdict, Verdict::Differs, "{told}");
    let paragraph = |of: &str| {
        let found = told.split("\n\n").find(|paragraph| paragraph.starts_with(of));
        found.unwrap_or_else(|| panic!("no {of:?} in {told}"))
    };
    let watched = paragraph(&format!("room {APP}.{room} in the bucket watch"));
    assert!(watched.contains("is       1 inside") && watched.contains("the log  2 inside"));
    assert!(watched.contains("they part at") && watched.contains(".members"), "{watched}");
    let renamed = paragraph(&format!("room {APP}.{room} in the bucket rooms"));
    assert!(renamed.contains("\"renamed\"") && renamed.contains("nothing the log ever said"));
    let claim =
        |of: u64| paragraph(&format!("room {APP}.{room} in the bucket anchors, for anchor {of}\n"));
    assert!(claim(anchor).contains("is       nothing there"), "{}", claim(anchor));
    assert!(claim(anchor).contains(".opened"), "{}", claim(anchor));
    assert!(claim(anchor + 1).contains("the log  nothing there"), "{}", claim(anchor + 1));
    assert!(paragraph(&format!("anchor {APP}.{}\n", anchor + 2)).contains("not readable"));
    let ghost =
        paragraph(&format!("user {APP}.{} in the bucket presence", bob.person.id + 1_000_000));
    assert!(
        ghost.contains("connections 99 of") && ghost.contains("no event of the log"),
        "{ghost}"
    );
    let muted = paragraph(&format!("user {APP}.{} in room {room} in the bucket", bob.person.id));
    assert!(muted.contains("by hand") && muted.contains("the log  nothing there"), "{muted}");
    let row = paragraph(&format!("room {APP}.{room} in t_living_room\n"));
    assert!(row.contains("of user 999999") && row.contains(&format!("of user {anchor}")), "{row}");
    let kept = paragraph(&format!("message {whispered} in the inbox of user {APP}."));
    assert!(kept.contains("is       nothing there") && kept.contains("they part at"), "{kept}");
    let record = paragraph(&format!("room {APP}."));
    assert!(!record.is_empty() && told.contains("in t_living_room_record"), "{told}");
    assert!(told.contains("contradicts itself"), "{told}");
    assert!(told.contains("9 connections, and the log knows 1 there"), "{told}");

    let (verdict, told) = verify(&stack, &["--room", "424242", "--format", "json"]).await;
    assert_eq!(verdict, Verdict::Same, "of another room nothing is broken: {told}");
    eventually("it finds it by itself, too", PATIENCE * 3, async || {
        10.0 <= stack.metric("qiyu_verify_differences").await
    })
    .await;
    let nowhere = "sqlite:///nowhere/at/all.db?mode=rwc";
    let (verdict, told) = verify(&stack, &["--room", "424242", "--database-url", nowhere]).await;
    assert_eq!(verdict, Verdict::Unchecked, "{told}");
    assert!(told.contains("table        NOT CHECKED"), "{told}");

    nats.loses("IM_IN", said >> 8).await;
    let (verdict, told) = verify(&stack, &[]).await;
    assert_eq!(verdict, Verdict::Differs, "{told}");
    assert!(told.contains(&format!("event {said}\n  is       missing")), "{told}");
    drop((ann, bob));
    stack.stop().await;
}

#[tokio::test]
async fn a_fold_that_has_forgotten_a_room_is_found_and_the_event_named() {
    let mut stack = Stack::start().await;
    let Past { room, ann, bob, said, .. } = a_room_with_a_past(&stack).await;
    let partition = traced(&stack, said).await["partition"].as_str().unwrap().to_owned();
    eventually("the fold is recorded beyond the message", PATIENCE, async || {
        let mut nats = Nats::of(Path::new(&stack.data_dir())).await;
        let at = nats.last_of("KV_positions", &format!("$KV.positions.{partition}")).await;
        !at.is_empty()
    })
    .await;
    drop((ann, bob));

    // A snapshot that knows nothing, from behind the message: the next owner starts from it.
    let mut nats = Nats::of(Path::new(&stack.data_dir())).await;
    let position = said >> 8;
    let nothing = json!({ "rooms": {}, "users": {}, "gateways": {}, "sent": {}, "measures": {} });
    let heads = json!([{ "position": position, "chunks": 1, "at_ms": 0 }]);
    for (subject, value) in [
        (format!("im.snap.{partition}.{position}.0"), &nothing),
        (format!("$KV.positions.{partition}.snapshots"), &heads),
    ] {
        let answer = nats.commands(&subject, &packed(value)).await;
        assert!(String::from_utf8_lossy(&answer).contains("\"seq\""), "{subject} took it");
    }
    stack.stops().await;
    stack.starts_again().await;

    let (verdict, told) = verify(&stack, &[]).await;
    assert_eq!(verdict, Verdict::Differs, "{told}");
    let opened = format!("im.in.{partition}.{APP}.room.{room}.opened");
    for of in [
        format!("room {APP}.{room} in the fold of the owner of {partition}"),
        format!("room {APP}.{room} in the snapshot of {partition} at {position}"),
    ] {
        let found = told.split("\n\n").find(|paragraph| paragraph.starts_with(&of));
        let found = found.unwrap_or_else(|| panic!("no {of:?} in {told}"));
        assert!(found.contains("nothing there") && found.contains("they part at"), "{found}");
        assert!(found.contains(&opened), "{found}");
    }

    let mut nats = Nats::of(Path::new(&stack.data_dir())).await;
    let answer = nats.commands(&format!("im.snap.{partition}.{position}.0"), b"\xc1").await;
    assert!(String::from_utf8_lossy(&answer).contains("\"seq\""), "it took it");
    let (verdict, told) = verify(&stack, &[]).await;
    assert_eq!(verdict, Verdict::Differs, "{told}");
    let garbled = format!("the snapshot of {partition} at {position}\n  is       not readable");
    assert!(told.contains(&garbled), "{told}");
    stack.stop().await;
}

#[tokio::test]
async fn what_is_lost_in_a_queue_is_missed_until_it_is_accounted_for() {
    let stack = Stack::with(&[("QIYU_ACK_WAIT", "30s")]).await;
    let room = stack.room().await;
    let mut ann = stack.person("ann").await.ws_into(&room).await;
    let mut bob = stack.person("bob").await.never_acks().ws_into(&room).await;
    let said = ann.says_surely(&room, "tea?").await;
    bob.hears("tea?").await;
    // It waits for Bob's acknowledgement, and nothing would ever send it again.
    Nats::of(Path::new(&stack.data_dir())).await.empties("IM_OUT").await;

    let (verdict, told) = verify(&stack, &[]).await;
    assert_eq!(verdict, Verdict::Same, "for a minute it may be on its way: {told}");
    assert!(told.contains("1 message for 1 connection = 0 acknowledged"), "{told}");
    assert!(told.contains("1 in flight"), "{told}");
    let (verdict, told) = verify(&stack, &["--grace", "0s"]).await;
    assert_eq!(verdict, Verdict::Differs, "{told}");
    assert!(told.contains(&format!("message {said}: it was handed to gateway")), "{told}");
    assert!(told.contains("has it no more and reported nothing"), "{told}");

    bob.acks(&[said]);
    stack.owes_nothing().await;
    let (verdict, told) = verify(&stack, &["--grace", "0s"]).await;
    assert_eq!(verdict, Verdict::Same, "{told}");
    assert!(told.contains("1 acknowledged"), "{told}");
    stack.stop().await;
}

#[tokio::test]
async fn the_tables_of_a_mariadb_are_compared_too() {
    let mariadb = MariaDb::start().await;
    let url = mariadb.database("qiyu");
    let stack = Stack::with(&[("QIYU_DATABASE_URL", &url)]).await;
    let Past { room, ann, bob, .. } = a_room_with_a_past(&stack).await;
    let on_it = ["--database-url", url.as_str()];
    let (verdict, told) = verify(&stack, &on_it).await;
    assert_eq!(verdict, Verdict::Same, "{told}");
    for projection in ["table", "records"] {
        assert!(told.contains(&format!("{projection:<13}1 compared, as the log says")), "{told}");
    }

    let renamed = format!("UPDATE qiyu.t_living_room SET room_name = 'renamed' WHERE id = {room}");
    mariadb.asks(&renamed).expect("it is changed");
    let reopened = "UPDATE qiyu.t_living_room_record SET end_time = end_time + 1";
    mariadb.asks(reopened).expect("it is changed");
    let (verdict, told) = verify(&stack, &on_it).await;
    assert_eq!(verdict, Verdict::Differs, "{told}");
    for projection in ["table", "records"] {
        assert!(told.contains(&format!("{projection:<13}1 compared, 1 DIFFER")), "{told}");
    }
    assert!(told.contains("\"renamed\""), "{told}");
    drop((ann, bob));
    stack.stop().await;
}

#[tokio::test]
async fn what_came_while_the_only_one_there_was_away_for_a_moment_is_accounted_for() {
    let roles = ["fanout", "presence,living,api", "gateway", "gateway"];
    let stack = Stack::roles(&roles, FAST).await;
    let room = stack.room().await;
    let mut ann = stack.person("ann").await.via(&stack.gateway(1)).ws_into(&room).await;
    let bob = stack.person("bob").await.via(&stack.gateway(2)).ws_into(&room).await;
    let back = bob.person.clone();
    stack.freezes(("fanout", 0));
    let said = ann.says_surely(&room, "tea?").await;
    bob.drops_without_goodbye();
    let mut bob = back.ws_into(&room).await;
    stack.thaws(("fanout", 0));
    ann.says_surely(&room, "still there?").await;
    bob.hears("still there?").await;
    stack.owes_nothing().await;
    let (verdict, told) = verify(&stack, &["--grace", "0s"]).await;
    assert_ne!(verdict, Verdict::Differs, "{told}"); // the tables are elsewhere
    assert!(told.contains("2 messages for 2 connections = 1 acknowledged"), "{told}");
    assert!(told.contains("1 left + 0 in flight"), "{told}");
    let life = traced(&stack, said).await;
    let outcomes = life["outcomes"].as_array().map(Vec::len);
    assert_eq!(outcomes, Some(2), "each gateway says how it ended there: {life}");
    stack.stop().await;
}
