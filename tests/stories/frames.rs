//! The phone's frames over TCP, well-formed and not (`docs/PROTOCOL.md` §2.1, §2.3, §2.5).

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use crate::harness::{APP, Person, Room, Stack, frame, frame_claiming};

const MAGIC: i16 = 18673;

#[tokio::test]
async fn a_frame_begins_with_the_golden_bytes_and_may_arrive_byte_by_byte() {
    let stack = Stack::start().await;
    let ann = stack.person("ann").await;
    let golden = frame(1004, r#"{"appId":10001,"bizCode":0,"userId":11113}"#);
    assert_eq!(golden[..10], [0x48, 0xf1, 0, 0, 0x03, 0xec, 0, 0, 0, 0x2a]);

    let phone = ann.dials().await;
    let login = ann.login_body(&ann.token().await, None).to_string();
    let mut pace = interval(Duration::from_millis(2)); // slow enough for a packet each
    for byte in [frame(1001, &login), golden].concat() {
        pace.tick().await;
        phone.sends_bytes([byte]);
    }
    let mut phone = phone.enters().await;
    phone.is_answered(1004, "true").await;
    phone.logout().await;
    stack.stop().await;
}

#[tokio::test]
async fn frames_may_share_a_write_and_be_cut_anywhere() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let mut ann = stack.phone(&room, "ann").await;
    let [mut bob] = stack.browsers(&room, ["bob"]).await;

    let data = json!({ "roomId": room.0, "content": "in one write" });
    let said = ann.chat(&data, Some("together")).to_string();
    let three = [(1004, String::new()), (1003, said.clone()), (1004, String::new())];
    ann.sends_together(&three);
    ann.is_answered(1004, "true").await;
    ann.is_answered(1004, "true").await;
    let stored = ann.receipt().await.outcome.expect("stored");
    assert_eq!(bob.hears("in one write").await.msg_id, stored);

    let heart = frame(1004, "{}");
    let said =
        frame(1003, &said.replace("in one write", "in two writes").replace("together", "cut"));
    for cut in [1, 6, 9, 10, 11, said.len() - 1] {
        ann.sends_bytes([&heart[..], &heart, &said[..cut]].concat());
        ann.is_answered(1004, "true").await;
        ann.is_answered(1004, "true").await;
        ann.sends_bytes(&said[cut..]);
        ann.receipt().await.outcome.expect("stored, or known already");
    }
    bob.hears("in two writes").await;
    bob.hears_nothing_else(&ann, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn a_broken_header_closes_that_line_and_no_other() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut bob] = stack.browsers(&room, ["bob"]).await;
    let mut cid = stack.phone(&room, "cid").await;
    let heartbeat = |magic, len| frame_claiming(magic, 1004, len, b"{}");
    for broken in [
        heartbeat(0x48f2, 2),
        heartbeat(0, 2),
        heartbeat(-1, 2),
        heartbeat(MAGIC, -1),
        heartbeat(MAGIC, i32::MIN),
        heartbeat(MAGIC, i32::MAX),
        heartbeat(MAGIC, 65_537),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut logged_in = stack.phone(&room, "ann").await;
        let mut stranger = stack.stranger().dials().await;
        for phone in [&mut logged_in, &mut stranger] {
            phone.sends_bytes(&broken[..]);
            phone.is_closed_without_a_word().await;
        }
    }
    bob.hears_nothing_else(&cid, &room).await;
    cid.hears_nothing_else(&bob, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn a_body_exactly_at_the_limit_is_read() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let mut ann = stack.phone(&room, "ann").await;
    let [mut bob] = stack.browsers(&room, ["bob"]).await;
    let empty = ann.chat(&json!({ "roomId": room.0, "content": "" }), Some("longest"));
    let longest = "x".repeat(65_536 - empty.to_string().len());
    let full = ann.chat(&json!({ "roomId": room.0, "content": longest }), Some("longest"));
    assert_eq!(full.to_string().len(), 65_536);
    ann.sends(1003, full);
    ann.receipt().await.outcome.expect("stored");
    bob.hears(&longest).await;
    stack.stop().await;
}

#[tokio::test]
async fn an_unknown_code_is_told_so_and_closed() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let mut cid = stack.phone(&room, "cid").await;
    for code in [1999, 1000, 1006, 0, -5, 1007] {
        let mut ann = stack.phone(&room, "ann").await;
        ann.sends(code, json!({ "appId": APP, "userId": ann.person.id }));
        ann.is_refused(4007).await;
        ann.is_closed().await;
    }
    cid.heartbeat().await;
    stack.stop().await;
}

#[tokio::test]
async fn before_login_nothing_else_is_welcome() {
    let stack = Stack::start().await;
    let ann = stack.person("ann").await;
    for code in [1000, 1002, 1003, 1004, 1005, 1006, 1999] {
        let mut phone = ann.dials().await;
        phone.sends(code, json!({ "appId": APP, "userId": ann.id, "bizCode": 5555 }));
        phone.is_closed_without_a_word().await;
    }
    assert!(!ann.sees_online(&ann).await);
    stack.stop().await;
}

#[tokio::test]
async fn somebody_who_never_logs_in_is_shown_out() {
    let stack = Stack::with(&[("QIYU_LOGIN_DEADLINE", "1s")]).await;
    let ann = stack.person("ann").await;
    let mut bob = stack.person("bob").await.tcp().await;
    let dialled = Instant::now();
    let mut silent = ann.dials().await;
    let mut halfway = ann.dials().await;
    halfway.sends_bytes(&frame(1001, "{}")[..7]);
    for phone in [&mut silent, &mut halfway] {
        let after = phone.is_closed_without_a_word().await.at - dialled;
        assert!(Duration::from_millis(900) < after, "only {after:?}");
    }
    bob.heartbeat().await;
    stack.stop().await;
}

