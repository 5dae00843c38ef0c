//! Looking one open room up.

use qiyu_nats::service::Refusal;
use qiyu_schema::{
    RoomId,
    command::{FindRoom, RoomView},
};
use tracing::{debug, warn};

use crate::{project::Rooms, room::Room, standing::Standing};

/// Answers with the room as its row has it, and who watches.
pub(crate) async fn find(rooms: &Rooms, asked: FindRoom) -> Result<Option<RoomView>, Refusal> {
    let FindRoom { app, room } = asked;
    let found = rooms.looks.share((app, room), look(rooms, asked)).await?;
    Ok(found.map(|found| found.view(rooms.counts(app, room))))
}

async fn look(rooms: &Rooms, asked: FindRoom) -> Result<Option<Room>, Refusal> {
    let FindRoom { app, room } = asked;
    let read = rooms.store.find(room);
    let error = match rooms.cache.find(room, &rooms.metrics, read).await {
        Ok(found) => return Ok(found.filter(|found| found.app == app)),
        Err(error) => error,
    };
    // Once a second the list complains aloud of the same.
    debug!(%room, error = &error as &dyn std::error::Error, "room looked up without the database");
    let standing = rooms.standing(app, room).await.map_err(|error| refused(room, &error))?;
    rooms.metrics.found_without_database.inc();
    match standing {
        Standing::Open(found) => Ok(Some(found)),
        Standing::Closed | Standing::Unheard => Ok(None),
    }
}

fn refused(room: RoomId, error: &(dyn std::error::Error + 'static)) -> Refusal {
    warn!(%room, error, "room not looked up");
    Refusal { code: 500, message: "系统异常".into() }
}
