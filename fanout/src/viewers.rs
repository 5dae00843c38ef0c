//! How many users are inside each room and how often it was liked: for lists,
//! and as notices to the room.
//!
//! At most once a second per room, and only on change (docs/PROTOCOL.md, section 3).

use std::collections::{HashMap, HashSet};

use qiyu_nats::{
    Bus,
    bucket::Bucket,
    chain,
    notice::{self, Notice},
    stream::BucketName,
};
use qiyu_schema::{
    AppId, Incarnation, RoomId, codec,
    room::{self, RoomCounts},
};
use tracing::debug;

use crate::fold::Fold;

/// The notice "so many are watching".
const VIEWERS: i32 = 5601;
/// The notice "so many likes".
const LIKES: i32 = 5602;

/// A room whose counts may have changed.
pub(crate) struct Changed {
    app: AppId,
    room: RoomId,
    /// `None`: it is closed.
    counts: Option<RoomCounts>,
    gateways: Vec<Incarnation>,
}

/// The counts last published for each room of one partition.
pub(crate) struct Viewers {
    bucket: Bucket,
    told: HashMap<(AppId, RoomId), RoomCounts>,
}

impl Viewers {
    pub(crate) fn new(bus: &Bus) -> Self {
        Self { bucket: bus.bucket(BucketName::Watch), told: HashMap::new() }
    }

    /// Collects the counts of rooms that may have changed.
    pub(crate) fn of(fold: &Fold, rooms: HashSet<(AppId, RoomId)>) -> Vec<Changed> {
        let changed = |(app, room)| {
            let (counts, gateways) = (fold.counts(app, room), fold.gateways_of(app, room));
            Changed { app, room, counts, gateways }
        };
        rooms.into_iter().map(changed).collect()
    }

    /// Publishes the counts that have changed since the last time.
    pub(crate) async fn tell(&mut self, bus: &Bus, changed: Vec<Changed>) {
        for Changed { app, room, counts, gateways } in changed {
            let key = room::key(app, room);
            let Some(counts) = counts else {
                self.told.remove(&(app, room));
                // Counts that stay behind are harmless: rooms are never used again.
                if let Ok(slot) = self.bucket.read(&key).await
                    && slot.value.is_some()
                    && let Err(error) = self.bucket.remove_if(&key, slot.revision).await
                {
                    debug!(%room, error = %chain(&error), "counts of a closed room not removed");
                }
                continue;
            };
            let before = self.told.insert((app, room), counts);
            if before == Some(counts) {
                continue;
            }
            let Ok(value) = codec::encode(&counts) else { continue };
            if let Err(error) = self.bucket.set(&key, value, None).await {
                debug!(%room, error = %chain(&error), "counts not written, they will be with the next change");
                self.told.remove(&(app, room));
            }
            let RoomCounts { watch_num, good_num, .. } = counts;
            let before = before.unwrap_or_default();
            let mut notices = Vec::new();
            if before.watch_num != watch_num {
                notices.push((VIEWERS, format!(r#"{{"roomId":{room},"watchNum":{watch_num}}}"#)));
            }
            if before.good_num != good_num {
                notices.push((LIKES, format!(r#"{{"roomId":{room},"goodNum":{good_num}}}"#)));
            }
            for (biz_code, data) in notices {
                let notice = Notice { app, room, biz_code, data };
                for gateway in &gateways {
                    notice::send(bus, gateway, &notice).await;
                }
            }
        }
    }
}
