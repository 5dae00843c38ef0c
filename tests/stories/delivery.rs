//! Acknowledgements, second copies, and readers who do not read (`docs/PROTOCOL.md` §4).

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::harness::{APP, FAST, Heard, Nats, PATIENCE, Room, Socket, Stack, eventually, fresh_id};

/// An acknowledgement is awaited this long here, so that a story with a second copy is short.
const ACK_WAIT: Duration = Duration::from_secs(1);
const IMPATIENT: &[(&str, &str)] = &[("QIYU_ACK_WAIT", "1s")];

/// How much later than promised a second copy may be on a busy machine.
const LATE: Duration = Duration::from_millis(1500);

/// Hears `text` a second time, when its first copy was not acknowledged in time.
async fn hears_again(reader: &mut Socket, first: &Heard) -> Heard {
    let again = reader.hears(first.text()).await;
    assert_eq!((again.msg_id, &again.data), (first.msg_id, &first.data));
    let after = again.at - first.at;
    let promised = ACK_WAIT - Duration::from_millis(150)..ACK_WAIT + LATE;
    assert!(promised.contains(&after), "the second copy came after {after:?}");
    again
}

/// A room with a speaker, a reader who never acknowledges, and one who always does.
async fn tea_with_someone_silent(stack: &Stack) -> (Room, Socket, Socket, Socket) {
    let room = stack.room().await;
    let [ann, cid] = stack.browsers(&room, ["ann", "cid"]).await;
    let bob = stack.person("bob").await.never_acks().ws_into(&room).await;
    (room, ann, bob, cid)
}

#[tokio::test]
async fn who_never_acknowledges_gets_exactly_two_copies() {
    let stack = Stack::with(IMPATIENT).await;
    let (room, mut ann, mut bob, mut cid) = tea_with_someone_silent(&stack).await;
    let mut dan = stack.person("dan").await.never_acks().tcp_into(&room).await;

    let stored = ann.says_surely(&room, "tea?").await;
    cid.hears("tea?").await;
    for silent in [&mut bob, &mut dan] {
        let first = silent.hears("tea?").await;
        assert_eq!(first.msg_id, stored);
        hears_again(silent, &first).await;
    }
    stack.owes_nothing().await;

    // The next thing they hear is new: no third copy for the silent, no second for cid.
    ann.says(&room, "well then");
    for reader in [&mut bob, &mut dan, &mut cid] {
        reader.hears("well then").await;
    }
    stack.stop().await;
}

#[tokio::test]
async fn a_whisper_is_repeated_like_any_message() {
    let stack = Stack::with(IMPATIENT).await;
    let mut ann = stack.person("ann").await.ws().await;
    let mut bob = stack.person("bob").await.never_acks().ws().await;
    ann.whispers(&bob.person, "psst");
    let first = bob.hears("psst").await;
    hears_again(&mut bob, &first).await;
    stack.owes_nothing().await;

    // Given up, but not lost: nobody acknowledged it, so it comes at the next login.
    ann.heartbeat().await;
    let mut back = bob.person.who_acks().ws().await;
    assert_eq!(back.hears("psst").await.msg_id, first.msg_id);
    stack.stop().await;
}

