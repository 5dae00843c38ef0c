//! Mute, kick, ban: by a room's anchor and by a server, on every gateway, and
//! counts that are told at most once a second (`docs/PROTOCOL.md` §2.4, §3, `docs/API.md`).

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{
    FAST, How, PATIENCE, Person, Request, Room, Socket, Stack, eventually, fresh_id,
};

const KEY: &str = "an-integrator's-key-0123456789";

async fn server(stack: &Stack, verb: &str, body: Value) -> Value {
    let mut request = Request::post(&format!("/server/{verb}"), &[], How::Json);
    request.body = body.to_string().into_bytes();
    let reply = stack.sends(request.header("authorization", &format!("Bearer {KEY}"))).await;
    assert_eq!(reply.status, 200, "{verb} {body}: {}", reply.text());
    reply.json()
}

async fn takes(anchor: &Person, verb: &str, room: &Room, against: &Person, more: &[(&str, &str)]) {
    let (room, user) = (room.to_string(), against.id.to_string());
    let params = [&[("roomId", room.as_str()), ("userId", user.as_str())], more].concat();
    anchor.gets(&format!("/living/{verb}"), &params).await;
}

/// What comes of saying it: the message's id, or the reason.
async fn outcome(speaker: &mut Socket, room: &Room, text: &str) -> Result<u64, i64> {
    let said = json!({ "roomId": room.0, "content": text });
    let body = speaker.chat(&said, Some(&fresh_id()));
    speaker.sends(1003, body);
    speaker.receipt().await.outcome
}

