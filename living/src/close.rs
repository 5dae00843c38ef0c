//! Closing a room: once, by its anchor, and heard by every gateway before the
//! caller hears of it.

use std::time::Duration;

use futures_util::future::join_all;
use qiyu_nats::{
    log::{AppendError, Condition},
    service::Refusal,
};
use qiyu_schema::{
    AppId, RoomId, UserId,
    command::{CloseAbandoned, CloseRoom, EndRoom},
    event::{Event, Record},
    subject::{self, RoomKind},
    ticket::fresh_nonce,
};
use tracing::{info, warn};

use crate::{
    project::{Closing, ProjectError, Rooms},
    standing::Standing,
};

/// How long the closing may take to be stored.
const APPEND_DEADLINE: Duration = Duration::from_secs(5);
/// How long a gateway may take to hear that a room has ended. One that is slower
/// learns it from the log's fold, like one that is not there.
const TELL_PATIENCE: Duration = Duration::from_millis(300);

/// Why a room did not close.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloseError {
    /// Not theirs, unknown, or closed already: the asker is not told which.
    #[error("room {room} is not the asker's to close")]
    NotTheirs { room: RoomId },
    #[error(transparent)]
    Unknown(ProjectError),
    #[error("append the closing of room {room}")]
    Append { room: RoomId, source: AppendError },
}

impl CloseError {
    /// What the asker hears.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::NotTheirs { .. } => {
                Refusal { code: 501, message: "关播异常，请稍后再试".into() }
            }
            Self::Unknown(_) | Self::Append { .. } => {
                Refusal { code: 500, message: "系统异常".into() }
            }
        }
    }
}

/// Closes a room. Returns once no gateway takes a message to it any more.
pub(crate) async fn close(rooms: &Rooms, asked: CloseRoom) -> Result<(), CloseError> {
    let CloseRoom { app, room, by } = asked;
    match rooms.standing(app, room).await.map_err(CloseError::Unknown)? {
        Standing::Open(open) if open.anchor == by => {}
        _ => return Err(CloseError::NotTheirs { room }),
    }
    end(rooms, app, room, Some(by)).await
}

/// Closes a room whose anchor has been gone for too long. Closed already is as good.
pub(crate) async fn close_abandoned(
    rooms: &Rooms,
    asked: CloseAbandoned,
) -> Result<(), CloseError> {
    let CloseAbandoned { app, room } = asked;
    match rooms.standing(app, room).await.map_err(CloseError::Unknown)? {
        Standing::Open(_) => {}
        Standing::Closed | Standing::Unheard => return Ok(()),
    }
    match end(rooms, app, room, None).await {
        Err(CloseError::NotTheirs { .. }) => Ok(()),
        ended => ended,
    }
}

async fn end(
    rooms: &Rooms,
    app: AppId,
    room: RoomId,
    by: Option<UserId>,
) -> Result<(), CloseError> {
    // As last told, at most a second ago; in the event, so that every record says the same.
    let counts = rooms.counts(app, room);
    let (peak, good_num) = (counts.peak, Some(counts.good_num));
    let record =
        Record::at(qiyu_nats::now_ms(), Event::RoomClosed { app, room, by, peak, good_num });
    let subject = subject::room(app, room, RoomKind::Closed);
    // A key of this call alone: with a shared one every parallel closer would
    // be told that its closing is stored, as a repeat.
    let key = format!("closed:{app}.{room}:{:032x}", fresh_nonce());
    let stored = rooms.bus.append(subject, &record, &key, Condition::First, APPEND_DEADLINE);
    let closed = match stored.await {
        Ok(appended) => appended.msg_id,
        Err(AppendError::Taken { .. }) => return Err(CloseError::NotTheirs { room }),
        Err(source) => return Err(CloseError::Append { room, source }),
    };
    let closed_at_ms = record.at_ms;
    let closing = Closing { app, room, closed, closed_at_ms, peak, good_num };
    if let Err(error) = rooms.closed(closing).await {
        // It is closed whatever fails here, and the replay finishes the work.
        warn!(%room, error = &error as &dyn std::error::Error, "closing not projected at once");
    }
    tell_gateways(rooms, EndRoom { app, room, msg_id: closed }).await;
    rooms.metrics.closed.inc();
    info!(%app, %room, ?by, msg_id = %closed, "room closed");
    Ok(())
}

/// All at once: the slowest gateway, not their number, is what the caller waits for.
async fn tell_gateways(rooms: &Rooms, end: EndRoom) {
    let tell = rooms.gateways.live().into_iter().map(|gateway| {
        let (rooms, end) = (&rooms, &end);
        async move {
            let group = subject::gateway_commands(&gateway.incarnation);
            if let Err(error) = rooms.bus.ask_within(&group, end, TELL_PATIENCE).await {
                let error = &error as &dyn std::error::Error;
                warn!(gateway = %gateway.incarnation, room = %end.room, error, "gateway not told");
            }
        }
    });
    join_all(tell).await;
}
