//! Appending unacknowledged messages of closed connections to the log, which
//! knows where their users are now.

use std::collections::BTreeMap;

use qiyu_nats::{
    Bus, chain,
    log::{APPEND_DEADLINE, AppendCondition},
};
use qiyu_schema::{
    Incarnation, MsgId, UserId,
    event::{Event, Record, UnackedMessage},
    subject::{self, RoomKind},
};
use tracing::warn;

use super::{
    action::{KeepForReturn, UnackedDelivery},
    ids::RoomKey,
};

/// Users named in one append, over all its messages: nine bytes each, and some
/// thirty a message, so below a tenth of the size that the log takes.
const APPEND_USERS_MAX: usize = 1000;

/// Appends which users left which messages unacknowledged. A failure is logged:
/// the messages are in the history.
pub(super) async fn append_unacked(
    bus: &Bus,
    gateway: &Incarnation,
    unacked: &[UnackedDelivery],
    keep: KeepForReturn,
) {
    for ((app, room), messages) in by_room(unacked) {
        for messages in in_batches(messages) {
            let subject = subject::room(app, room, RoomKind::Unacked);
            // A nonce tells batches apart: the same messages may be left more than
            // once, by different users.
            let key = format!("una:{gateway}:{:x}", qiyu_schema::ticket::fresh_nonce());
            let (gateway, keep) = (gateway.clone(), keep == KeepForReturn::Yes);
            let record = Record::at(
                qiyu_nats::now_ms(),
                Event::Unacknowledged { app, room, gateway, messages, keep },
            );
            let stored = bus.append(subject, &record, &key, AppendCondition::Any, APPEND_DEADLINE);
            if let Err(error) = stored.await {
                warn!(%room, error = %chain(&error), "unacknowledged messages not reassigned; history has them");
            }
        }
    }
}

/// Groups deliveries by room. One message with the same number of copies is
/// named once, in pieces of [`APPEND_USERS_MAX`] users.
fn by_room(unacked: &[UnackedDelivery]) -> BTreeMap<RoomKey, Vec<UnackedMessage>> {
    let mut rooms: BTreeMap<RoomKey, BTreeMap<(MsgId, u32), Vec<UserId>>> = BTreeMap::new();
    for UnackedDelivery { room, msg_id, users, sends, .. } in unacked {
        let messages = rooms.entry(*room).or_default();
        messages.entry((*msg_id, *sends)).or_default().extend(users);
    }
    let in_pieces = |((msg_id, sends), users): ((MsgId, u32), Vec<UserId>)| {
        let piece =
            |users: &[UserId]| UnackedMessage { msg_id, users: Some(users.to_vec()), sends };
        users.chunks(APPEND_USERS_MAX).map(piece).collect::<Vec<_>>()
    };
    rooms
        .into_iter()
        .map(|(room, messages)| (room, messages.into_iter().flat_map(in_pieces).collect()))
        .collect()
}

/// Puts messages together as long as they name few enough users.
fn in_batches(messages: Vec<UnackedMessage>) -> Vec<Vec<UnackedMessage>> {
    let mut batches: Vec<Vec<UnackedMessage>> = Vec::new();
    let mut users_left = 0;
    for message in messages {
        let users = message.users.as_ref().map_or(0, Vec::len).max(1);
        if users_left < users {
            batches.push(Vec::new());
            users_left = APPEND_USERS_MAX;
        }
        users_left -= users.min(users_left);
        if let Some(batch) = batches.last_mut() {
            batch.push(message);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::{super::ids::DeliveryId, *};

    fn unacked(seq: u64, users: std::ops::Range<u64>, sends: u32) -> UnackedDelivery {
        UnackedDelivery {
            delivery: DeliveryId(seq),
            room: ("10001".parse().unwrap(), "7".parse().unwrap()),
            msg_id: MsgId::at(seq),
            users: users.map(|user| (20_000 + user).try_into().unwrap()).collect(),
            sends,
        }
    }

    fn batch_sizes(unacked: &[UnackedDelivery]) -> Vec<Vec<usize>> {
        let rooms = by_room(unacked);
        let batches = rooms.into_values().flat_map(in_batches);
        let users = |message: UnackedMessage| message.users.unwrap().len();
        batches.map(|batch| batch.into_iter().map(users).collect()).collect()
    }

    #[test]
    fn no_append_names_more_users_than_the_limit() {
        let small = [unacked(1, 0..400, 1), unacked(2, 0..400, 1), unacked(3, 0..400, 1)];
        assert_eq!(batch_sizes(&small), [vec![400, 400], vec![400]]);
        let large = [unacked(1, 0..2500, 1)];
        assert_eq!(batch_sizes(&large), [vec![1000], vec![1000], vec![500]]);
    }

    #[test]
    fn users_of_one_message_are_named_together_if_they_had_as_many_copies() {
        let twice = [unacked(1, 0..2, 1), unacked(1, 2..5, 1), unacked(1, 5..6, 2)];
        assert_eq!(batch_sizes(&twice), [vec![5, 1]]);
    }
}
