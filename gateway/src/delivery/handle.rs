//! The delivery task as the rest of the gateway reaches it.

use std::{sync::Arc, time::Duration};

use qiyu_schema::{AppId, ConnId, MsgId, RoomId, event::MemberChange};
use tokio::sync::{mpsc, oneshot};

use super::{
    connection::Connection,
    input::{AckBatch, Input, MissedMessage},
};

/// Requests that may wait for the delivery task. Beyond it the sender waits.
/// The delivery task itself waits for no socket, so this cannot be a deadlock.
const REQUESTS_MAX: usize = 4096;

/// A request to the delivery task.
pub(super) enum Request {
    Enter(Arc<Connection>),
    Leave {
        connection: ConnId,
        last_seen: oneshot::Sender<Option<MsgId>>,
    },
    ReassignAll {
        done: oneshot::Sender<()>,
    },
    Apply(Input),
    /// Applies an input, then reports it.
    ApplyAndReport {
        input: Input,
        done: oneshot::Sender<()>,
    },
}

/// Sends requests to the delivery task. They are handled in the order of sending:
/// the acknowledgements of a connection come before its leave.
#[derive(Clone)]
pub(crate) struct DeliveryHandle(mpsc::Sender<Request>);

/// The requests of a delivery task that is yet to start.
pub(crate) struct DeliveryRequests(pub(super) mpsc::Receiver<Request>);

/// The delivery task has ended, and the gateway's incarnation with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the delivery task has ended")]
pub(crate) struct DeliveryEnded;

impl DeliveryHandle {
    pub(crate) fn new() -> (Self, DeliveryRequests) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        (Self(requests), DeliveryRequests(receiver))
    }

    /// Announces a connection before its join is appended: from here on the
    /// messages of its room are held for it.
    pub(crate) async fn enter(&self, connection: &Arc<Connection>) -> Result<(), DeliveryEnded> {
        self.send(Request::Enter(Arc::clone(connection))).await
    }

    /// Ends the delivery to a connection. Returns the last message of its room
    /// that was delivered while it was a member, if that is known within `timeout`.
    pub(crate) async fn leave(&self, connection: ConnId, timeout: Duration) -> Option<MsgId> {
        let (last_seen, answer) = oneshot::channel();
        // Without a timeout: a connection that is never removed would stay for ever.
        self.send(Request::Leave { connection, last_seen }).await.ok()?;
        tokio::time::timeout(timeout, answer).await.ok()?.ok()?
    }

    /// Announces the missed messages that were queued behind a welcome.
    pub(crate) async fn resume(
        &self,
        connection: ConnId,
        room: RoomId,
        missed: Vec<MissedMessage>,
    ) {
        self.apply(Input::Resumed { connection, room, missed }).await;
    }

    /// Passes on the acknowledgements of one read of a socket, and empties `acks`.
    /// Waits while the delivery task is behind, which slows that socket down.
    pub(crate) async fn acknowledge(&self, connection: ConnId, acks: &mut Vec<MsgId>) {
        if let Some(acks) = AckBatch::take_from(acks) {
            self.apply(Input::Acknowledged { connection, acks }).await;
        }
    }

    /// Announces joins and leaves that the log has at `position`.
    pub(crate) async fn change_members(
        &self,
        app: AppId,
        room: RoomId,
        position: MsgId,
        changes: Vec<MemberChange>,
    ) {
        let room = (app, room);
        self.apply(Input::MembersChanged { room, position, changes }).await;
    }

    /// Stops taking messages for a room that is about to be closed.
    pub(crate) async fn end_room(&self, app: AppId, room: RoomId) -> Result<(), DeliveryEnded> {
        let (done, ended) = oneshot::channel();
        let input = Input::RoomEnding { room: (app, room) };
        self.send(Request::ApplyAndReport { input, done }).await?;
        ended.await.map_err(|_| DeliveryEnded)
    }

    /// Reassigns everything that closed connections left unacknowledged. Returns
    /// when the log was told.
    pub(crate) async fn reassign_unacked(&self) {
        let (done, reassigned) = oneshot::channel();
        if self.send(Request::ReassignAll { done }).await.is_ok() {
            reassigned.await.ok(); // fails only if the delivery task has ended
        }
    }

    /// Returns whether the delivery task has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Sends an input of the core. Without a delivery task it has no effect.
    pub(super) async fn apply(&self, input: Input) {
        self.send(Request::Apply(input)).await.ok();
    }

    /// Sends an input of the core. `done` fires when it was applied.
    pub(super) async fn apply_and_report(&self, input: Input, done: oneshot::Sender<()>) {
        self.send(Request::ApplyAndReport { input, done }).await.ok();
    }

    async fn send(&self, request: Request) -> Result<(), DeliveryEnded> {
        self.0.send(request).await.map_err(|_| DeliveryEnded)
    }
}
