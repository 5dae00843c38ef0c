//! What the bus loses or forgets, and who makes up for it (`docs/PROTOCOL.md` §1, §4).

use std::time::Duration;

use crate::harness::{FAST, PATIENCE, Room, Socket, Stack, Wire, eventually, fresh_id};

const ROLES: &[&str] = &["fanout", "presence,living,api", "gateway", "gateway"];
const HERS: usize = 1;
const HIS: (&str, usize) = ("gateway", 1);

/// Ann on the first gateway, Bob on the second, and a room.
async fn ann_and_bob(stack: &Stack) -> (Room, Socket, Socket) {
    let room = stack.room().await;
    let ann = stack.person("ann").await.via(&stack.gateway(HERS)).ws_into(&room).await;
    let bob = stack.person("bob").await.via(&stack.gateway(2)).ws_into(&room).await;
    (room, ann, bob)
}

#[tokio::test]
async fn the_last_message_of_a_room_is_heard_though_its_envelope_is_lost() {
    let stack = Stack::roles_on_wires(ROLES, FAST).await;
    let (room, mut ann, mut bob) = ann_and_bob(&stack).await;
    ann.says_surely(&room, "before").await;
    bob.hears("before").await;

    let mut nats = stack.nats().await;
    eventually("nothing is owed", PATIENCE, async || nats.messages_in("IM_OUT").await == 0).await;
    stack.wire_becomes(HIS, Wire::Silent);
    let last = ann.says_surely(&room, "and nothing more is said").await;
    eventually("its envelope is there", PATIENCE, async || nats.messages_in("IM_OUT").await == 1)
        .await;
    nats.empties("IM_OUT").await; // as a store that is not synced loses its tail
    stack.wire_becomes(HIS, Wire::Cut); // and what was on the wire
    eventually("his gateway knows", PATIENCE, async || !stack.says_ready(HIS).await).await;
    stack.wire_becomes(HIS, Wire::Whole);

    let heard = bob.hears("and nothing more is said").await;
    assert_eq!(heard.msg_id, last);
    bob.hears_nothing_else(&ann, &room).await;
    stack.stop().await;
}

#[tokio::test]
async fn a_direct_message_is_heard_though_its_envelope_is_lost() {
    let stack = Stack::roles_on_wires(ROLES, FAST).await;
    let (_room, mut ann, mut bob) = ann_and_bob(&stack).await;
    ann.whispers_surely(&bob.person, "before").await;
    bob.hears("before").await;

    let mut nats = stack.nats().await;
    eventually("nothing is owed", PATIENCE, async || nats.messages_in("IM_OUT").await == 0).await;
    stack.wire_becomes(HIS, Wire::Silent);
    let lost = ann.whispers_surely(&bob.person, "lost on the way").await;
    eventually("its envelope is there", PATIENCE, async || nats.messages_in("IM_OUT").await == 1)
        .await;
    nats.empties("IM_OUT").await;
    stack.wire_becomes(HIS, Wire::Cut);
    eventually("his gateway knows", PATIENCE, async || !stack.says_ready(HIS).await).await;
    stack.wire_becomes(HIS, Wire::Whole);

    // The next one names the one before it, which is read from the log.
    let next = ann.whispers_surely(&bob.person, "and the next").await;
    assert_eq!(bob.hears("lost on the way").await.msg_id, lost);
    assert_eq!(bob.hears("and the next").await.msg_id, next);
    stack.stop().await;
}

#[tokio::test]
async fn the_end_of_a_room_is_told_though_its_envelope_is_lost() {
    let stack = Stack::roles_on_wires(ROLES, FAST).await;
    let anchor = stack.anchor("the anchor").await;
    let room = anchor.opens_room().await;
    let mut bob = stack.person("bob").await.via(&stack.gateway(2)).ws_into(&room).await;

    stack.wire_becomes(HIS, Wire::Silent);
    anchor.closes(&room).await;
    let mut nats = stack.nats().await;
    eventually("its envelope is there", PATIENCE, async || nats.messages_in("IM_OUT").await == 1)
        .await;
    nats.empties("IM_OUT").await;
    stack.wire_becomes(HIS, Wire::Cut);
    eventually("his gateway knows", PATIENCE, async || !stack.says_ready(HIS).await).await;
    stack.wire_becomes(HIS, Wire::Whole);

    let told = bob.is_told(5600).await;
    assert!(told["msgId"].is_string(), "{told}");
    stack.stop().await;
}

#[tokio::test]
async fn a_name_the_bus_has_forgotten_is_still_stored_once() {
    let mut stack = Stack::roles(ROLES, FAST).await;
    let (room, mut ann, mut bob) = ann_and_bob(&stack).await;
    let (name, id) = (ann.person.id, fresh_id());
    let stored = ann.says_with_id(&room, "once", &id).await;
    bob.hears("once").await;
    let mut nats = stack.nats().await;
    let (subject, copy) = nats.last_under("IM_IN", &format!("im.in.*.10001.room.{room}.msg")).await;

    // Whoever folded it dies, and her gateway. The successor knows it by the snapshot and the log.
    stack.kills(("fanout", 0)).await;
    stack.revives(("fanout", 0)).await;
    stack.kills(("gateway", 0)).await;
    nats.remembers_for("IM_IN", FORGETFUL).await;
    let key = format!("m:10001:{name}:{id}");
    let mut again = ann.person.via(&stack.gateway(2)).ws_into(&room).await;
    again.says_surely(&room, "is anybody there?").await;
    bob.hears("is anybody there?").await;
    assert_eq!(again.says_with_id(&room, "once", &id).await, stored, "on another gateway");

    // The bus has forgotten it indeed; and a copy that gets in all the same is delivered to nobody.
    assert!(!nats.knows(&subject, &key, &copy).await, "the bus knows the name still");
    bob.hears_nothing_else(&again, &room).await;
    stack.revives(("gateway", 0)).await;
    stack.stop().await;
}

/// The bus forgets a name after this; by default after two minutes. The shortest it takes.
const FORGETFUL: Duration = Duration::from_millis(100);
