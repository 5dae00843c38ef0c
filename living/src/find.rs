//! Looking one open room up.

use qiyu_nats::{
    command::{FindRoom, RoomView},
    service::Refusal,
};
use tracing::warn;

use crate::project::Rooms;

/// Answers with the room as its row has it, and who watches.
pub(crate) async fn find(rooms: &Rooms, asked: FindRoom) -> Result<Option<RoomView>, Refusal> {
    let FindRoom { app, room } = asked;
    match rooms.store.find(app, room).await {
        Ok(found) => Ok(found.map(|found| found.view(rooms.counts(app, room)))),
        Err(error) => {
            warn!(%room, error = &error as &dyn std::error::Error, "room not looked up");
            Err(Refusal { code: 500, message: "系统异常".into() })
        }
    }
}
