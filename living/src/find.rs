//! The command that looks up one open room.

use qiyu_nats::{chain, service::CommandRefusal};
use qiyu_schema::{
    RoomId,
    command::{FindRoom, RoomView},
};
use tracing::{debug, warn};

use crate::{
    inner::LivingInner,
    room::Room,
    status::{RoomStatus, StatusError},
    texts,
};

/// Returns the open room with its current counts. `None`: unknown or closed.
pub(crate) async fn find(
    inner: &LivingInner,
    request: FindRoom,
) -> Result<Option<RoomView>, CommandRefusal> {
    let FindRoom { app, room } = request;
    let found = inner.lookups.share((app, room), look_up(inner, request)).await?;
    Ok(found.map(|found| found.view(inner.counts(app, room))))
}

async fn look_up(inner: &LivingInner, request: FindRoom) -> Result<Option<Room>, CommandRefusal> {
    let FindRoom { app, room } = request;
    let read = inner.store.find(room);
    let error = match inner.cache.find(room, &inner.metrics, read).await {
        Ok(found) => return Ok(found.filter(|found| found.app == app)),
        Err(error) => error,
    };
    // The refresh of the lists warns of the same failure once a second.
    debug!(%room, error = %chain(&error), "room looked up without the database");
    let status = inner.statuses.status(app, room).await.map_err(|error| refusal(room, &error))?;
    inner.metrics.found_without_database.inc();
    match status {
        RoomStatus::Open(found) => Ok(Some(found)),
        RoomStatus::Closed | RoomStatus::Unknown => Ok(None),
    }
}

fn refusal(room: RoomId, error: &StatusError) -> CommandRefusal {
    warn!(%room, error = %chain(error), "room not looked up");
    CommandRefusal { code: 500, message: texts::SYSTEM_ERROR.into() }
}
