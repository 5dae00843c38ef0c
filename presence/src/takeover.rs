//! Recovery of a dead gateway's queue: its unacked messages are appended to the
//! log, and the fold knows the present connections of their recipients.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use qiyu_nats::{
    Bus,
    bucket::BucketError,
    chain,
    log::{APPEND_DEADLINE, AppendCondition, AppendError, ReadError},
    outbox::{Delivery, OutboxError},
};
use qiyu_schema::{
    AppId, Incarnation, MsgId, Partition, RoomId,
    envelope::Envelope,
    event::{Event, Record, UnackedMessage},
    subject::{self, RoomKind},
};
use tracing::{info, warn};

/// How often the owners' positions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A takeover that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeoverError {
    #[error("bury the gateway")]
    Bury(#[source] AppendError),
    #[error("read how far the partitions are")]
    Positions(#[from] BucketError),
    #[error("find the burial in the log")]
    Log(#[from] ReadError),
    #[error(transparent)]
    Queue(#[from] OutboxError),
    #[error("hand unacknowledged messages on")]
    HandOn(#[source] AppendError),
}

/// Recovers the unacked messages of `gateway`; its end must be in the log. A second
/// recovery, by another process or after a crash, changes nothing.
pub(crate) async fn take_over(bus: &Bus, gateway: &Incarnation) -> Result<(), TakeoverError> {
    // An owner past the gateway's end enqueues nothing more for it, so the queue is
    // complete then.
    wait_until_folded(bus, gateway).await?;
    let mut queue = bus.open_abandoned_outbox(gateway).await?;
    let (mut messages, mut envelopes) = (0, 0);
    loop {
        let some = queue.fetch_batch().await?;
        if some.is_empty() {
            break;
        }
        envelopes += some.len();
        messages += hand_on(bus, gateway, &some).await?;
        for delivery in some {
            bus.ack(&delivery.ack).await;
        }
    }
    queue.close(bus).await;
    info!(%gateway, envelopes, messages, "taken over");
    Ok(())
}

/// The end of `gateway`, where every partition has it.
async fn wait_until_folded(bus: &Bus, gateway: &Incarnation) -> Result<(), TakeoverError> {
    stream::iter(Partition::all())
        .map(|partition| async move {
            let subject = subject::gateway_gone(partition, &gateway.id);
            let Some(burial) = bus.read_last(&subject).await? else { return Ok(()) };
            while bus.position(partition).await? < burial.seq {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok::<_, TakeoverError>(())
        })
        .buffer_unordered(16)
        .try_collect()
        .await
}

/// Appends the unacked messages of each room to its partition. Direct messages stay
/// pending in the fold anyway, and a later join receives a closed room's notice.
async fn hand_on(
    bus: &Bus,
    gateway: &Incarnation,
    some: &[Delivery],
) -> Result<usize, TakeoverError> {
    let mut rooms: BTreeMap<(AppId, RoomId), Vec<MsgId>> = BTreeMap::new();
    for delivery in some {
        match delivery.envelope() {
            Ok(
                Envelope::Room { app, room, msg_id, .. }
                | Envelope::Repeat { app, room, msg_id, .. },
            ) => {
                rooms.entry((app, room)).or_default().push(msg_id);
            }
            Ok(_) => {}
            Err(error) => warn!(%gateway, error = %chain(&error), "undecodable envelope dropped"),
        }
    }
    let count = rooms.values().map(Vec::len).sum();
    for ((app, room), mut msg_ids) in rooms {
        msg_ids.sort_unstable();
        msg_ids.dedup();
        // The key is a function of the messages, so two recoveries store one event.
        let hash = msg_ids.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, msg_id| {
            (hash ^ msg_id.get()).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let key = format!("una:{gateway}:{room}:{hash:x}");
        // How often they were sent died with the gateway: once, at least.
        let unacked = |msg_id| UnackedMessage { msg_id, users: None, sends: 1 };
        let messages = msg_ids.into_iter().map(unacked).collect();
        let (gateway, keep) = (gateway.clone(), true);
        let record = Record::at(
            qiyu_nats::now_ms(),
            Event::Unacknowledged { app, room, gateway, messages, keep },
        );
        let subject = subject::room(app, room, RoomKind::Unacked);
        bus.append(subject, &record, &key, AppendCondition::Any, APPEND_DEADLINE)
            .await
            .map_err(TakeoverError::HandOn)?;
    }
    Ok(count)
}
