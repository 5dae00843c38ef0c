//! Who is here: logout, silence, sudden ends, several devices (`docs/PROTOCOL.md` §5 and §6).

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;

use crate::harness::{PATIENCE, Person, Room, Socket, Stack, eventually};

/// Everything but the gateways in one process, and two gateways beside it.
const TWO_GATEWAYS: &[&str] = &["fanout,presence,living,api", "gateway", "gateway"];

async fn goes_offline(person: &Person, within: Duration) {
    let what = format!("{} is offline", person.name);
    eventually(&what, within, async || !person.sees_online(person).await).await;
}

#[tokio::test]
async fn one_is_online_from_login_to_logout() {
    let stack = Stack::start().await;
    let (ann, bob) = (stack.person("ann").await, stack.person("bob").await);
    assert!(!bob.sees_online(&ann).await);
    for socket in [ann.ws().await, ann.tcp().await, ann.ws_into(&stack.room().await).await] {
        assert!(bob.sees_online(&ann).await);
        assert!(!bob.sees_online(&bob).await);
        socket.logout().await;
    }
    assert!(!bob.sees_online(&ann).await, "who is told goodbye is gone");

    let phone = ann.tcp().await;
    assert!(bob.sees_online(&ann).await);
    phone.drops_without_goodbye();
    goes_offline(&ann, Duration::from_secs(5)).await;
    stack.stop().await;
}

#[tokio::test]
async fn with_two_devices_one_may_leave() {
    let stack = Stack::start().await;
    let ann = stack.person("ann").await;
    let mut bob = stack.person("bob").await.ws().await;
    let (laptop, mut phone) = (ann.ws().await, ann.tcp().await);
    laptop.logout().await;
    assert!(ann.sees_online(&ann).await);
    bob.whispers(&ann, "still there?");
    phone.hears("still there?").await;
    bob.heartbeat().await;
    assert!(ann.sees_online(&ann).await);
    phone.logout().await;
    goes_offline(&ann, Duration::from_secs(5)).await;
    stack.stop().await;
}

