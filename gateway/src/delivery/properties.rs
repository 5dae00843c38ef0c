//! Properties of the core under random logs, losses, acknowledgements and ends
//! of connections.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;
use qiyu_schema::{ConnId, MsgId, ledger::Via};

use super::{
    action::Attempt,
    model::{Op, Stored, World, random_op},
    test_bed::conn,
};

/// Checks that connections in a room got each message that is for them once, in
/// order, and no other.
fn check_copies(world: &World) -> Result<(), TestCaseError> {
    let mut first: HashMap<(ConnId, bool), Vec<MsgId>> = HashMap::new();
    let mut got: HashSet<(ConnId, MsgId)> = HashSet::new();
    for copy in &world.bed.copies {
        if copy.attempt == Attempt::First {
            prop_assert!(got.insert((copy.to, copy.msg_id)), "a second first copy: {copy:?}");
            first.entry((copy.to, copy.in_room)).or_default().push(copy.msg_id);
        } else {
            prop_assert!(got.contains(&(copy.to, copy.msg_id)), "a retry first: {copy:?}");
        }
    }
    for (of, copies) in &first {
        prop_assert!(copies.is_sorted(), "out of order at {of:?}: {copies:?}");
    }
    for (id, client) in &world.clients {
        if world.bed.closing.contains(&conn(*id)) {
            continue;
        }
        let is_for_it = |(msg_id, stored): &(&MsgId, &Stored)| {
            stored.room == Some(client.room)
                && stored.user != client.user
                && client.joined < **msg_id
        };
        let expected: Vec<MsgId> =
            world.log.iter().filter(is_for_it).map(|(msg_id, _)| *msg_id).collect();
        let copies = first.remove(&(conn(*id), true)).unwrap_or_default();
        prop_assert_eq!(copies, expected, "connection {}", id);
    }
    Ok(())
}

/// Checks that each outcome accounts for each of its recipients, and that each
/// lagging connection that an outcome names has an outcome of its own.
fn check_outcomes(world: &World) -> Result<(), TestCaseError> {
    let (mut named, mut apart) = (BTreeMap::new(), BTreeMap::new());
    for outcome in &world.bed.outcomes {
        let sum = outcome.acknowledged + outcome.given_up + outcome.left;
        prop_assert_eq!(outcome.resolved, sum, "{:?}", outcome);
        prop_assert!(outcome.written <= outcome.resolved, "{:?}", outcome);
        if outcome.lagging > 0 {
            *named.entry(outcome.msg_id).or_insert(0) += outcome.lagging;
        }
        if outcome.via == Via::Lagging {
            *apart.entry(outcome.msg_id).or_insert(0) += outcome.resolved;
        }
    }
    prop_assert_eq!(named, apart);
    Ok(())
}

proptest! {
    #[test]
    fn every_message_is_delivered_in_order_and_accounted_for(
        ops in proptest::collection::vec(random_op(), 1..160),
    ) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        world.settle();
        check_copies(&world)?;

        // Some acknowledge, others never do: everything is resolved.
        for nth in 0..2 {
            world.step(Op::Acknowledge { connection: nth, count: 1000 });
        }
        for _ in 0..4 {
            world.step(Op::Pass { millis: 4000 });
            world.step(Op::FinishReassigning);
            world.step(Op::Record);
        }
        prop_assert!(world.bed.core.in_flight.is_empty(), "{:?}", world.bed.core.in_flight);
        prop_assert!(world.delivered.is_empty(), "unacknowledged: {:?}", world.delivered);
        check_copies(&world)?;
        check_outcomes(&world)?;

        // When the connections are gone, nothing is remembered of them.
        while let Some(connection) = world.pick(0) {
            world.leave(connection);
        }
        while !world.changes.is_empty() {
            world.step(Op::LearnMembers);
        }
        for _ in 0..3 {
            world.step(Op::Record);
            world.step(Op::Pass { millis: 30_000 });
        }
        let core = &world.bed.core;
        prop_assert!(core.connections.is_empty() && core.in_flight.is_empty());
        prop_assert!(core.rooms.is_empty(), "{:?}", core.rooms);
        prop_assert!(core.envelopes.is_empty() && core.tombstones.is_empty());
        prop_assert!(core.own_clock.is_empty());
    }
}
