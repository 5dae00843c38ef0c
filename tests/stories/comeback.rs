//! Coming back: the exact gap, or an honest "not recovered".

use serde_json::{Value, json};

use crate::harness::{FAST, PATIENCE, Person, Room, Socket, Stack, eventually, msg_ids};

/// What a page of messages says, and whether there is a further one.
async fn page(who: &Person, path: &str, params: &[(&str, &str)]) -> (Vec<(u64, String)>, bool) {
    let data = who.gets(path, params).await;
    let said = |body: &Value| {
        assert_eq!(body["userId"], who.id, "{body}");
        let id = body["msgId"].as_str().and_then(|id| id.parse().ok());
        let data: Value = serde_json::from_str(body["data"].as_str().unwrap()).unwrap();
        (id.unwrap_or_else(|| panic!("{body}")), data["content"].as_str().unwrap().to_owned())
    };
    let list = data["list"].as_array().unwrap_or_else(|| panic!("{data}"));
    (list.iter().map(said).collect(), data["hasNext"].as_bool().unwrap())
}

async fn says_all(who: &mut Socket, room: &Room, texts: std::ops::RangeInclusive<usize>) {
    for number in texts {
        who.says_surely(room, &number.to_string()).await;
    }
}

#[tokio::test]
async fn who_comes_back_hears_exactly_what_was_missed_and_then_what_comes() {
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let mut cid = stack.phone(&room, "cid").await;
    says_all(&mut ann, &room, 1..=3).await;
    let heard = bob.hears_until("3").await;
    let last = heard[0].msg_id; // "1": as if the others had not been heard
    cid.hears_until("3").await;
    let (bobs, cids) = (bob.person.clone(), cid.person.clone());
    bob.drops_without_goodbye();
    cid.drops_without_goodbye();

    says_all(&mut ann, &room, 4..=6).await;
    // ann goes on talking while they come back.
    let talking = async {
        for number in 7..=120 {
            ann.says_surely(&room, &number.to_string()).await;
        }
        ann
    };
    let coming = async {
        let browser = bobs.ws_back_into(&room, last).await;
        let phone = cids.tcp_back_into(&room, last).await;
        (browser, phone)
    };
    let (_ann, (mut browser, mut phone)) = tokio::join!(talking, coming);
    for back in [&mut browser, &mut phone] {
        assert_eq!(back.welcome()["recovered"], json!(true), "{}", back.welcome());
        let heard = back.hears_until("120").await;
        let texts: Vec<String> = heard.iter().map(|heard| heard.text().to_owned()).collect();
        let expected: Vec<String> = (2..=120).map(|number| number.to_string()).collect();
        assert_eq!(texts, expected, "no gap, no duplicate, in order");
        assert!(msg_ids(&heard).is_sorted());
    }
    stack.owes_nothing().await;
    stack.stop().await;
}

#[tokio::test]
async fn ones_own_messages_are_not_missed() {
    let stack = Stack::start().await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let start = bob.entered_at();
    ann.says_surely(&room, "hello").await;
    bob.hears("hello").await;
    bob.says_surely(&room, "hello yourself").await;
    let person = bob.person.clone();
    bob.drops_without_goodbye();

    let mut back = person.ws_back_into(&room, start).await;
    back.hears("hello").await;
    ann.says_surely(&room, "still there?").await;
    back.hears("still there?").await;
    stack.stop().await;
}

#[tokio::test]
async fn a_cursor_is_a_number_like_any_other() {
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut ann, bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let person = bob.person.clone();
    bob.drops_without_goodbye();
    says_all(&mut ann, &room, 1..=3).await;
    let (said, _) = page(&person, "/im/history", &[("roomId", &room.to_string())]).await;
    let ids: Vec<u64> = said.iter().map(|(id, _)| *id).collect();
    let above = |after: u64| said.iter().filter(move |(id, _)| after < *id).map(|(_, text)| text);
    // What nobody was ever given as a msgId lies between two of them all the same.
    for after in [0, 1, 255, 256, ids[0] - 1, ids[0], ids[1] - 1, ids[1] + 1, ids[2] - 1] {
        let mut back = person.ws_back_into(&room, after).await;
        assert_eq!(back.welcome()["recovered"], json!(true), "{after}");
        for text in above(after) {
            back.hears(text).await;
        }
        back.logout().await;
    }
    for before in [ids[0] + 1, ids[1], ids[1] + 1, ids[2] + 255] {
        let params = [("roomId", room.to_string()), ("before", before.to_string())];
        let params = params.each_ref().map(|(name, value)| (*name, value.as_str()));
        let expected: Vec<_> = said.iter().filter(|(id, _)| *id < before).cloned().collect();
        assert_eq!(page(&person, "/im/history", &params).await, (expected, false), "{before}");
    }
    stack.stop().await;
}