/// What a phone may get wrong at login, each with a name for the failing story.
async fn bad_logins(
    stack: &Stack,
    ann: &Person,
    open: &Room,
    closed: &Room,
) -> Vec<(String, Value)> {
    let fresh = ann.token().await;
    let good = ann.login_body(&fresh, Some(open));
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        (format!("{key} = {}", body[key]), body)
    };
    let without = |key: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(key);
        (format!("no {key}"), body)
    };
    let used = ann.token().await;
    let path = format!("/{used}/{}/1004", ann.id);
    ann.knocks(&path, &[]).await.expect("it is good once").enters().await.logout().await;
    let others = stack.person("bob").await.token().await;
    let (last, all_but_last) = (fresh.chars().last(), &fresh[..fresh.len() - 1]);
    let tampered = format!("{all_but_last}{}", if last == Some('A') { 'Q' } else { 'A' });
    vec![
        with("token", json!("nonsense")),
        with("token", json!("")),
        with("token", json!(7)),
        with("token", json!(tampered)),
        with("token", json!(all_but_last)),
        with("token", json!(ann.bearer())),
        with("token", json!(used)),
        with("token", json!(others)),
        with("userId", json!(ann.id + 1)),
        with("userId", json!(9999)),
        with("userId", json!(-1)),
        with("userId", json!("ann")),
        with("appId", json!(10002)),
        with("appId", json!(10003)),
        with("appId", json!(9999)),
        with("roomId", json!(closed.0)),
        with("roomId", json!(999_999_999)),
        with("roomId", json!("tea")),
        without("token"),
        without("userId"),
        without("appId"),
        ("an empty object".to_owned(), json!({})),
        ("a list".to_owned(), json!([])),
    ]
}

#[tokio::test]
async fn every_bad_login_is_told_false_and_closed() {
    let stack = Stack::with(&[("QIYU_APPS", "10001,10002")]).await;
    let anchor = stack.anchor("anchor").await;
    let closed = anchor.opens_room().await;
    anchor.closes(&closed).await;
    let open = anchor.opens_room().await;
    let ann = stack.person("ann").await;
    for (mistake, body) in bad_logins(&stack, &ann, &open, &closed).await {
        let mut phone = ann.called(&mistake).dials().await;
        phone.sends(1001, body);
        phone.is_answered(1001, "false").await;
        phone.is_closed().await;
    }
    for body in ["", "oops"] {
        let mut phone = ann.dials().await;
        phone.sends(1001, body);
        phone.is_answered(1001, "false").await;
        phone.is_closed().await;
    }
    assert!(!ann.sees_online(&ann).await);
    ann.tcp_into(&open).await.logout().await;
    stack.stop().await;
}

#[tokio::test]
async fn an_expired_token_opens_nothing() {
    let stack = Stack::with(&[("QIYU_TOKEN_TTL", "1s")]).await;
    let ann = stack.person("ann").await;
    let ticket = ann.ticket().await;
    ticket.expires().await;
    let path = format!("/{}/{}/1004", ticket.token, ann.id);
    assert_eq!(ann.knocks(&path, &[]).await.err(), Some(401));
    let mut phone = ann.dials().await;
    phone.sends(1001, ann.login_body(&ticket.token, None));
    phone.is_answered(1001, "false").await;
    phone.is_closed().await;
    stack.stop().await;
}

#[tokio::test]
async fn a_second_login_on_the_same_line_changes_nothing() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let mut ann = stack.phone(&room, "ann").await;
    let [mut bob] = stack.browsers(&room, ["bob"]).await;
    let other = stack.room().await;
    let bobs = bob.person.login_body(&bob.person.token().await, Some(&other)).to_string();
    for body in [bobs.as_str(), "{}", "", "oops"] {
        for socket in [&mut ann, &mut bob] {
            socket.sends(1001, body);
            socket.is_answered(1001, "true").await;
        }
    }
    ann.says(&room, "still ann, still here");
    bob.hears("still ann, still here").await;
    bob.says(&room, "still bob");
    ann.hears("still bob").await;
    stack.stop().await;
}

#[tokio::test]
async fn a_heartbeat_is_answered_whatever_it_holds() {
    let stack = Stack::start().await;
    let mut phone = stack.person("ann").await.tcp().await;
    let mut browser = phone.person.ws().await;
    for body in ["", "{}", "oops", "[]", "{\"userId\":1}"] {
        for socket in [&mut phone, &mut browser] {
            socket.sends(1004, body);
            let answer = socket.is_answered(1004, "true").await;
            assert_eq!(
                (&answer["appId"], &answer["userId"]),
                (&json!(APP), &json!(socket.person.id))
            );
        }
    }
    phone.sends_bytes(frame_claiming(MAGIC, 1004, 2, &[0xff, 0xff]));
    phone.is_answered(1004, "true").await;
    phone.logout().await;
    browser.logout().await;
    stack.stop().await;
}

#[tokio::test]
async fn a_goodbye_is_answered_whatever_it_holds() {
    let stack = Stack::start().await;
    let ann = stack.person("ann").await;
    for body in ["", "oops"] {
        for mut socket in [ann.tcp().await, ann.ws().await] {
            socket.sends(1002, body);
            socket.is_answered(1002, "true").await;
            socket.is_closed().await;
        }
    }
    stack.stop().await;
}