#[tokio::test]
async fn of_two_devices_only_the_one_that_owes_is_asked_again() {
    let stack = Stack::with(IMPATIENT).await;
    let (room, ann, mut silent, _) = tea_with_someone_silent(&stack).await;
    let mut attentive = silent.person.who_acks().tcp_into(&room).await;

    ann.says(&room, "tea?");
    attentive.hears("tea?").await;
    let first = silent.hears("tea?").await;
    hears_again(&mut silent, &first).await;
    stack.owes_nothing().await;
    attentive.hears_nothing_else(&ann, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn nobody_can_acknowledge_for_somebody_else() {
    let stack = Stack::with(IMPATIENT).await;
    let (room, ann, mut bob, mut cid) = tea_with_someone_silent(&stack).await;
    let outside = stack.person("eve").await.ws().await;
    let other_device = bob.person.who_acks().ws().await;

    ann.says(&room, "tea?");
    let first = bob.hears("tea?").await;
    let ack = json!({ "appId": APP, "userId": bob.person.id, "msgId": first.msg_id.to_string() });
    for liar in [&ann, &cid, &outside, &other_device] {
        liar.sends(1005, &ack);
        liar.acks(&[first.msg_id]);
    }
    hears_again(&mut bob, &first).await;
    cid.hears("tea?").await;
    stack.owes_nothing().await;
    cid.hears_nothing_else(&ann, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn several_messages_may_be_acknowledged_at_once() {
    let stack = Stack::with(IMPATIENT).await;
    let (room, ann, mut bob, _) = tea_with_someone_silent(&stack).await;
    let mut heard = Vec::new();
    for text in ["one", "two", "three"] {
        ann.says(&room, text);
        heard.push(bob.hears(text).await.msg_id);
    }
    bob.acks(&heard);
    stack.owes_nothing().await;
    bob.hears_nothing_else(&ann, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn an_acknowledgement_of_nothing_is_ignored() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let mut cid = stack.phone(&room, "cid").await;
    ann.says(&room, "hello");
    let known = bob.hears("hello").await.msg_id.to_string();
    cid.hears("hello").await;
    for body in [
        String::new(),
        "oops".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        json!({ "msgId": null }).to_string(),
        json!({ "msgId": "" }).to_string(),
        json!({ "msgId": "oops" }).to_string(),
        json!({ "msgId": 7 }).to_string(),
        json!({ "msgId": "18446744073709551616" }).to_string(),
        json!({ "msgId": "999999999" }).to_string(),
        json!({ "msgIds": "999999999" }).to_string(),
        json!({ "msgIds": [] }).to_string(),
        json!({ "msgIds": [7, null, "oops", known] }).to_string(),
        json!({ "msgId": known }).to_string(),
    ] {
        for socket in [&mut ann, &mut bob, &mut cid] {
            socket.sends(1005, &body);
            socket.heartbeat().await; // the next thing it is answered
        }
    }
    ann.says(&room, "still here");
    bob.hears("still here").await;
    cid.hears("still here").await;
    stack.stop().await;
}

#[tokio::test]
async fn a_second_copy_follows_its_reader_to_a_new_connection() {
    let stack = Stack::with(&[("QIYU_ACK_WAIT", "2s")]).await;
    let (room, ann, mut bob, mut cid) = tea_with_someone_silent(&stack).await;
    ann.says(&room, "tea?");
    let first = bob.hears("tea?").await;
    let person = bob.person.who_acks();
    bob.drops_without_goodbye();

    let mut back = person.ws_into(&room).await;
    let again = back.hears("tea?").await;
    assert_eq!((again.msg_id, &again.data), (first.msg_id, &first.data));
    assert!(again.msg_id < back.entered_at(), "it was said before the new connection");
    stack.owes_nothing().await;
    cid.hears("tea?").await;
    ann.says(&room, "well then");
    back.hears("well then").await;
    cid.hears("well then").await;
    stack.stop().await;
}

#[tokio::test]
async fn who_leaves_owes_nothing() {
    let stack = Stack::with(IMPATIENT).await;
    let (room, mut ann, mut bob, mut cid) = tea_with_someone_silent(&stack).await;
    ann.says_surely(&room, "tea?").await;
    bob.hears("tea?").await;
    cid.hears("tea?").await;
    bob.drops_without_goodbye();
    stack.owes_nothing().await;
    stack.stop().await;
}

#[tokio::test]
async fn who_does_not_read_is_shown_out_and_nobody_else_notices() {
    const LONG_CHATS: usize = 600; // of 30 KiB: more than the kernel keeps for one connection
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut ann, mut bob, mut cid] = stack.browsers(&room, ["ann", "bob", "cid"]).await;
    let mut dan = stack.phone(&room, "dan").await;
    bob.stops_reading();

    let long = "x".repeat(30 * 1024);
    for number in 0..LONG_CHATS {
        let text = format!("{number} {long}");
        let stored = ann.says_surely(&room, &text).await;
        assert_eq!(cid.hears(&text).await.msg_id, stored);
        assert_eq!(dan.hears(&text).await.msg_id, stored);
    }
    eventually("bob, who does not read, is offline", PATIENCE, async || {
        !ann.person.sees_online(&bob.person).await
    })
    .await;
    bob.reads_again();
    let ending = bob.is_closed().await;
    assert!(matches!(ending.code, Some(3008) | None), "{ending:?}");

    ann.says(&room, "anyone left?");
    cid.hears("anyone left?").await;
    dan.hears("anyone left?").await;
    stack.stop().await;
}

#[tokio::test]
async fn two_thousand_who_never_acknowledge_hold_nobody_up() {
    const PEOPLE: usize = 400;
    const CONNECTIONS: usize = 5; // of each
    const SAID: usize = 20; // over more than the time after which the silent are asked again
    let rates = [("QIYU_HTTP_BURST", "100000"), ("QIYU_CONNECT_RATE", "100000")];
    let more = [("QIYU_CONNECT_BURST", "100000")];
    let stack = Stack::with(&[FAST, &rates, &more].concat()).await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let mut silent = Vec::new();
    for number in 0..PEOPLE {
        let person = stack.person(&format!("silent {number}")).await.never_acks();
        silent.extend(join_all((0..CONNECTIONS).map(|_| person.tcp_into(&room))).await);
    }
    assert_eq!(silent.len(), PEOPLE * CONNECTIONS);

    let mut slowest = Duration::ZERO;
    for number in 0..SAID {
        let said = Instant::now();
        ann.says_surely(&room, &number.to_string()).await;
        bob.hears(&number.to_string()).await;
        slowest = slowest.max(said.elapsed());
        sleep(Duration::from_millis(250)).await; // the pace of the talk
    }
    let memory = stack.memory() >> 20;
    eprintln!("slowest {slowest:?}, {memory} MiB");
    assert!(slowest < Duration::from_secs(1), "bob had to wait for {slowest:?}");
    assert!(memory < 512, "{memory} MiB for what {} owe", silent.len());
    stack.stop().await;
}

#[tokio::test]
async fn who_talks_too_fast_is_told_and_stays() {
    const SHOUTS: usize = 200;
    const BURST: usize = 60;
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let shouts: Vec<_> = (0..SHOUTS).map(|_| fresh_id()).collect();
    let frames = shouts.iter().map(|id| {
        let data = json!({ "roomId": room.0, "content": id });
        (1003, ann.chat(&data, Some(id)).to_string())
    });
    ann.sends_together(&frames.collect::<Vec<_>>());

    let mut accepted = Vec::new();
    let mut answered = BTreeSet::new();
    for _ in &shouts {
        let receipt = ann.receipt().await;
        let id = receipt.client_msg_id.expect("refusals name it as well");
        match receipt.outcome {
            Ok(msg_id) => accepted.push((msg_id, id.clone())),
            Err(reason) => assert_eq!(reason, 4008),
        }
        answered.insert(id);
    }
    assert_eq!(answered, BTreeSet::from_iter(shouts));
    assert!((BURST..SHOUTS).contains(&accepted.len()), "{} were accepted", accepted.len());
    for (msg_id, text) in accepted {
        assert_eq!(bob.hears(&text).await.msg_id, msg_id);
    }

    ann.heartbeat().await;
    eventually("ann may speak again", PATIENCE, async || {
        ann.sends(
            1003,
            ann.chat(&json!({ "roomId": room.0, "content": "calm" }), Some(&fresh_id())),
        );
        ann.receipt().await.outcome.is_ok()
    })
    .await;
    bob.hears("calm").await;
    stack.stop().await;
}

#[tokio::test]
async fn however_much_one_ignores_every_message_comes_twice() {
    let stack = Stack::with(IMPATIENT).await;
    let (room, mut ann, mut bob, mut cid) = tea_with_someone_silent(&stack).await;
    for round in 0..3 {
        let texts: Vec<String> = (0..3).map(|number| format!("tea? {round}.{number}")).collect();
        for text in &texts {
            ann.says_surely(&room, text).await;
        }
        let mut copies: Vec<String> = Vec::new();
        for _ in 0..2 * texts.len() {
            copies.push(bob.hears_something().await.text().to_owned());
        }
        copies.sort();
        let twice: Vec<String> =
            texts.iter().flat_map(|text| [text.clone(), text.clone()]).collect();
        assert_eq!(copies, twice);
        for text in &texts {
            cid.hears(text).await; // who acknowledges hears each once, and at once
        }
        stack.owes_nothing().await;
    }
    stack.stop().await;
}

#[tokio::test]
async fn a_lot_at_once_is_no_reason_to_show_a_reader_out() {
    const LONG_CHATS: usize = 100; // of 40 KiB, to each reader: four megabytes at once
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut ann, mut bob, mut cid] = stack.browsers(&room, ["ann", "bob", "cid"]).await;
    let long = "x".repeat(40 * 1024);
    for number in 0..LONG_CHATS {
        ann.says(&room, &format!("{number} {long}"));
    }
    ann.says_surely(&room, "that was all").await;
    for reader in [&mut bob, &mut cid] {
        assert_eq!(reader.hears_until("that was all").await.len(), LONG_CHATS + 1);
    }
    stack.owes_nothing().await;
    stack.stop().await;
}

#[tokio::test]
async fn what_became_of_a_message_is_written_down_before_it_is_let_go() {
    let gateway = [("QIYU_GATEWAY_ID", "tea-house")];
    let stack = Stack::with(&[IMPATIENT, &gateway].concat()).await;
    let (room, mut ann, mut bob, mut cid) = tea_with_someone_silent(&stack).await;
    ann.says_surely(&room, "tea?").await;
    cid.hears("tea?").await;
    let first = bob.hears("tea?").await;
    hears_again(&mut bob, &first).await;

    let mut nats = Nats::of(stack.data_dir().as_ref()).await;
    stack.owes_nothing().await;
    // MessagePack keeps words as they are.
    let recorded = nats.last_of("IM_LEDGER", "im.ledger.tea-house").await;
    let recorded = String::from_utf8_lossy(&recorded);
    for word in ["tea-house", "acknowledged", "given_up", "not_acknowledged"] {
        assert!(recorded.contains(word), "no {word} in {recorded:?}");
    }
    assert!(!recorded.contains("tea?"), "an outcome has no content");
    let mut queue = Nats::of(stack.data_dir().as_ref()).await;
    let mut empty = async || queue.messages_in("IM_OUT").await == 0;
    eventually("the queue of envelopes is empty", PATIENCE, &mut empty).await;
    stack.stop().await;
}
