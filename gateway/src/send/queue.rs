//! The business frames of one connection, handled one at a time, so that a
//! sender's order is the order of the log.

use std::{collections::VecDeque, net::IpAddr, pin::Pin, sync::Arc};

use qiyu_runtime::limiter::TokenBucket;
use qiyu_schema::{ClientMsgId, MsgId};
use tokio::time::Instant;

use super::{
    checks::check_frame_rate,
    ingest::{ReceivedFrame, handle_send},
    request::{self, SendRequest},
};
use crate::{
    close::CloseReason,
    delivery::connection::Connection,
    frame::{RefusalCode, Reply, code},
    instance::GatewayInstance,
};

/// Frames that wait for the one being stored, at most. Beyond it the socket is
/// not read, so the sender is slowed down and nothing is lost.
const PENDING_FRAMES_MAX: usize = 64;

/// The business frames of a connection that have no answer yet, and its logout.
pub(crate) struct SendQueue {
    instance: Arc<GatewayInstance>,
    connection: Arc<Connection>,
    address: IpAddr,
    bucket: TokenBucket,
    pending: VecDeque<PendingFrame>,
    current: Option<CurrentFrame>,
    /// The number of requests handled, which numbers them in the log.
    handled: u64,
}

/// A frame that waits for its turn, so that answers keep the frames' order.
enum PendingFrame {
    Request { client_msg_id: Option<ClientMsgId>, request: SendRequest, received_at: Instant },
    Refusal { client_msg_id: Option<ClientMsgId>, code: RefusalCode },
    Logout,
}

/// The work on the oldest frame.
type CurrentFrame = Pin<Box<dyn Future<Output = HandledFrame> + Send>>;

enum HandledFrame {
    Request(SendResult),
    Logout,
}

struct SendResult {
    client_msg_id: Option<ClientMsgId>,
    /// `Ok(None)`: accepted, and not stored by itself.
    outcome: Result<Option<MsgId>, RefusalCode>,
}

impl SendQueue {
    pub(crate) fn new(
        instance: Arc<GatewayInstance>,
        connection: Arc<Connection>,
        address: IpAddr,
    ) -> Self {
        let bucket = instance.rate_limits.connection_bucket();
        let (pending, current, handled) = (VecDeque::new(), None, 0);
        Self { instance, connection, address, bucket, pending, current, handled }
    }

    /// Returns whether the socket must not be read at the moment.
    pub(crate) fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_FRAMES_MAX
    }

    /// Adds a business frame. `None`: its body is not text.
    pub(crate) fn push(&mut self, body: Option<String>) {
        let received_at = Instant::now();
        let identity = &self.connection.identity;
        let (limits, sender) = (&self.instance.rate_limits, (identity.app, identity.user));
        let rate = check_frame_rate(limits, &mut self.bucket, sender, self.address);
        let (client_msg_id, parsed) = match &body {
            Some(text) => request::parse(text),
            None => (None, Err(RefusalCode::Unreadable)),
        };
        self.pending.push_back(match rate.and(parsed) {
            Ok(request) => PendingFrame::Request { client_msg_id, request, received_at },
            Err(code) => PendingFrame::Refusal { client_msg_id, code },
        });
        self.start_next();
    }

    /// Adds the logout. It takes effect after the answers to earlier frames.
    pub(crate) fn push_logout(&mut self) {
        self.pending.push_back(PendingFrame::Logout);
        self.start_next();
    }

    /// Starts the work on the oldest frame, unless one is worked on. Refusals in
    /// front of it are answered.
    pub(crate) fn start_next(&mut self) {
        while self.current.is_none() {
            let Some(frame) = self.pending.pop_front() else { return };
            let (instance, connection) = (self.instance.clone(), self.connection.clone());
            match frame {
                PendingFrame::Logout => {
                    self.current = Some(Box::pin(async move {
                        instance.end_session(&connection).await;
                        HandledFrame::Logout
                    }));
                }
                PendingFrame::Refusal { client_msg_id, code } => {
                    self.answer(SendResult { client_msg_id, outcome: Err(code) });
                }
                PendingFrame::Request { client_msg_id, request, received_at } => {
                    self.handled += 1;
                    let number = self.handled;
                    self.current = Some(Box::pin(async move {
                        let id = client_msg_id.clone();
                        let frame = ReceivedFrame { client_msg_id, request, received_at, number };
                        let outcome = handle_send(&instance, &connection, frame).await;
                        HandledFrame::Request(SendResult { client_msg_id: id, outcome })
                    }));
                }
            }
        }
    }

    /// Finishes the current frame and answers it. Waits for ever if there is none.
    pub(crate) async fn finish_current(&mut self) {
        let handled = match &mut self.current {
            Some(current) => current.await,
            None => std::future::pending().await,
        };
        self.current = None;
        match handled {
            HandledFrame::Request(result) => self.answer(result),
            HandledFrame::Logout => {
                self.pending.clear(); // frames after a logout have no effect
                self.connection.close(CloseReason::Logout);
            }
        }
    }

    fn answer(&self, SendResult { client_msg_id, outcome }: SendResult) {
        match &outcome {
            Ok(_) => drop(self.instance.metrics.accepted.inc()),
            Err(code) => self.instance.metrics.count_refusal(*code),
        };
        let outcome = match outcome {
            Ok(None) => return,
            // A success is confirmed only if the sender can recognise the message.
            Ok(Some(_)) if client_msg_id.is_none() => return,
            Ok(Some(msg_id)) => Ok(msg_id),
            Err(code) => Err(code),
        };
        let identity = &self.connection.identity;
        let reply = Reply::receipt(identity.app, identity.user, client_msg_id, outcome);
        self.connection.reply(code::RECEIPT, reply);
    }
}
