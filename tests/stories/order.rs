//! Receipts and order: what was confirmed is there, once, where it belongs (`docs/PROTOCOL.md` §4).

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::interval;

use crate::harness::{FAST, Stack, fresh_id, msg_ids};

#[tokio::test]
async fn a_thousand_messages_arrive_complete_and_in_order() {
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut eve, mut fay] = stack.browsers(&room, ["eve", "fay"]).await;
    let mut gil = stack.phone(&room, "gil").await;
    let speakers = stack.browsers(&room, ["ann", "bob", "cid", "dan"]).await;

    let talks = speakers.into_iter().map(|mut speaker| async {
        let mut stored = Vec::new();
        let mut pace = interval(Duration::from_millis(10));
        for number in 0..250 {
            pace.tick().await;
            let text = format!("{} {number}", speaker.person.name);
            stored.push((speaker.says_surely(&room, &text).await, text));
        }
        (speaker, stored)
    });
    let (mut speakers, stored): (Vec<_>, Vec<_>) = join_all(talks).await.into_iter().unzip();
    for own in &stored {
        assert!(own.is_sorted(), "receipts of one speaker rise");
    }
    let mut said = stored.concat();
    said.sort();
    said.push((speakers[0].says_surely(&room, "the end").await, "the end".to_owned()));

    for reader in [&mut eve, &mut fay, &mut gil] {
        let heard = reader.hears_until("the end").await;
        let heard = heard.iter().map(|heard| (heard.msg_id, heard.text().to_owned()));
        assert_eq!(heard.collect::<Vec<_>>(), said, "{}", reader.person.name);
    }
    for (speaker, own) in speakers.iter_mut().zip(&stored).skip(1) {
        let heard = msg_ids(&speaker.hears_until("the end").await);
        let others = said.iter().filter(|message| !own.contains(message));
        assert_eq!(heard, others.map(|(id, _)| *id).collect::<Vec<_>>());
    }
    stack.stop().await;
}

/// Whoever is let in hears everything above the msgId of the 1001, and nothing at or below it.
#[tokio::test]
async fn who_joins_while_others_talk_hears_exactly_what_comes_after() {
    const JOINS: usize = 50;
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut talker] = stack.browsers(&room, ["talker"]).await;
    let (enough, mut is_enough) = tokio::sync::oneshot::channel();

    let talk = async {
        let mut stored = Vec::new();
        let mut pace = interval(Duration::from_millis(3));
        while is_enough.try_recv().is_err() {
            pace.tick().await;
            stored.push(talker.says_surely(&room, "on and on").await);
        }
        stored.push(talker.says_surely(&room, "the end").await);
        stored
    };
    let join = async {
        let mut joined = Vec::new();
        for number in 0..JOINS {
            let person = stack.person(&format!("joiner {number}")).await;
            joined.push(match number % 2 {
                0 => person.ws_into(&room).await,
                _ => person.tcp_into(&room).await,
            });
        }
        enough.send(()).expect("the talker still talks");
        joined
    };
    let (stored, joined) = tokio::join!(talk, join);
    for mut socket in joined {
        let entered = socket.entered_at();
        let heard = msg_ids(&socket.hears_until("the end").await);
        let after: Vec<_> = stored.iter().copied().filter(|id| entered < *id).collect();
        assert_eq!(heard, after, "{} entered at {entered}", socket.person.name);
    }
    stack.stop().await;
}

#[tokio::test]
async fn a_receipt_comes_where_it_was_asked_for_and_only_there() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;

    ann.says(&room, "no receipt, please");
    ann.heartbeat().await;
    let stored = ann.says_with_id(&room, "a receipt, please", "Az09_-").await;
    let first = bob.hears("no receipt, please").await;
    assert_eq!(bob.hears("a receipt, please").await.msg_id, stored);
    assert!(first.msg_id < stored);
    ann.whispers(&bob.person, "nor here");
    bob.hears("nor here").await;
    let longest = "x".repeat(64);
    ann.says_with_id(&room, "the longest name", &longest).await;
    bob.hears("the longest name").await;
    stack.stop().await;
}

#[tokio::test]
async fn the_same_client_msg_id_is_stored_once_on_whatever_line_it_comes() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob, mut cid] = stack.browsers(&room, ["ann", "bob", "cid"]).await;
    let mut phone = ann.person.tcp_into(&room).await;
    let id = fresh_id();

    let stored = ann.says_with_id(&room, "once", &id).await;
    assert_eq!(ann.says_with_id(&room, "once", &id).await, stored, "on the same line");
    assert_eq!(phone.says_with_id(&room, "once", &id).await, stored, "on another line");
    ann.drops_without_goodbye();
    let mut back = phone.person.ws_into(&room).await;
    assert_eq!(back.says_with_id(&room, "once", &id).await, stored, "on a later line");
    let others = cid.says_with_id(&room, "mine", &id).await;
    assert_ne!(others, stored, "somebody else's id is another id");

    let id = fresh_id();
    let (one, two) = tokio::join!(
        back.says_with_id(&room, "at the same time", &id),
        phone.says_with_id(&room, "at the same time", &id),
    );
    assert_eq!(one, two);

    assert_eq!(bob.hears("once").await.msg_id, stored);
    assert_eq!(bob.hears("mine").await.msg_id, others);
    assert_eq!(bob.hears("at the same time").await.msg_id, one);
    bob.hears_nothing_else(&cid, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn twenty_in_one_write_are_answered_in_order() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let cid = stack.phone(&room, "cid").await;
    let texts: Vec<_> = (0..20).map(|number| format!("number {number}")).collect();

    for mut speaker in [ann, cid] {
        let ids: Vec<_> = texts.iter().map(|_| fresh_id()).collect();
        let frames = texts.iter().zip(&ids).map(|(text, id)| {
            let data = json!({ "roomId": room.0, "content": text });
            (1003, speaker.chat(&data, Some(id)).to_string())
        });
        speaker.sends_together(&frames.collect::<Vec<_>>());
        let mut stored = Vec::new();
        for id in ids {
            let receipt = speaker.receipt().await;
            assert_eq!(receipt.client_msg_id, Some(id));
            stored.push(receipt.outcome.expect("stored"));
        }
        for (text, id) in texts.iter().zip(&stored) {
            assert_eq!(bob.hears(text).await.msg_id, *id);
        }
        assert!(stored.is_sorted());
    }
    stack.stop().await;
}
