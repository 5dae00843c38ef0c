//! The commands that close a room: once, by its anchor, and known to every gateway before the
//! reply.

use std::time::Duration;

use futures_util::future::join_all;
use qiyu_nats::{
    chain,
    log::{AppendCondition, AppendError},
    service::CommandRefusal,
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
    inner::LivingInner,
    project,
    room::RoomClosing,
    status::{RoomStatus, StatusError},
    texts,
};

/// How long the `closed` event may take to be stored.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a gateway may take to confirm that a room has ended. A slower one gets the end from the
/// fold of the log, like one that is unreachable.
const GATEWAY_TIMEOUT: Duration = Duration::from_millis(300);

/// A room was not closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloseError {
    /// The room belongs to another anchor, is unknown, or is closed already. The reply does not
    /// tell which.
    #[error("room {room} cannot be closed by the caller")]
    NotClosable { room: RoomId },
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error("append the closing of room {room}")]
    Append { room: RoomId, source: AppendError },
}

impl CloseError {
    /// Returns the reply to the caller.
    pub(crate) fn refusal(&self) -> CommandRefusal {
        match self {
            Self::NotClosable { .. } => {
                CommandRefusal { code: 501, message: texts::NOT_CLOSED.into() }
            }
            Self::Status(_) | Self::Append { .. } => {
                CommandRefusal { code: 500, message: texts::SYSTEM_ERROR.into() }
            }
        }
    }
}

/// Closes a room. Returns once every live gateway has confirmed that it accepts no message
/// to it any more, or has not answered in time.
pub(crate) async fn close(inner: &LivingInner, request: CloseRoom) -> Result<(), CloseError> {
    let CloseRoom { app, room, by } = request;
    match inner.statuses.status(app, room).await? {
        RoomStatus::Open(open) if open.anchor == by => {}
        _ => return Err(CloseError::NotClosable { room }),
    }
    end(inner, app, room, Some(by)).await
}

/// Closes a room after its anchor has been absent for too long. It succeeds if the room is closed
/// already.
pub(crate) async fn close_abandoned(
    inner: &LivingInner,
    request: CloseAbandoned,
) -> Result<(), CloseError> {
    let CloseAbandoned { app, room } = request;
    match inner.statuses.status(app, room).await? {
        RoomStatus::Open(_) => {}
        RoomStatus::Closed | RoomStatus::Unknown => return Ok(()),
    }
    match end(inner, app, room, None).await {
        Err(CloseError::NotClosable { .. }) => Ok(()),
        ended => ended,
    }
}

async fn end(
    inner: &LivingInner,
    app: AppId,
    room: RoomId,
    by: Option<UserId>,
) -> Result<(), CloseError> {
    // The counts are at most a second old. They are in the event, so that every record is equal.
    let counts = inner.counts(app, room);
    let (peak, good_num) = (counts.peak, Some(counts.good_num));
    let record =
        Record::at(qiyu_nats::now_ms(), Event::RoomClosed { app, room, by, peak, good_num });
    let subject = subject::room(app, room, RoomKind::Closed);
    // A key of this call alone: with a shared one every concurrent call would get the reply that its
    // event is stored, as a duplicate.
    let key = format!("closed:{app}.{room}:{:032x}", fresh_nonce());
    let stored = inner.bus.append(subject, &record, &key, AppendCondition::First, APPEND_TIMEOUT);
    let closed = match stored.await {
        Ok(msg_id) => msg_id,
        Err(AppendError::Taken { .. }) => return Err(CloseError::NotClosable { room }),
        Err(source) => return Err(CloseError::Append { room, source }),
    };
    let closed_at_ms = record.at_ms;
    let closing = RoomClosing { app, room, closed, closed_at_ms, peak, good_num };
    if let Err(error) = project::apply_closing(inner, closing).await {
        // The room is closed all the same, and the projector completes the work.
        warn!(%room, error = %chain(&error), "closing not applied at once");
    }
    notify_gateways(inner, EndRoom { app, room, msg_id: closed }).await;
    inner.metrics.closed.inc();
    info!(%app, %room, ?by, msg_id = %closed, "room closed");
    Ok(())
}

/// Notifies all gateways at once, so the wait does not grow with their number.
async fn notify_gateways(inner: &LivingInner, end: EndRoom) {
    let notifications = inner.gateways.live().into_iter().map(|gateway| {
        let end = &end;
        async move {
            let group = subject::gateway_commands(&gateway.incarnation);
            if let Err(error) = inner.bus.request_with_timeout(&group, end, GATEWAY_TIMEOUT).await {
                warn!(gateway = %gateway.incarnation, room = %end.room, error = %chain(&error), "gateway not notified");
            }
        }
    });
    join_all(notifications).await;
}
