//! What is refused, why, and that nothing else happens (`docs/PROTOCOL.md` §2.4 and §2.5).

use serde_json::{Value, json};

use crate::harness::{FAST, Receipt, Room, Stack, frame_claiming};

#[tokio::test]
async fn what_nobody_can_hear_is_refused_with_its_reason() {
    let stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let closed = anchor.opens_room().await;
    let [mut cid] = stack.browsers(&closed, ["cid"]).await;
    anchor.closes(&closed).await;
    cid.is_told(5600).await;
    let (here, there) = (anchor.opens_room().await, stack.room().await);
    let [mut ann, mut bob] = stack.browsers(&here, ["ann", "bob"]).await;
    let [mut dan, eve] = stack.browsers(&there, ["dan", "eve"]).await;
    let mut outside = ann.person.tcp().await;

    let unknown = Room(999_999_999);
    for (speaker, refusals) in [
        (&mut ann, vec![(there, 4005), (closed, 4004), (unknown, 4004)]),
        (&mut outside, vec![(here, 4005), (closed, 4004)]),
        (&mut cid, vec![(here, 4005), (closed, 4004)]),
    ] {
        for (room, reason) in refusals {
            speaker.says(&room, "lost");
            speaker.is_refused(reason).await;
        }
    }
    for unrouted in [0, -1, 1, 5556, 5600, 5601, 6999, 8000, i64::from(i32::MAX)] {
        let mut body = ann.chat(&json!({ "roomId": here.0, "content": "lost" }), Some("lost"));
        body["bizCode"] = json!(unrouted);
        ann.sends(1003, body);
        let refused = Receipt { client_msg_id: Some("lost".to_owned()), outcome: Err(4006) };
        assert_eq!(ann.receipt().await, refused);
    }
    dan.hears_nothing_else(&eve, &there).await;
    bob.hears_nothing_else(&ann, &here).await;
    stack.stop().await;
}

/// Bodies of a 1003 that cannot be read (§2.5), whoever sends them and however.
fn unreadable(room: &Room) -> Vec<String> {
    let chat = |data: Value| json!({ "bizCode": 5555, "data": data.to_string() });
    let named = |id: Value| {
        let mut body = chat(json!({ "roomId": room.0, "content": "unreadable" }));
        body["clientMsgId"] = id;
        body
    };
    let plain = ["", " ", "oops", "{", "[]", "\"text\"", "7", "null", "{\"bizCode\":5555}trailing"];
    let made = [
        json!({ "bizCode": 5555 }),
        json!({ "bizCode": 5555, "data": null }),
        json!({ "bizCode": 5555, "data": "" }),
        json!({ "bizCode": 5555, "data": "oops" }),
        json!({ "bizCode": 5555, "data": 7 }),
        json!({ "bizCode": 5555, "data": ["x"] }),
        json!({ "bizCode": [5555], "data": "{}" }),
        json!({ "bizCode": 55.5, "data": "{}" }),
        json!({ "bizCode": "many", "data": "{}" }),
        chat(json!([])),
        chat(json!("text")),
        chat(json!({})),
        chat(json!({ "content": "to nobody" })),
        chat(json!({ "roomId": room.0 })),
        chat(json!({ "roomId": room.0, "content": null })),
        chat(json!({ "roomId": room.0, "content": 7 })),
        chat(json!({ "roomId": room.0, "content": {} })),
        chat(json!({ "roomId": "tea", "content": "x" })),
        chat(json!({ "objectId": "bob", "content": "x" })),
        named(json!("")),
        named(json!("a b")),
        named(json!("é")),
        named(json!("dots.are.not.allowed")),
        named(json!("x".repeat(65))),
        named(json!(7)),
    ];
    let made = made.iter().map(Value::to_string);
    plain.into_iter().map(str::to_owned).chain(made).collect()
}

#[tokio::test]
async fn an_unreadable_body_is_refused_and_the_line_stays_open() {
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let mut cid = stack.phone(&room, "cid").await;
    for body in unreadable(&room) {
        for speaker in [&mut ann, &mut cid] {
            speaker.sends(1003, &body);
            let receipt = speaker.receipt().await;
            assert_eq!(receipt.outcome, Err(4007), "{body}");
        }
    }
    cid.sends_bytes(frame_claiming(18673, 1003, 4, &[0xff, 0xfe, 0x00, 0xc3]));
    cid.is_refused(4007).await;

    ann.says(&room, "still here");
    cid.hears("still here").await;
    cid.says(&room, "so am I");
    ann.hears("so am I").await;
    assert_eq!(bob.hears_until("so am I").await.len(), 2);
    stack.stop().await;
}
