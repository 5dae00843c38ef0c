//! What somebody left unacknowledged is theirs wherever they are by now: the log
//! is told, and whoever folds it knows where that is.

use std::{collections::BTreeMap, sync::Arc};

use qiyu_nats::{
    Bus, chain,
    log::{APPEND_DEADLINE, AppendCondition},
};
use qiyu_schema::{
    Incarnation, MsgId, UserId,
    event::{Event, Record, UnackedMessage},
    subject::{self, RoomKind},
};
use tokio::sync::oneshot;
use tracing::warn;

use super::{DeliveryTask, RoomKey};
use crate::delivery::in_flight::{Entry, Settled};

/// Whether messages are kept for those who have not come back yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    No,
    AWhile,
}

/// What some users left unacknowledged.
pub(super) struct LeftOwing {
    pub(super) entry: Arc<Entry>,
    pub(super) users: Vec<UserId>,
    /// Copies there have been.
    pub(super) sends: u32,
}

/// Users named in one append, over all its messages: nine bytes each, and some
/// thirty a message, so below a tenth of what the log takes.
const HAND_ON_USERS_MAX: usize = 1000;

impl DeliveryTask {
    /// As at every tick, for all at once, and also for those who are not back yet.
    pub(super) fn hand_all_on(&self, done: oneshot::Sender<()>) {
        let open = self.entries.values().chain(self.own_clock.iter().map(|(_, entry)| entry));
        let left: Vec<LeftOwing> = open
            .filter(|entry| !entry.is_settled())
            .map(|entry| {
                let (users, sends) = entry.take_orphans();
                LeftOwing { entry: Arc::clone(entry), users, sends }
            })
            .filter(|left| !left.users.is_empty())
            .collect();
        let (bus, gateway) = (self.with.bus.clone(), self.with.gateway.clone());
        self.with.tasks.spawn(async move {
            hand_on(&bus, &gateway, left, Keep::AWhile).await;
            done.send(()).ok(); // whoever asked may have stopped waiting
        });
    }
}

/// Tells the log who left which messages unacknowledged, then settles for them.
pub(super) async fn hand_on(bus: &Bus, gateway: &Incarnation, left: Vec<LeftOwing>, keep: Keep) {
    let mut rooms: BTreeMap<RoomKey, BTreeMap<(MsgId, u32), Vec<UserId>>> = BTreeMap::new();
    for LeftOwing { entry, users, sends } in &left {
        let Some(room) = entry.room else { continue };
        let messages = rooms.entry((entry.app, room)).or_default();
        messages.entry((entry.msg_id, *sends)).or_default().extend(users);
    }
    for ((app, room), messages) in rooms {
        let each = messages.into_iter().flat_map(|((msg_id, sends), users)| {
            let some =
                |users: &[UserId]| UnackedMessage { msg_id, users: Some(users.to_vec()), sends };
            users.chunks(HAND_ON_USERS_MAX).map(some).collect::<Vec<_>>()
        });
        for messages in batched(each) {
            let subject = subject::room(app, room, RoomKind::Unacked);
            // Told apart by a number nobody else draws: the same messages may be
            // left more than once, by different people.
            let key = format!("una:{gateway}:{:x}", qiyu_schema::ticket::fresh_nonce());
            let (gateway, keep) = (gateway.clone(), keep == Keep::AWhile);
            let record = Record::at(
                qiyu_nats::now_ms(),
                Event::Unacknowledged { app, room, gateway, messages, keep },
            );
            let stored = bus.append(subject, &record, &key, AppendCondition::Any, APPEND_DEADLINE);
            if let Err(error) = stored.await {
                warn!(%room, error = %chain(&error), "unacknowledged messages not handed on; history has them");
            }
        }
    }
    for LeftOwing { entry, users, .. } in left {
        users.iter().for_each(|_| entry.settle(Settled::Left));
    }
}

/// Messages together as long as they name few enough users.
fn batched(messages: impl Iterator<Item = UnackedMessage>) -> Vec<Vec<UnackedMessage>> {
    let mut batches: Vec<Vec<UnackedMessage>> = Vec::new();
    let mut room_for = 0;
    for message in messages {
        let users = message.users.as_ref().map_or(0, Vec::len).max(1);
        if room_for < users {
            batches.push(Vec::new());
            room_for = HAND_ON_USERS_MAX;
        }
        room_for -= users.min(room_for);
        if let Some(batch) = batches.last_mut() {
            batch.push(message);
        }
    }
    batches
}