fn notice(body: &Value) -> Value {
    serde_json::from_str(body["data"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn an_anchor_mutes_kicks_and_bans_in_their_own_room() {
    let stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let room = anchor.opens_room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let mut phone = stack.phone(&room, "cid").await;

    takes(&anchor, "mute", &room, &ann.person, &[("seconds", "2"), ("reason", "caps lock")]).await;
    let told = notice(&ann.is_told(5610).await);
    let until = told["until"].as_u64().unwrap_or_else(|| panic!("{told}"));
    assert_eq!((&told["muted"], &told["reason"]), (&json!(true), &json!("caps lock")));
    assert_eq!(told["roomId"], room.0);
    assert_eq!(outcome(&mut ann, &room, "HELLO").await, Err(4010));
    ann.whispers_surely(&bob.person, "I am muted only there").await;
    bob.hears("I am muted only there").await;
    assert!(outcome(&mut bob, &room, "poor ann").await.is_ok(), "it concerns nobody else");
    ann.hears("poor ann").await;
    let list = anchor.gets("/living/measures", &[("roomId", &room.to_string())]).await;
    let listed = &list["list"][0];
    assert_eq!((&listed["userId"], &listed["measure"]), (&ann.person.id.into(), &json!("mute")));
    assert_eq!((&listed["until"], &listed["by"]), (&until.into(), &anchor.id.into()));
    eventually("the mute is over", PATIENCE, async || {
        outcome(&mut ann, &room, "hello").await.is_ok()
    })
    .await;
    takes(&anchor, "mute", &room, &ann.person, &[]).await;
    eventually("ann is muted", PATIENCE, async || {
        outcome(&mut ann, &room, "hello?").await == Err(4010)
    })
    .await;
    takes(&anchor, "unmute", &room, &ann.person, &[]).await;
    eventually("ann may speak", PATIENCE, async || {
        outcome(&mut ann, &room, "hello!").await.is_ok()
    })
    .await;

    takes(&anchor, "kick", &room, &bob.person, &[("reason", "enough")]).await;
    bob.is_answered(1002, "kicked").await;
    bob.is_closed_with(3502).await;
    let mut back = bob.person.ws_into(&room).await;
    takes(&anchor, "kick", &room, &phone.person, &[]).await;
    phone.is_answered(1002, "kicked").await;
    phone.is_closed().await;

    takes(&anchor, "ban", &room, &back.person, &[]).await;
    back.is_closed_with(3504).await;
    let ticket = back.person.token().await;
    let path = format!("/{ticket}/{}/1001/{room}", back.person.id);
    assert_eq!(back.person.knocks(&path, &[]).await.unwrap_err(), 403);
    back.person.ws().await.logout().await; // elsewhere they are welcome
    takes(&anchor, "unban", &room, &back.person, &[]).await;
    eventually("bob may come back", PATIENCE, async || {
        let path = format!("/{}/{}/1001/{room}", back.person.token().await, back.person.id);
        back.person.knocks(&path, &[]).await.is_ok()
    })
    .await;

    let stranger = stack.anchor("another anchor").await;
    let (id, ann) = (room.to_string(), ann.person.id.to_string());
    for (who, params, code) in [
        (&stranger, vec![("roomId", id.as_str()), ("userId", ann.as_str())], 403),
        (&stack.stranger(), vec![("roomId", id.as_str()), ("userId", ann.as_str())], 401),
        (&anchor, vec![("roomId", "999999"), ("userId", ann.as_str())], 404),
        (&anchor, vec![("roomId", id.as_str())], 400),
        (&anchor, vec![("userId", ann.as_str())], 400),
        (&anchor, vec![("roomId", id.as_str()), ("userId", ann.as_str()), ("seconds", "0")], 400),
    ] {
        assert_eq!(who.asks("/living/mute", &params).await.code, code, "{params:?}");
    }
    stack.stop().await;
}

#[tokio::test]
async fn a_server_takes_measures_on_every_gateway_and_they_survive_a_restart() {
    let rest = "fanout,presence,living,api";
    let stack = Stack::roles(&[rest, "gateway", "gateway"], &[("QIYU_API_KEY", KEY)]).await;
    let room = stack.room().await;
    let (ann, bob) = (stack.person("ann").await, stack.person("bob").await);
    let (first, second) = (stack.gateway(1), stack.gateway(2));
    let mut here = ann.via(&first).ws_into(&room).await;
    let mut there = ann.via(&second).tcp_into(&room).await;
    let mut other = bob.via(&second).ws_into(&room).await;

    server(&stack, "mute", json!({ "userId": ann.id, "reason": "everywhere" })).await;
    for device in [&mut here, &mut there] {
        let told = notice(&device.is_told(5610).await);
        assert_eq!((&told["muted"], &told["roomId"]), (&json!(true), &Value::Null), "{told}");
        assert_eq!(outcome(device, &room, "x").await, Err(4010));
    }
    let listed = server(&stack, "measures", json!({ "userId": ann.id })).await;
    assert_eq!(listed["list"][0]["reason"], "everywhere");
    assert_eq!(server(&stack, "unmute", json!({ "userId": ann.id })).await["lifted"], true);
    assert_eq!(server(&stack, "unmute", json!({ "userId": ann.id })).await["lifted"], false);
    eventually("ann may speak", PATIENCE, async || outcome(&mut here, &room, "x").await.is_ok())
        .await;
    other.hears("x").await;

    server(&stack, "kick", json!({ "userId": ann.id, "roomId": room.0 })).await;
    here.is_closed_with(3502).await;
    there.is_closed().await;
    let mut here = ann.via(&first).ws_into(&room).await;
    server(&stack, "ban", json!({ "userId": ann.id, "seconds": 3600 })).await;
    here.is_closed_with(3504).await;
    for door in [&first, &second] {
        let path = format!("/{}/{}/1004", ann.token().await, ann.id);
        assert_eq!(ann.via(door).knocks(&path, &[]).await.unwrap_err(), 403);
    }
    let cid = stack.person("cid").await.via(&first).ws_into(&room).await;
    other.hears_nothing_else(&cid, &room).await;
    stack.stop().await;

    let mut stack = Stack::with(&[("QIYU_API_KEY", KEY)]).await;
    let ann = stack.person("ann").await;
    server(&stack, "ban", json!({ "userId": ann.id })).await;
    stack.stops().await;
    stack.starts_again().await;
    let path = format!("/{}/{}/1004", ann.token().await, ann.id);
    assert_eq!(ann.knocks(&path, &[]).await.unwrap_err(), 403);
    server(&stack, "unban", json!({ "userId": ann.id })).await;
    eventually("ann may come back", PATIENCE, async || {
        let path = format!("/{}/{}/1004", ann.token().await, ann.id);
        ann.knocks(&path, &[]).await.is_ok()
    })
    .await;
    stack.stop().await;
}

#[tokio::test]
async fn counts_are_told_on_change_and_at_most_once_a_second() {
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut ann, bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let mut told: Vec<(Instant, u64)> = Vec::new();
    let mut liked = 0;
    while told.len() < 3 {
        bob.sends(
            1003,
            json!({ "bizCode": 5602, "data": format!(r#"{{"roomId":{room},"count":7}}"#) }),
        );
        liked += 7;
        let (code, body) = tokio::time::timeout(PATIENCE, ann.next_frame()).await.unwrap().unwrap();
        if code == 1003 && body["bizCode"] == 5602 {
            assert_eq!(body.get("msgId"), None, "at most once");
            told.push((Instant::now(), notice(&body)["goodNum"].as_u64().unwrap()));
        }
    }
    for pair in told.windows(2) {
        assert!(pair[0].1 < pair[1].1, "on change: {told:?}");
        // The clock is the server's; a busy reader may see two closer together.
        assert!(Duration::from_millis(500) < pair[1].0 - pair[0].0, "{told:?}");
    }
    eventually("every like counts", PATIENCE, async || {
        let list =
            ann.person.gets("/living/list", &[("type", "1"), ("page", "1"), ("pageSize", "1")]);
        list.await["list"][0]["goodNum"] == liked
    })
    .await;
    stack.stop().await;
}

#[tokio::test]
async fn a_loud_room_is_refused_and_its_neighbour_is_not() {
    let settings =
        [FAST, &[("QIYU_ROOM_RATE", "5"), ("QIYU_ROOM_BURST", "5"), ("QIYU_USER_RATE", "0")]]
            .concat();
    let stack = Stack::with(&settings).await;
    let (loud, quiet) = (stack.room().await, stack.anchor("other").await.opens_room().await);
    let [mut ann] = stack.browsers(&loud, ["ann"]).await;
    let [mut bob] = stack.browsers(&quiet, ["bob"]).await;
    let mut refused = 0;
    for _ in 0..50 {
        if let Err(reason) = outcome(&mut ann, &loud, "x").await {
            assert_eq!(reason, 4008);
            refused += 1;
        }
    }
    assert!(0 < refused, "fifty at once are over five a second");
    assert!(outcome(&mut bob, &quiet, "still here").await.is_ok());
    assert!(0.0 < stack.metric("qiyu_gateway_too_fast_total").await);
    stack.stop().await;
}
