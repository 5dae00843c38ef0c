//! Who is here: connections that have logged in, until they are gone.
//!
//! One that enters a room is there before its join is in the log, so that
//! nothing it is to hear passes it by.

use std::sync::Arc;

use qiyu_schema::{ConnId, MsgId};

use super::{DeliveryTask, direct::DirectLine, members::Member};
use crate::delivery::connection::Connection;

/// Before every message.
const NOTHING_HEARD: MsgId = MsgId::at(0);

impl DeliveryTask {
    /// A connection has logged in.
    pub(super) fn enter(&mut self, connection: Arc<Connection>) {
        let id = connection.id;
        if let Some(room) = connection.room() {
            let room = self.rooms.entry((connection.identity.app, room)).or_default();
            room.members.insert(id, Member::entering(&connection));
        }
        self.direct.insert(id, DirectLine::default());
        self.connections.insert(id, connection);
    }

    /// A connection is gone, and its socket with it. Returns the last message of its
    /// room that was dealt with while it was there: of what the log has between that
    /// and its leaving, it got nothing.
    pub(super) fn leave(&mut self, id: ConnId) -> Option<MsgId> {
        let connection = self.connections.remove(&id)?;
        connection.abandon();
        if let Some(line) = self.direct.remove(&id) {
            line.leave();
        }
        let key = (connection.identity.app, connection.room()?);
        let room = self.rooms.get_mut(&key)?;
        let member = room.members.remove(&id);
        let heard = member.as_ref().and_then(|member| match member.joined {
            Some(_) => room.last,
            None => Some(NOTHING_HEARD),
        });
        if let Some(member) = member {
            member.forget();
        }
        self.tidy(key);
        heard
    }
}
