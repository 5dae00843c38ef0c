//! `qiyu trace`: what became of a message, from the record alone.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{
    APP, FAST, How, Nats, PATIENCE, Request, Room, Stack, eventually, fresh_id, packed,
};

const IMPATIENT: &[(&str, &str)] = &[("QIYU_ACK_WAIT", "1s"), ("QIYU_GATEWAY_ID", "tea-house")];

/// What `qiyu trace <args>` answers; it must end well.
async fn trace(stack: &Stack, args: &[&str]) -> String {
    let output = stack.command(&[&["trace"], args].concat()).await;
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {said}{complained}");
    said.trim().to_owned()
}

/// What is said of one user, as soon as it is this: the record is written behind the deliveries.
async fn is_told(stack: &Stack, msg_id: u64, user: u64, words: &[&str]) {
    let (msg_id, user) = (msg_id.to_string(), user.to_string());
    let mut told = String::new();
    let mut is_so = async || {
        told = trace(stack, &[&msg_id, "--user", &user]).await;
        words.iter().all(|words| told.contains(words))
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await && tokio::time::Instant::now() < deadline {}
    assert!(words.iter().all(|words| told.contains(words)), "no {words:?} in {told:?}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

/// Mutes somebody in a room, as a tool would: through the service that answers on NATS.
async fn mute(stack: &Stack, room: u64, user: u64) {
    let mut nats = Nats::of(Path::new(&stack.data_dir())).await;
    let asked = json!({ "app": APP, "room": room, "user": user, "measure": "mute",
        "until_ms": null, "reason": "too loud", "by": null });
    let answer = nats.commands("qiyu.living.moderate", &packed(&asked)).await;
    assert!(!answer.is_empty(), "the measure was refused");
}

#[tokio::test]
async fn who_got_it_and_who_did_not_is_told_for_each() {
    let mut stack = Stack::with(IMPATIENT).await;
    let room = stack.room().await;
    let [mut ann, mut cid, eve, mut fay] =
        stack.browsers(&room, ["ann", "cid", "eve", "fay"]).await;
    let mut bob = stack.person("bob").await.never_acks().ws_into(&room).await;
    let dan = stack.person("dan").await;
    let eves = eve.person.clone();
    let seen = eve.entered_at();
    eve.logout().await;
    mute(&stack, room.0, fay.person.id).await;

    let said = ann.says_surely(&room, "tea?").await;
    cid.hears("tea?").await;
    fay.hears("tea?").await;
    for _ in 0..2 {
        bob.hears("tea?").await;
    }
    stack.owes_nothing().await;

    is_told(&stack, said, cid.person.id, &["Yes:", "acknowledged it on connection", "tea-house"])
        .await;
    is_told(
        &stack,
        said,
        bob.person.id,
        &["No:", "as often as allowed and not acknowledged in time"],
    )
    .await;
    is_told(&stack, said, fay.person.id, &["Yes:", "acknowledged", "they were muted"]).await;
    is_told(&stack, said, ann.person.id, &["said it"]).await;
    let absent = "was not in the room at that moment";
    is_told(&stack, said, eves.id, &["No:", absent, "they had left it at"]).await;
    is_told(&stack, said, dan.id, &["No:", absent, "never been"]).await;

    // Late: dan by the door, eve by her cursor, and dan once more by the history.
    let late = dan.ws_into(&room).await;
    is_told(&stack, said, dan.id, &[absent, "they entered at"]).await;
    dan.gets("/im/history", &[("roomId", &room.to_string())]).await;
    is_told(&stack, said, dan.id, &[absent, "they read it in the room's history at"]).await;
    let mut back = eves.ws_back_into(&room, seen).await;
    back.hears("tea?").await;
    stack.owes_nothing().await;
    is_told(&stack, said, eves.id, &["Yes, later:", absent, "they resumed, which brought it"])
        .await;

    let life = trace(&stack, &[&said.to_string()]).await;
    for words in [
        &format!("message {said} in room {room}"),
        "of gateway tea-house.",
        "to gateway tea-house.",
        "by worker w-",
        "2 acknowledged, 1 sent again, 1 given up",
        &format!("not acknowledged in time: user {} (connection", bob.person.id),
        &format!("for user {}: 1 resolved, 1 written, 1 acknowledged, by a resume", eves.id),
        &format!("by user {} in the room's history", dan.id),
    ] {
        assert!(life.contains(words), "no {words:?} in {life}");
    }
    let json = trace(&stack, &[&said.to_string(), "--format", "json"]).await;
    let json: Value = serde_json::from_str(&json).expect("one JSON value");
    assert_eq!((&json["kind"], &json["room"]), (&json!("said"), &json!(room.0)), "{json}");
    assert_eq!(json["outcomes"][0]["given_up"], 1, "{json}");

    // From the record alone: nothing runs any more, and something else ran since.
    for socket in [late, back] {
        socket.drops_without_goodbye();
    }
    stack.stops().await;
    stack.starts_again().await;
    stack.stops().await;
    is_told(&stack, said, cid.person.id, &["Yes:", "acknowledged it on connection"]).await;
    for (id, words) in [(u64::MAX >> 9 << 8 | 1, "was never given"), (1, "is no id of this log")] {
        let output = stack.command(&["trace", &id.to_string()]).await;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && complaint.contains(words), "{complaint}");
    }
}

#[tokio::test]
async fn a_whisper_to_somebody_away_is_told_until_they_take_it() {
    let stack = Stack::with(IMPATIENT).await;
    let mut ann = stack.person("ann").await.ws().await;
    let bob = stack.person("bob").await;
    let written = ann.whispers_surely(&bob, "psst").await;
    is_told(&stack, written, bob.id, &["Not yet: it waits for user", "not logged in since"]).await;
    bob.gets("/im/offline/pull", &[]).await;
    is_told(&stack, written, bob.id, &["Not yet", "they read it in what waited for them"]).await;
    let mut back = bob.ws().await;
    back.hears("psst").await;
    is_told(&stack, written, bob.id, &["Yes:", "acknowledged it on gateway tea-house.", "away"])
        .await;
    is_told(&stack, written, ann.person.id, &["No: it was written to user"]).await;
    let life = trace(&stack, &[&written.to_string()]).await;
    for words in ["who was away", "to nobody", "its recipient logged in", "by its recipient on"] {
        assert!(life.contains(words), "no {words:?} in {life}");
    }
    stack.stop().await;
}

#[tokio::test]
async fn what_a_dead_gateway_took_along_is_not_guessed_and_what_was_taken_over_is_told() {
    let roles = ["fanout,presence,living,api", "gateway", "gateway"];
    let mut stack = Stack::roles(&roles, &[("QIYU_ACK_WAIT", "30s")]).await;
    let room = stack.room().await;
    let (first, second) = (stack.gateway(1), stack.gateway(2));
    let mut ann = stack.person("ann").await.via(&second).ws_into(&room).await;
    let mut bob = stack.person("bob").await.never_acks().via(&first).ws_into(&room).await;
    let mut cid = stack.person("cid").await.never_acks().via(&first).ws_into(&room).await;
    let said = ann.says_surely(&room, "tea?").await;
    bob.hears("tea?").await;
    cid.hears("tea?").await;
    is_told(&stack, said, bob.person.id, &["Not known yet", "has reported no outcome"]).await;

    stack.kills_gateway(1).await;
    let mut back = bob.person.who_acks().via(&second).ws_into(&room).await;
    eventually("the lease, the burial and the takeover are over", PATIENCE * 4, async || {
        trace(&stack, &[&said.to_string()]).await.contains("sent again")
    })
    .await;
    back.hears("tea?").await;
    let died = "that gateway died at";
    let again = "it was taken over and sent again at";
    is_told(&stack, said, bob.person.id, &[died, again]).await;
    is_told(&stack, said, cid.person.id, &["cannot tell", died]).await;
    is_told(&stack, said, bob.person.id, &["Yes, later:", died, "acknowledged there by"]).await;
    let life = trace(&stack, &[&said.to_string()]).await;
    for words in ["ended", "left behind", "everybody it then had in the room", "taken over for"] {
        assert!(life.contains(words), "no {words:?} in {life}");
    }
    stack.stop().await;
}

#[tokio::test]
async fn who_left_before_it_arrived_is_told_apart_from_who_left_later() {
    let roles = ["fanout", "presence,living,api", "gateway"];
    let stack = Stack::roles(&roles, FAST).await;
    let room = stack.room().await;
    let mut ann = stack.person("ann").await.ws_into(&room).await;
    let mut bob = stack.person("bob").await.ws_into(&room).await;
    let cid = stack.person("cid").await.ws_into(&room).await;
    let (hers, his) = (bob.person.id, cid.person.id);
    ann.says_surely(&room, "anybody?").await;
    bob.hears("anybody?").await;
    let mut nats = stack.nats().await;
    let moves = format!("im.in.*.{APP}.room.{room}.members");
    let mut moved = nats.messages_under("IM_IN", &moves).await;

    stack.freezes(("fanout", 0));
    let said = ann.says_surely(&room, "tea?").await;
    cid.drops_without_goodbye();
    eventually("the log has his leaving", PATIENCE, async || {
        moved < nats.messages_under("IM_IN", &moves).await
    })
    .await;
    moved = nats.messages_under("IM_IN", &moves).await;
    stack.thaws(("fanout", 0));
    bob.hears("tea?").await;
    let before = ["No:", "had gone from connection", "before it arrived there"];
    is_told(&stack, said, his, &before).await;
    is_told(&stack, said, hers, &["Yes:", "acknowledged it on connection"]).await;
    bob.drops_without_goodbye();
    eventually("the log has hers, too", PATIENCE, async || {
        moved < nats.messages_under("IM_IN", &moves).await
    })
    .await;
    for _ in 0..2 {
        is_told(&stack, said, hers, &["Yes:", "acknowledged it on connection"]).await;
        is_told(&stack, said, his, &before).await;
    }
    stack.stop().await;
}

#[tokio::test]
async fn nobody_who_ignores_everything_is_ever_said_to_have_it() {
    let stack = Stack::with(IMPATIENT).await;
    let room = stack.room().await;
    let [mut ann, mut cid] = stack.browsers(&room, ["ann", "cid"]).await;
    let bob = stack.person("bob").await.never_acks().ws_into(&room).await;
    for text in ["one", "two", "three"] {
        ann.says_surely(&room, text).await;
        cid.hears(text).await;
    }
    stack.owes_nothing().await; // he has been given up three times in a row
    let said = ann.says_surely(&room, "tea?").await;
    cid.hears("tea?").await;
    is_told(&stack, said, cid.person.id, &["Yes:", "acknowledged it on connection"]).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (msg_id, user) = (said.to_string(), bob.person.id.to_string());
        let told = trace(&stack, &[&msg_id, "--user", &user]).await;
        assert!(!told.starts_with("Yes"), "{told}");
        if told.starts_with("Probably not:") {
            break;
        }
        assert!(told.starts_with("Not known yet:"), "{told}");
        assert!(tokio::time::Instant::now() < deadline, "{told}");
    }
    stack.stop().await;
}

/// Sends a message to the room as a server would, in the name of `from`; returns its msgId.
async fn server_sends(stack: &Stack, room: &Room, from: u64, text: &str, key: &str) -> u64 {
    let body = json!({ "roomId": room.0, "from": from, "content": text, "idempotencyKey": key });
    let mut request = Request::post("/server/send", &[], How::Json);
    request.body = body.to_string().into_bytes();
    let reply = stack.sends(request.header("authorization", &format!("Bearer {KEY}"))).await;
    let answer = reply.json();
    answer["msgId"].as_str().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

const KEY: &str = "an-integrator's-key-0123456789";

#[tokio::test]
async fn the_keys_of_a_server_are_not_those_of_the_user_it_sends_for() {
    let settings = [IMPATIENT, &[("QIYU_API_KEY", KEY)]].concat();
    let stack = Stack::with(&settings).await;
    stack.keeps_secret(KEY);
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;

    // Ann's clientMsgId and the server's idempotencyKey are the same text and two names.
    let key = fresh_id();
    ann.says_with_id(&room, "from ann herself", &key).await;
    bob.hears("from ann herself").await;
    let hers = ann.person.id;
    let sent = server_sends(&stack, &room, hers, "from the server for ann", &key).await;
    bob.hears("from the server for ann").await;
    is_told(&stack, sent, bob.person.id, &["Yes:", "acknowledged it on connection"]).await;

    // The same stored a second time, as when the bus has forgotten the key and no
    // owner answered: it is delivered to nobody, and trace names the first.
    let mut nats = Nats::of(Path::new(&stack.data_dir())).await;
    let filter = format!("im.in.*.{APP}.room.{room}.msg");
    let (subject, stored) = nats.last_under("IM_IN", &filter).await;
    assert!(!nats.knows(&subject, &fresh_id(), &stored).await, "stored under another key");
    let history = bob.person.gets("/im/history", &[("roomId", &room.to_string())]).await;
    let newest = history["list"].as_array().and_then(|list| list.last());
    let copy = newest.and_then(|message| message["msgId"].as_str()?.parse::<u64>().ok());
    let copy = copy.unwrap_or_else(|| panic!("{history}"));
    assert!(sent < copy, "{history}");
    let first = format!("had given the same clientMsgId to {sent} before");
    is_told(&stack, copy, bob.person.id, &["No:", &first]).await;
    stack.stop().await;
}
