//! The connections in this gateway's rooms, and from when on they hear.
//!
//! A connection hears exactly what comes after its join in the log. Until that
//! is known, what comes is held for it.

use std::sync::Arc;

use qiyu_schema::{MsgId, event::MemberChange};

use super::{DeliveryTask, RoomKey};
use crate::{
    delivery::connection::Connection,
    delivery::in_flight::{Entry, Settled},
};

/// A connection in a room.
pub(super) struct Member {
    pub(super) connection: Arc<Connection>,
    /// It hears what comes after. `None`: not known yet; what comes is held.
    pub(super) joined: Option<MsgId>,
    held: Vec<Arc<Entry>>,
}

impl DeliveryTask {
    /// Follows the log as fan-out does, so that both mean the same by `prev`.
    pub(super) fn moved(&mut self, key: RoomKey, position: MsgId, changes: &[MemberChange]) {
        let room = self.rooms.entry(key).or_default();
        for change in changes {
            match change {
                MemberChange::Joined { connection, .. } => {
                    if room.confirmed.is_empty() {
                        room.last = Some(position);
                    }
                    room.confirmed.insert(*connection);
                    let Some(member) = room.members.get_mut(connection) else { continue };
                    member.join(position);
                    if room.closed {
                        member.connection.detach();
                        room.members.remove(connection);
                    }
                }
                MemberChange::Left { connection, .. } => {
                    room.confirmed.remove(connection);
                    if room.confirmed.is_empty() {
                        room.last = None;
                    }
                }
                MemberChange::Unknown => {} // none of ours
            }
        }
        self.advance(key);
        self.tidy(key);
    }
}

impl Member {
    /// Its join is not in the log yet.
    pub(super) fn entering(connection: &Arc<Connection>) -> Self {
        Self { connection: Arc::clone(connection), joined: None, held: Vec::new() }
    }

    /// Whether it is known to be in the room for this message.
    pub(super) fn hears(&self, msg_id: MsgId) -> bool {
        self.joined.is_some_and(|joined| joined < msg_id)
    }

    /// From here on it hears; of what was held it gets what is newer.
    fn join(&mut self, position: MsgId) {
        self.joined = Some(position);
        for entry in std::mem::take(&mut self.held) {
            if position < entry.msg_id {
                self.connection.send(&entry);
            } else {
                entry.settle(Settled::NotForIt);
            }
        }
    }

    /// It is in the room no more: what was held for it was never sent, and never comes.
    pub(super) fn forget(self) {
        self.held.iter().for_each(|entry| entry.settle(Settled::NotForIt));
    }

    /// A message has come: it is sent, held, or not for it.
    pub(super) fn hear(&mut self, entry: &Arc<Entry>) {
        match self.joined {
            Some(joined) if joined < entry.msg_id => {
                entry.expect(&self.connection);
                self.connection.send(entry);
            }
            Some(_) => {}
            None => {
                entry.expect(&self.connection);
                self.held.push(Arc::clone(entry));
            }
        }
    }
}
