//! Rooms, as far as this gateway has to do with them: what comes for one is sent
//! to the members it is for, each message once and in the order of the log.
//!
//! Every envelope names the one before it. A room goes no further than to where
//! something is missing; what that was is read from the log (`gaps`).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use qiyu_nats::notice::Notice;
use qiyu_schema::{ConnId, MsgId, UserId};
use tracing::debug;

use super::{
    DeliveryTask, GAP_PATIENCE, Order, RoomKey,
    members::Member,
    retry::{From, OWN_CLOCK_MAX, Place},
};
use crate::{
    delivery::in_flight::{Entry, Sample},
    frame::{EncodedMessage, biz},
};

/// One room, as far as this gateway has to do with it.
#[derive(Default)]
pub(super) struct Room {
    /// Everything up to here is dealt with. `None`: no join of ours is in the log yet.
    pub(super) last: Option<MsgId>,
    pub(super) members: HashMap<ConnId, Member>,
    /// The members as the log has them: when the last one leaves, fan-out forgets us.
    pub(super) confirmed: HashSet<ConnId>,
    pub(super) waiting: BTreeMap<MsgId, Waiting>,
    /// Somebody is about to look whether it still misses something.
    pub(super) looking: bool,
    pub(super) closed: bool,
}

/// An envelope that has to wait for what comes before it.
pub(super) struct Waiting {
    pub(super) prev: MsgId,
    pub(super) place: Place,
    pub(super) what: What,
}

/// What an envelope brings to a room.
pub(super) enum What {
    Said { from: Option<UserId>, biz_code: i32, data: String, at_ms: Option<u64> },
    Closed,
}

