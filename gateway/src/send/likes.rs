//! Counting likes: one event a second for each room, instead of one for each like.

use std::collections::HashMap;

use parking_lot::Mutex;
use qiyu_nats::{
    Bus, chain,
    log::{APPEND_DEADLINE, AppendCondition},
};
use qiyu_schema::{
    AppId, Incarnation, RoomId,
    event::{Event, Record},
    subject::{self, RoomKind},
};
use tracing::debug;

/// The likes that are not in the log yet, by room.
#[derive(Debug, Default)]
pub(crate) struct LikeCounter(Mutex<HashMap<(AppId, RoomId), u64>>);

impl LikeCounter {
    pub(crate) fn add(&self, app: AppId, room: RoomId, count: u32) {
        *self.0.lock().entry((app, room)).or_default() += u64::from(count);
    }

    /// Appends the likes of the last second to the log. Likes that cannot be
    /// stored are lost. `second` makes the event's deduplication key unique.
    pub(crate) async fn append(&self, bus: &Bus, gateway: &Incarnation, second: u64) {
        let likes = std::mem::take(&mut *self.0.lock());
        for ((app, room), count) in likes {
            let subject = subject::room(app, room, RoomKind::Likes);
            let key = format!("likes:{gateway}:{app}.{room}:{second}");
            let event = Event::RoomLiked { app, room, gateway: gateway.clone(), count };
            let record = Record::at(qiyu_nats::now_ms(), event);
            let any = AppendCondition::Any;
            if let Err(error) = bus.append(subject, &record, &key, any, APPEND_DEADLINE).await {
                debug!(%room, count, error = %chain(&error), "likes lost");
            }
        }
    }
}