#[tokio::test]
async fn ones_own_messages_do_not_count_as_missed() {
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let start = ann.entered_at();
    says_all(&mut ann, &room, 1..=501).await;
    bob.says_surely(&room, "what a talker").await;
    ann.hears("what a talker").await;
    let person = ann.person.clone();
    ann.drops_without_goodbye();
    let mut back = person.ws_back_into(&room, start).await;
    assert_eq!(back.welcome()["recovered"], json!(true));
    back.hears("what a talker").await;
    stack.stop().await;
}

#[tokio::test]
async fn who_missed_too_much_is_told_so_and_reads_the_history() {
    let stack = Stack::with(FAST).await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let last = bob.entered_at();
    let person = bob.person.clone();
    ann.says_surely(&room, "0").await;
    bob.hears("0").await;
    bob.drops_without_goodbye();
    says_all(&mut ann, &room, 1..=500).await;

    let mut back = person.ws_back_into(&room, last).await; // 501 behind
    assert_eq!(back.welcome()["recovered"], json!(false));
    ann.says_surely(&room, "501").await;
    back.hears("501").await;
    let position = back.entered_at();
    back.drops_without_goodbye();

    let ahead = person.ws_back_into(&room, position * 2).await;
    assert_eq!(ahead.welcome()["recovered"], json!(false), "the log has lost its tail");
    assert!(ahead.entered_at() < position * 2);
    ahead.logout().await;

    let room_id = room.to_string();
    let mut before = String::new();
    let mut texts: Vec<String> = Vec::new();
    loop {
        let mut params = vec![("roomId", room_id.as_str()), ("limit", "100")];
        if !before.is_empty() {
            params.push(("before", before.as_str()));
        }
        let (list, has_next) = page(&person, "/im/history", &params).await;
        let first = list[0].0;
        texts.splice(0..0, list.into_iter().map(|(_, text)| text));
        if !has_next {
            break;
        }
        before = first.to_string();
    }
    let all: Vec<String> = (0..=501).map(|number| number.to_string()).collect();
    assert_eq!(texts, all);
    stack.stop().await;
}

#[tokio::test]
async fn the_history_of_a_room_is_readable_also_when_it_is_closed() {
    let stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let room = anchor.opens_room().await;
    let mut ann = stack.person("ann").await.ws_into(&room).await;
    says_all(&mut ann, &room, 1..=3).await;
    anchor.closes(&room).await;
    let (bob, id) = (stack.person("bob").await, room.to_string());

    let (list, has_next) = page(&bob, "/im/history", &[("roomId", &id)]).await;
    let texts: Vec<&str> = list.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!((texts, has_next), (vec!["1", "2", "3"], false));
    let newest = [("roomId", id.as_str()), ("limit", "2")];
    let (list, has_next) = page(&bob, "/im/history", &newest).await;
    assert_eq!((list[0].1.as_str(), list.len(), has_next), ("2", 2, true));

    for (params, code) in [
        (vec![("roomId", "987654")], 404),
        (vec![("roomId", "-1")], 404),
        (vec![], 400),
        (vec![("roomId", "x")], 400),
        (vec![("roomId", id.as_str()), ("limit", "101")], 400),
        (vec![("roomId", id.as_str()), ("limit", "0")], 400),
        (vec![("roomId", id.as_str()), ("before", "x")], 400),
    ] {
        assert_eq!(bob.asks("/im/history", &params).await.code, code, "{params:?}");
    }
    assert_eq!(stack.stranger().asks("/im/history", &[("roomId", &id)]).await.code, 401);
    stack.stop().await;
}

#[tokio::test]
async fn what_waits_for_me_can_be_read_without_taking_it() {
    let stack = Stack::start().await;
    let mut ann = stack.person("ann").await.ws().await;
    let bob = stack.person("bob").await;
    for text in ["one", "two", "three"] {
        ann.whispers_surely(&bob, text).await;
    }
    let texts =
        |list: &[(u64, String)]| list.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
    let (first, has_next) = page(&bob, "/im/offline/pull", &[("limit", "2")]).await;
    assert_eq!((texts(&first), has_next), (vec!["one".to_owned(), "two".to_owned()], true));
    let after = first[1].0.to_string();
    let (rest, has_next) = page(&bob, "/im/offline/pull", &[("after", &after)]).await;
    assert_eq!((texts(&rest), has_next), (vec!["three".to_owned()], false));

    let mut back = bob.ws().await; // pulling has acknowledged nothing
    for text in ["one", "two", "three"] {
        back.hears(text).await;
    }
    eventually("nothing waits any more", PATIENCE, async || {
        page(&bob, "/im/offline/pull", &[]).await.0.is_empty()
    })
    .await;
    stack.stop().await;
}