impl DeliveryTask {
    /// An envelope for a room: it waits its turn.
    pub(super) fn arrive(&mut self, key: RoomKey, msg_id: MsgId, envelope: Waiting) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return self.note_unheard(key, msg_id, envelope);
        };
        if room.last.is_some_and(|last| msg_id <= last) {
            // Dealt with before, or while nobody of ours was there.
            return self.note_unheard(key, msg_id, envelope);
        }
        room.waiting.insert(msg_id, envelope); // a redelivery brings a fresher acknowledgement
        self.advance(key);
    }

    /// It has nobody to bring anything. That is an outcome, too: without it the
    /// record could not tell such an envelope from one that was lost.
    fn note_unheard(&mut self, key: RoomKey, msg_id: MsgId, envelope: Waiting) {
        let Waiting { place, what, .. } = envelope;
        let (app, room_id) = key;
        let message = what.message(key, msg_id);
        self.open(app, Some(room_id), msg_id, message, From::Queue(place), None).seal();
    }

    /// Deals with what waits, as far as nothing is missing before it.
    pub(super) fn advance(&mut self, key: RoomKey) {
        while let Some(room) = self.rooms.get_mut(&key)
            && let Some(last) = room.last
            && let Some(first) = room.waiting.first_entry()
        {
            if last < first.get().prev {
                let arm = !std::mem::replace(&mut room.looking, true);
                if arm {
                    self.later(GAP_PATIENCE, Order::RoomGap(key));
                }
                return;
            }
            let (msg_id, envelope) = first.remove_entry();
            if msg_id <= last {
                // Dealt with by way of the log, or while nobody of ours was there.
                self.note_unheard(key, msg_id, envelope);
                continue;
            }
            let Waiting { place, what, .. } = envelope;
            self.expand(key, msg_id, what, From::Queue(place));
        }
    }

    /// Sends one message to the members it is for.
    pub(super) fn expand(&mut self, key: RoomKey, msg_id: MsgId, what: What, from: From) {
        let (app, room_id) = key;
        let message = Arc::new(what.message(key, msg_id));
        let audience = self.rooms.get(&key).map_or(0, |room| room.members.len());
        let sample = match &what {
            What::Said { at_ms: Some(at_ms), .. } => Some(Sample::of(*at_ms, msg_id, audience)),
            _ => None,
        };
        let entry = self.open(app, Some(room_id), msg_id, Arc::clone(&message), from, sample);
        let mut lagging = Vec::new();
        let may_lag = self.own_clock.len() < OWN_CLOCK_MAX;
        let Some(room) = self.rooms.get_mut(&key) else { return entry.seal() };
        room.last = Some(msg_id);
        debug!(%msg_id, room = %room_id, members = room.members.len(), "message put on queues");
        match what {
            What::Said { from, .. } => {
                for member in
                    room.members.values_mut().filter(|m| Some(m.connection.identity.user) != from)
                {
                    if may_lag && member.hears(msg_id) && member.connection.is_lagging() {
                        lagging.push(Arc::clone(&member.connection));
                    } else {
                        member.hear(&entry);
                    }
                }
            }
            What::Closed => {
                room.end(&entry);
                self.tidy(key);
            }
        }
        entry.leave_apart(&lagging);
        entry.seal();
        if !lagging.is_empty() {
            // The same message, on our own clock: the envelope is not held up for them.
            let entry = self.open(app, Some(room_id), msg_id, message, From::Lagging, None);
            entry.send_to(&lagging);
        }
    }

    /// These joined after the room's end: they hear of it and of nothing else.
    pub(super) fn tell_latecomers(
        &mut self,
        key: RoomKey,
        msg_id: MsgId,
        place: Place,
        late: &[ConnId],
    ) {
        let message = closed_message(key, msg_id);
        let from = From::Late(place);
        let entry = self.open(key.0, Some(key.1), msg_id, message, from, None);
        for connection in late.iter().filter_map(|id| self.connections.get(id)) {
            entry.expect(connection);
            connection.end_room();
            connection.send(&entry);
            connection.detach();
            if let Some(room) = self.rooms.get_mut(&key)
                && let Some(member) = room.members.remove(&connection.id)
            {
                member.forget();
            }
        }
        entry.seal();
        self.tidy(key);
    }

    /// The room is about to be closed: nothing is taken for it any more.
    pub(super) fn end_room(&self, key: RoomKey) {
        for member in self.rooms.get(&key).into_iter().flat_map(|room| room.members.values()) {
            member.connection.end_room();
        }
    }

    /// Forgets a room that has nothing to do with this gateway any more.
    pub(super) fn tidy(&mut self, key: RoomKey) {
        let Some(room) = self.rooms.get_mut(&key) else { return };
        if !room.members.is_empty() || !(room.confirmed.is_empty() || room.closed) {
            return;
        }
        let Some(room) = self.rooms.remove(&key) else { return };
        for (msg_id, waiting) in room.waiting {
            self.note_unheard(key, msg_id, waiting);
        }
    }

    /// A notice, which may be lost: to those who are known to be there.
    pub(super) fn tell(&self, notice: &Notice) {
        let Some(room) = self.rooms.get(&(notice.app, notice.room)) else { return };
        let message =
            Arc::new(EncodedMessage::new(notice.app, notice.biz_code, &notice.data, None));
        for member in room.members.values().filter(|member| member.joined.is_some()) {
            member.connection.notice(&message);
        }
    }
}

impl Room {
    /// Everybody hears of its end and is in no room from then on. Whose join is
    /// not known yet stays until it is.
    fn end(&mut self, entry: &Arc<Entry>) {
        self.closed = true;
        for member in self.members.values_mut() {
            member.connection.end_room();
            member.hear(entry);
        }
        self.members.retain(|_, member| {
            let pending = member.joined.is_none();
            if !pending {
                member.connection.detach();
            }
            pending
        });
    }
}

impl What {
    fn message(&self, key: RoomKey, msg_id: MsgId) -> EncodedMessage {
        match self {
            Self::Said { biz_code, data, .. } => {
                EncodedMessage::new(key.0, *biz_code, data, Some(msg_id))
            }
            Self::Closed => closed_message(key, msg_id),
        }
    }
}

fn closed_message((app, room): RoomKey, msg_id: MsgId) -> EncodedMessage {
    EncodedMessage::new(app, biz::ROOM_CLOSED, &format!(r#"{{"roomId":{room}}}"#), Some(msg_id))
}