#[tokio::test]
async fn who_falls_silent_is_shown_out_and_who_does_not_stays() {
    const IDLE: Duration = Duration::from_secs(2);
    let stack = Stack::with(&[("QIYU_IDLE_TIMEOUT", "2s"), ("QIYU_ACK_WAIT", "1s")]).await;
    let room = stack.room().await;
    let [mut ann, mut bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let mut cid = stack.phone(&room, "cid").await;

    let (to_bob, to_cid) =
        ann.beats_during(IDLE / 4, async { tokio::join!(bob.is_closed(), cid.is_closed()) }).await;
    assert_eq!((to_bob.code, to_cid.code), (Some(3010), None));
    for silent in [&bob.person, &cid.person] {
        ann.beats_during(IDLE / 4, goes_offline(silent, Duration::from_secs(5))).await;
    }
    assert!(ann.person.sees_online(&ann.person).await);
    ann.logout().await;
    stack.stop().await;
}

/// Comes into the room, and goes again in one of the three ways there are.
async fn comes_and_goes(stack: &Stack, room: &Room, number: usize) -> Person {
    let person = stack.person(&format!("guest {number}")).await;
    let socket = match number % 2 {
        0 => person.ws_into(room).await,
        _ => person.tcp_into(room).await,
    };
    assert!(person.sees_online(&person).await);
    match number % 3 {
        0 => socket.logout().await,
        _ => socket.drops_without_goodbye(),
    }
    person
}

#[tokio::test]
async fn two_hundred_who_come_and_go_leave_no_ghost() {
    const GUESTS: usize = 200;
    let rates = [("QIYU_HTTP_RATE", "100000"), ("QIYU_HTTP_BURST", "100000")];
    let more = [("QIYU_CONNECT_RATE", "100000"), ("QIYU_CONNECT_BURST", "100000")];
    let stack = Stack::with(&[rates, more].concat()).await;
    let anchor = stack.anchor("anchor").await;
    let room = anchor.opens_room().await;
    let inside = anchor.ws_into(&room).await;
    eventually("the anchor counts as one", PATIENCE, async || anchor.counts(&room).await == 1)
        .await;

    let visits = (0..GUESTS).map(|number| comes_and_goes(&stack, &room, number));
    let guests: Vec<_> = stream::iter(visits).buffer_unordered(20).collect().await;
    eventually("only the anchor is left", PATIENCE, async || anchor.counts(&room).await == 1).await;
    for guest in &guests {
        goes_offline(guest, Duration::from_secs(5)).await;
    }
    inside.logout().await;
    stack.stop().await;
}

#[tokio::test]
async fn everybody_inside_is_counted_once() {
    let stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let room = anchor.opens_room().await;
    assert_eq!(anchor.counts(&room).await, 0);
    let [ann, bob] = stack.browsers(&room, ["ann", "bob"]).await;
    let _second_device = ann.person.tcp_into(&room).await;
    let _outside = stack.person("cid").await.ws().await;
    let _inside = anchor.ws_into(&room).await;
    eventually("three are inside", PATIENCE, async || anchor.counts(&room).await == 3).await;
    bob.logout().await;
    eventually("two are inside", PATIENCE, async || anchor.counts(&room).await == 2).await;
    ann.logout().await;
    eventually("the phone still counts", PATIENCE, async || anchor.counts(&room).await == 2).await;
    stack.stop().await;
}

#[tokio::test]
async fn a_newer_login_may_replace_the_older_ones() {
    let stack = Stack::with(&[("QIYU_MULTI_DEVICE", "replace")]).await;
    let room = stack.room().await;
    let [bob] = stack.browsers(&room, ["bob"]).await;
    let ann = stack.person("ann").await;
    let mut old = ann.ws_into(&room).await;
    let mut middle = ann.tcp_into(&room).await;
    old.is_answered(1002, "replaced").await;
    old.is_closed_with(3503).await;
    let mut new = ann.ws_into(&room).await;
    middle.is_answered(1002, "replaced").await;
    middle.is_closed().await;

    bob.says(&room, "who is it now?");
    new.hears("who is it now?").await;
    assert!(ann.sees_online(&ann).await);
    stack.stop().await;
}

#[tokio::test]
async fn a_newer_login_replaces_the_older_ones_on_any_gateway() {
    let stack = Stack::roles(TWO_GATEWAYS, &[("QIYU_MULTI_DEVICE", "replace")]).await;
    let room = stack.room().await;
    let [bob] = stack.browsers(&room, ["bob"]).await;
    let ann = stack.person("ann").await;
    let mut old = ann.via(&stack.gateway(1)).ws_into(&room).await;
    let mut middle = ann.via(&stack.gateway(2)).tcp_into(&room).await;
    old.is_answered(1002, "replaced").await;
    old.is_closed_with(3503).await;
    let mut new = ann.via(&stack.gateway(1)).ws_into(&room).await;
    middle.is_answered(1002, "replaced").await;
    middle.is_closed().await;

    bob.says(&room, "who is it now?");
    new.hears("who is it now?").await;
    bob.whispers(&ann, "and you?");
    new.hears("and you?").await;
    assert!(bob.person.sees_online(&ann).await, "the end of an older one harms no newer one");
    let anchor = &bob.person;
    eventually("each is inside once", PATIENCE, async || anchor.counts(&room).await == 2).await;
    stack.stop().await;
}

#[tokio::test]
async fn two_gateways_share_one_room() {
    let stack = Stack::roles(TWO_GATEWAYS, &[]).await;
    let room = stack.room().await;
    let (ann, bob) = (stack.person("ann").await, stack.person("bob").await);
    let mut ann = ann.via(&stack.gateway(1)).ws_into(&room).await;
    let mut bob = bob.via(&stack.gateway(2)).tcp_into(&room).await;
    let mut cid = stack.person("cid").await.via(&stack.gateway(2)).ws_into(&room).await;

    ann.says(&room, "hello over there");
    let (to_bob, to_cid) =
        (bob.hears("hello over there").await, cid.hears("hello over there").await);
    assert_eq!(to_bob.msg_id, to_cid.msg_id);
    bob.says(&room, "hello back");
    assert_eq!(ann.hears("hello back").await.msg_id, cid.hears("hello back").await.msg_id);
    cid.whispers(&ann.person, "psst");
    ann.hears("psst").await;

    let path = format!("/{}/{}/1001/{room}", ann.person.token().await, ann.person.id);
    let there = ann.person.via(&stack.gateway(2));
    there.knocks(&path, &[]).await.expect("it is good anywhere").enters().await;
    let here = ann.person.knocks(&path, &[]).await;
    assert_eq!(here.err(), Some(401), "and good for one connection in all");
    stack.stop().await;
}

#[tokio::test]
async fn the_people_of_a_dead_gateway_are_offline_and_find_the_other() {
    let mut stack = Stack::roles(TWO_GATEWAYS, &[]).await;
    let anchor = stack.anchor("anchor").await;
    let room = anchor.opens_room().await;
    let (first, second) = (stack.gateway(1), stack.gateway(2));
    let mut people = Vec::new();
    let mut lost: Vec<Socket> = Vec::new();
    for number in 0..10 {
        let person = stack.person(&format!("ann {number}")).await;
        lost.push(person.via(&first).ws_into(&room).await);
        people.push(person);
    }
    let mut bob = stack.person("bob").await.via(&second).ws_into(&room).await;
    let cid = stack.person("cid").await.via(&second).tcp_into(&room).await;

    stack.kills_gateway(1).await;
    cid.says(&room, "did you hear that?");
    bob.hears("did you hear that?").await;
    for socket in &mut lost {
        socket.is_closed().await;
    }
    let offline = people.iter().map(|person| goes_offline(person, Duration::from_secs(10)));
    futures_util::future::join_all(offline).await;
    assert!(bob.person.sees_online(&bob.person).await);
    eventually("no ghost is inside", PATIENCE, async || anchor.counts(&room).await == 2).await;

    let mut back = people.remove(0).ws_into(&room).await;
    cid.says(&room, "welcome back");
    back.hears_until("welcome back").await;
    bob.hears("welcome back").await;
    stack.stop().await;
}

#[tokio::test]
async fn a_gateway_that_drains_sends_its_people_elsewhere() {
    let mut stack = Stack::roles(TWO_GATEWAYS, &[]).await;
    let room = stack.room().await;
    let first = stack.gateway(1);
    let ann = stack.person("ann").await;
    let mut browser = ann.via(&first).ws_into(&room).await;
    let mut phone = ann.via(&first).tcp_into(&room).await;
    let mut bob = stack.person("bob").await.via(&stack.gateway(2)).ws_into(&room).await;

    stack.drains_gateway(1).await;
    browser.is_answered(1002, "draining").await;
    let reason = browser.is_closed_with(1012).await.reason;
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok();
    let wait = reason.split_once("retry_ms=").and_then(|(_, after)| digits(after));
    assert!(wait.is_some_and(|ms| ms <= 1000), "{reason:?}");
    phone.is_answered(1002, "draining").await;
    phone.is_closed().await;
    eventually("ann is offline", PATIENCE, async || !bob.person.sees_online(&ann).await).await;

    let back = ann.ws_into(&room).await;
    back.says(&room, "moved");
    bob.hears("moved").await;
    stack.stop().await;
}
