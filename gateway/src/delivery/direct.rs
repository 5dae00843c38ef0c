//! 1:1 messages: each connection has a line of its own, in the order of the log.
//!
//! As in rooms, every envelope names the message before it on this connection,
//! and what is missing is read from the log.

use std::{collections::BTreeMap, sync::Arc};

use qiyu_nats::{chain, log::LogEntry};
use qiyu_schema::{ConnId, MsgId, envelope::DirectTarget, event::Event, subject};
use tracing::warn;

use super::{
    DeliveryTask, GAP_PATIENCE, Order,
    gaps::{GAP_RETRY, read_gap},
    retry::From,
};
use crate::{
    delivery::in_flight::{Entry, Sample, Settled},
    frame::EncodedMessage,
};

/// 1:1 messages of one connection.
#[derive(Default)]
pub(super) struct DirectLine {
    /// The last one sent to it.
    last: Option<MsgId>,
    waiting: BTreeMap<MsgId, Waiting>,
    /// Somebody is about to look whether it still misses something.
    looking: bool,
}

/// A message that has to wait for the one before it.
struct Waiting {
    prev: Option<MsgId>,
    entry: Arc<Entry>,
}

impl DirectLine {
    /// Its connection is gone: what waits here waits for the next login.
    pub(super) fn leave(self) {
        for Waiting { entry, .. } in self.waiting.into_values() {
            entry.settle(Settled::Left);
        }
    }
}

impl DeliveryTask {
    /// An envelope for connections of one user: on each it waits its turn.
    pub(super) fn arrive_direct(&mut self, entry: &Arc<Entry>, to: &[DirectTarget]) {
        for DirectTarget { connection: id, prev } in to {
            let Some(connection) = self.connections.get(id) else { continue };
            let Some(line) = self.direct.get_mut(id) else { continue };
            if line.last.is_some_and(|last| entry.msg_id <= last) {
                continue; // it has been read from the log meanwhile
            }
            entry.expect(connection);
            let waiting = Waiting { prev: *prev, entry: Arc::clone(entry) };
            line.waiting.insert(entry.msg_id, waiting);
            self.advance_direct(*id);
        }
    }

    fn advance_direct(&mut self, id: ConnId) {
        let (Some(connection), Some(line)) = (self.connections.get(&id), self.direct.get_mut(&id))
        else {
            return;
        };
        while let Some(first) = line.waiting.first_entry() {
            if line.last < first.get().prev {
                let arm = !std::mem::replace(&mut line.looking, true);
                if arm {
                    self.later(GAP_PATIENCE, Order::DirectGap(id));
                }
                return;
            }
            let (msg_id, Waiting { entry, .. }) = first.remove_entry();
            if line.last.is_some_and(|last| msg_id <= last) {
                entry.settle(Settled::NotForIt);
                continue;
            }
            line.last = Some(msg_id);
            connection.send(&entry);
        }
    }
    /// As for a room: if something is still missing, the log is read.
    pub(super) fn look_for_direct_gap(&mut self, id: ConnId) {
        let (Some(connection), Some(line)) = (self.connections.get(&id), self.direct.get_mut(&id))
        else {
            return;
        };
        line.looking = false;
        let Some((_, &Waiting { prev: Some(until), .. })) = line.waiting.first_key_value() else {
            return;
        };
        if Some(until) <= line.last {
            return;
        }
        line.looking = true;
        // With nothing before it, only the one that is named is known to be for
        // this connection; older ones still wait and come with the next login.
        let after = line.last.map_or(until.seq() - 1, MsgId::seq);
        let subject = subject::user(
            connection.identity.app,
            connection.identity.user,
            subject::UserKind::Msg,
        );
        let (bus, orders) = (self.with.bus.clone(), self.with.orders.clone());
        self.with.tasks.spawn(async move {
            let found = read_gap(&bus, vec![subject], after, until).await;
            let order = match found {
                Ok((found, until)) => Order::DirectFilled { connection: id, until, found },
                Err(error) => {
                    warn!(connection = %id, error = %chain(&error), "lost 1:1 messages not read yet, trying again");
                    tokio::time::sleep(GAP_RETRY).await;
                    Order::DirectGap(id)
                }
            };
            orders.send(order).await.ok(); // the life is over
        });
    }

    /// What was missing up to `until` is sent, as far as the log has it.
    pub(super) fn fill_direct(&mut self, id: ConnId, until: MsgId, found: Vec<LogEntry>) {
        for entry in found {
            let msg_id = entry.msg_id();
            let Some(connection) = self.connections.get(&id).cloned() else { return };
            let missed = self.direct.get(&id).is_some_and(|line| line.last < Some(msg_id));
            if !missed {
                continue;
            }
            if let Ok(record) = entry.record()
                && let Event::DirectMessageSent { app, biz_code, data, .. } = record.event
            {
                self.with.desk.metrics.gap_fills.inc();
                let message = EncodedMessage::new(app, biz_code, &data, Some(msg_id));
                let sample = Some(Sample::of(record.at_ms, msg_id, 1));
                let entry = self.open(app, None, msg_id, message, From::Log, sample);
                entry.send_to([&connection]);
            }
        }
        if let Some(line) = self.direct.get_mut(&id) {
            line.looking = false;
            line.last = line.last.max(Some(until));
        }
        self.advance_direct(id);
    }
}
