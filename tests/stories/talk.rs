//! People talk: in rooms and to one another (`docs/PROTOCOL.md` §3).

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::{Heard, Person, Room, Stack, msg_ids};

/// What a room message of `person` looks like to everybody else.
fn as_said_by(person: &Person, room: &Room, text: &str, heard: &Heard) -> Value {
    json!({
        "userId": person.id, "roomId": room.0, "type": 1, "content": text,
        "senderName": person.name, "senderAvatar": person.avatar,
        "createTime": recent(&heard.data["createTime"]),
    })
}

/// What a whisper of `person` looks like to its recipient.
fn as_whispered_by(person: &Person, text: &str, heard: &Heard) -> Value {
    json!({
        "senderId": person.id, "content": text,
        "senderName": person.name, "senderAvatar": person.avatar,
        "createTime": recent(&heard.data["createTime"]),
    })
}

/// A time in milliseconds that the server can have set during this story.
fn recent(time: &Value) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let time = time.as_u64().unwrap_or_else(|| panic!("not a time in ms: {time}"));
    assert!(u128::from(time).abs_diff(now) < 60_000, "{time} is not about {now}");
    time
}

#[tokio::test]
async fn two_browsers_and_a_phone_hear_each_other() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let mut cid = stack.phone(&room, "cid").await;

    ann.says(&room, "hello");
    let (to_bob, to_cid) = (bob.hears("hello").await, cid.hears("hello").await);
    assert_eq!(to_bob.msg_id, to_cid.msg_id);
    assert_eq!(to_bob.data, as_said_by(&ann.person, &room, "hello", &to_bob));
    assert_eq!(to_bob.data, to_cid.data);

    cid.says(&room, "hello from the road");
    let (to_ann, to_bob) =
        (ann.hears("hello from the road").await, bob.hears("hello from the road").await);
    assert_eq!(to_ann.msg_id, to_bob.msg_id);
    assert_eq!(to_ann.data, as_said_by(&cid.person, &room, "hello from the road", &to_ann));

    cid.hears_nothing_else(&bob, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn nobody_can_pretend_to_be_somebody_else() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let bobs = bob.person.id;
    let lie = |to: &str, whom: u64| {
        let mut data = json!({
            "content": "it is me", "userId": bobs, "senderId": bobs, "senderName": "bob",
            "senderAvatar": "https://evil.example/", "createTime": 1, "token": "a-token",
        });
        data[to] = json!(whom);
        let mut body = ann.chat(&data, None);
        body["userId"] = json!(bobs);
        body["token"] = json!("a-token");
        body
    };

    ann.sends(1003, lie("roomId", room.0));
    let heard = bob.hears("it is me").await;
    assert_eq!(heard.data, as_said_by(&ann.person, &room, "it is me", &heard));

    ann.sends(1003, lie("objectId", bobs));
    let heard = bob.hears("it is me").await;
    assert_eq!(heard.data, as_whispered_by(&ann.person, "it is me", &heard));
    stack.stop().await;
}

#[tokio::test]
async fn words_arrive_byte_for_byte() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["安妮", "bob 🐻"]).await;
    let mut cid = stack.phone(&room, "cid").await;
    let long = "长".repeat(5_000);
    for text in [
        "主播你好，今天吃什么？",
        "👩‍👩‍👧‍👦🏳️‍🌈 e\u{301} ﷽",
        "\"quoted\" \\backslash\\ /slash/ </script>",
        "line\nline\r\n\ttab \u{0} \u{7f} \u{2028} \u{feff}",
        "שלום \u{202e}olleh",
        " ",
        &long,
    ] {
        ann.says(&room, text);
        let (to_bob, to_cid) = (bob.hears(text).await, cid.hears(text).await);
        assert_eq!(to_bob.data, as_said_by(&ann.person, &room, text, &to_bob));
        assert_eq!(to_bob.data, to_cid.data);
        cid.says(&room, text);
        ann.hears(text).await;
        bob.hears(text).await;
    }
    stack.stop().await;
}

#[tokio::test]
async fn every_device_of_a_listener_hears_and_no_device_of_the_speaker_does() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let (ann, bob) = (stack.person("ann").await, stack.person("bob").await);
    let (ann_laptop, mut ann_phone) = (ann.ws_into(&room).await, ann.tcp_into(&room).await);
    let (bob_laptop, mut bob_phone) = (bob.ws_into(&room).await, bob.tcp_into(&room).await);
    let mut bob_tablet = bob.ws_into(&room).await;

    ann_laptop.says(&room, "dinner is ready");
    let on_phone = bob_phone.hears("dinner is ready").await;
    assert_eq!(bob_tablet.hears("dinner is ready").await.msg_id, on_phone.msg_id);
    ann_phone.hears_nothing_else(&bob_laptop, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn a_whisper_reaches_one_person_and_oneself_too() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob, mut cid] = stack.browsers(&room, ["ann", "bob", "cid"]).await;
    let mut bob_phone = bob.person.tcp().await;

    let stored = ann.whispers_surely(&bob.person, "between us").await;
    let heard = bob.hears("between us").await;
    assert_eq!(heard.msg_id, stored);
    assert_eq!(heard.data, as_whispered_by(&ann.person, "between us", &heard));
    assert_eq!(bob_phone.hears("between us").await.data, heard.data);

    ann.whispers(&ann.person, "note to self");
    let heard = ann.hears("note to self").await;
    assert_eq!(heard.data, as_whispered_by(&ann.person, "note to self", &heard));

    cid.hears_nothing_else(&bob, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn whispers_wait_for_somebody_who_is_away() {
    let stack = Stack::start().await;
    let bob = stack.person("bob").await;
    let mut ann = stack.person("ann").await.ws().await;
    let mut stored = Vec::new();
    for text in ["one", "two", "three"] {
        stored.push(ann.whispers_surely(&bob, text).await);
    }

    let mut back = bob.ws().await;
    let heard = back.hears_until("three").await;
    assert_eq!(msg_ids(&heard), stored);
    back.logout().await;

    let mut again = bob.tcp().await;
    ann.whispers(&bob, "four");
    again.hears("four").await;
    stack.stop().await;
}

#[tokio::test]
async fn a_user_id_beyond_two_to_the_53_survives() {
    let stack = Stack::start().await;
    let ann = stack.person_numbered("ann", 285_608_972_927_369_217).await;
    let bob = stack.person_numbered("bob", 9_007_199_254_740_993).await;
    let mut ann = ann.ws().await;
    let mut phone = bob.tcp().await;
    assert_eq!(phone.welcome()["userId"], 9_007_199_254_740_993_u64);
    assert!(ann.person.sees_online(&bob).await);

    ann.whispers(&bob, "as a number");
    assert_eq!(phone.hears("as a number").await.data["senderId"], ann.person.id);
    let data = json!({ "objectId": bob.id.to_string(), "content": "as digits" });
    ann.sends(1003, ann.chat(&data, None));
    phone.hears("as digits").await;
    phone.whispers(&ann.person, "exactly me");
    ann.hears("exactly me").await;
    stack.stop().await;
}
