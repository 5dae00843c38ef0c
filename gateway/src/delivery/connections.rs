//! Who is here: connections that have logged in, until they are gone.
//!
//! One that enters a room is there before its join is in the log, so that
//! nothing it is to hear passes it by.

use std::sync::Arc;

use qiyu_nats::ConnId;

use super::{DeliveryTask, direct::DirectLine, members::Member};
use crate::{connection::Connection, entry::Settled};

impl DeliveryTask {
    /// A connection has logged in.
    pub(super) fn enter(&mut self, connection: Arc<Connection>) {
        let id = connection.id;
        if let Some(room) = connection.room() {
            let room = self.rooms.entry((connection.who.app, room)).or_default();
            room.members.insert(id, Member::entering(&connection));
        }
        self.direct.insert(id, DirectLine::default());
        self.connections.insert(id, connection);
    }

    /// A connection is gone, and its socket with it.
    pub(super) fn leave(&mut self, id: ConnId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        connection.abandon();
        if let Some(line) = self.direct.remove(&id) {
            line.leave();
        }
        let Some(room) = connection.room() else { return };
        let key = (connection.who.app, room);
        let Some(room) = self.rooms.get_mut(&key) else { return };
        if let Some(member) = room.members.remove(&id) {
            member.forget(Settled::Left);
        }
        self.tidy(key);
    }
}
