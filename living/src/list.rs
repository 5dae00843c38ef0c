//! The command that lists open rooms, and the task that refreshes the lists.

use std::{sync::Arc, time::Duration};

use qiyu_nats::{chain, service::CommandRefusal};
use qiyu_schema::command::{ListRooms, RoomPage};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{inner::LivingInner, room::ROOM_TYPES, texts};

/// How often the lists are read again. Changes by other processes show within this time.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// Rooms on one page.
const PAGE_SIZE_MAX: u32 = 100;

/// Returns one page of open rooms.
pub(crate) fn list(inner: &LivingInner, request: &ListRooms) -> Result<RoomPage, CommandRefusal> {
    if request.page < 1 || !(1..=PAGE_SIZE_MAX).contains(&request.page_size) {
        return Err(CommandRefusal { code: 400, message: texts::BAD_PAGE.into() });
    }
    if !ROOM_TYPES.contains(&request.room_type) {
        return Err(CommandRefusal { code: 400, message: texts::ROOM_TYPE_MISSING.into() });
    }
    let (rows, has_next) = inner.lists.page(request);
    let rooms = rows.iter().map(|room| room.view(inner.counts(room.app, room.room))).collect();
    Ok(RoomPage { rooms, has_next })
}

/// Refreshes the lists every second, until `stop`.
pub(crate) async fn keep_fresh(inner: Arc<LivingInner>, stop: CancellationToken) {
    let _guard = stop.clone().drop_guard(); // without this task the lists would freeze unnoticed
    let mut ticks = tokio::time::interval(REFRESH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = inner.lists.refresh(&inner.cache, &inner.store, &inner.metrics).await {
            inner.metrics.refreshes_failed.inc();
            warn!(error = %chain(&error), "list not refreshed, the old one stays");
        }
    }
}
