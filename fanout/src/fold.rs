//! The rules: from the events of one partition to the effects that follow from them.
//!
//! Pure, and a function of the log's prefix alone: every owner that folds the
//! same events knows the same members and computes the same envelopes. That is
//! why an owner may die at any moment, and why a room can be replayed.
//!
//! This file holds the state that several rules share, and `apply`, which passes
//! each event to its rule. Each file of `fold/` holds one rule and the state that
//! only this rule uses: begin with `rooms` and `members`.

mod gateways;
mod measures;
mod members;
mod names;
mod owed;
mod queries;
mod rooms;
mod survey;
mod users;

#[cfg(test)]
mod partition;
#[cfg(test)]
mod snapshot_bytes;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use qiyu_schema::{
    AppId, ConnId, GatewayId, Incarnation, MsgId, Namespace, RoomId, UserId,
    envelope::Envelope,
    event::{Event, Record},
    sanction::{Sanction, SanctionEntry},
};
use serde::{Deserialize, Serialize};

pub use self::survey::{NoThing, Thing};
use self::{
    gateways::Lives,
    names::Sent,
    owed::{Departed, Owed},
    rooms::{Closed, Said},
    users::User,
};

/// An action that applying an event requires of the owner. The order matters.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Enqueue an envelope for a gateway.
    Deliver { to: Incarnation, envelope: Envelope },
    /// Send a user's pending direct messages to a connection that has just logged
    /// in: their contents lie in the log or the inbox.
    DeliverWaiting {
        to: Incarnation,
        app: AppId,
        user: UserId,
        connection: ConnId,
        /// The pending messages, oldest first.
        msg_ids: Vec<MsgId>,
    },
    /// Send a room message again to connections that came back for it: its
    /// content lies in the log.
    Repeat {
        to: Incarnation,
        app: AppId,
        room: RoomId,
        msg_id: MsgId,
        /// Copies sent before.
        sends: u32,
        /// Which connections, if they are not the sender's.
        connections: Vec<ConnId>,
    },
    /// Copy a direct message to the inbox, which outlives the log: its user is offline.
    KeepForLater { app: AppId, user: UserId, biz_code: i32, data: String },
    /// Copy direct messages to the inbox that were sent to connections which are
    /// all closed now; their contents lie in the log.
    KeepUnread { app: AppId, user: UserId, msg_ids: Vec<MsgId> },
    /// The user has no pending messages any more: the inbox can be purged.
    NothingWaits { app: AppId, user: UserId },
    /// The user's first session began.
    CameOnline { app: AppId, user: UserId },
    /// The user's last session ended.
    WentOffline { app: AppId, user: UserId },
}

/// The state that follows from the events of one partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    rooms: HashMap<(AppId, RoomId), Room>,
    users: HashMap<(AppId, UserId), User>,
    gateways: HashMap<GatewayId, Lives>,
    /// The client message ids of each sender, by which duplicates are found.
    sent: HashMap<(AppId, Namespace), VecDeque<Sent>>,
    /// Sanctions against users in the whole app.
    #[serde(default)]
    measures: HashMap<(AppId, UserId), SanctionEntry>,
    /// Rooms whose counts may have changed; not part of a snapshot.
    #[serde(skip)]
    stirred: HashSet<(AppId, RoomId)>,
}

/// The state of a room.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Room {
    anchor: Option<UserId>,
    closed: Option<Closed>,
    gateways: BTreeMap<Incarnation, Members>,
    /// The number of connections each user has in the room, over all gateways.
    inside: HashMap<UserId, u32>,
    good_num: u64,
    /// The largest number of users that were in the room at once.
    #[serde(default)]
    peak: u64,
    /// Members of gateways that died a short while ago.
    departed: Vec<Departed>,
    /// Unacknowledged messages, kept a minute for users that may return.
    owed: HashMap<UserId, Vec<Owed>>,
    /// Since when the anchor is absent, if it was in the room before.
    #[serde(default)]
    anchor_gone_ms: Option<u64>,
    /// Sanctions against users in this room.
    #[serde(default)]
    measures: HashMap<UserId, SanctionEntry>,
}

/// One gateway's connections in one room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Members {
    /// The last message sent to it, or the join that brought it in.
    prev: MsgId,
    connections: HashMap<ConnId, Member>,
}

/// One connection in one room.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Member {
    user: UserId,
    joined: MsgId,
    /// It requested the missed messages itself, and so needs no retry of them.
    resumed: bool,
}

impl Fold {
    /// Applies the event stored as `msg_id`, and returns the effects of it.
    ///
    /// Returns `None` for a kind this build does not know: the event is set
    /// aside and the partition goes on.
    pub fn apply(&mut self, msg_id: MsgId, record: Record) -> Option<Vec<Effect>> {
        let at_ms = record.at_ms;
        let effects = match record.event {
            Event::RoomOpened { app, room, anchor, .. } => {
                self.open(app, room, anchor);
                Vec::new()
            }
            Event::RoomClosed { app, room, .. } => self.close(app, room, msg_id, at_ms),
            Event::RoomMessageSent { app, ref sender, .. }
            | Event::DirectMessageSent { app, ref sender, .. }
                if self.is_repeat(app, sender, msg_id, at_ms) =>
            {
                Vec::new() // the first copy was delivered
            }
            Event::RoomMessageSent { app, room, sender, biz_code, data } => {
                self.say(app, room, msg_id, &Said { from: sender.user, biz_code, data, at_ms })
            }
            Event::DirectMessageSent { app, to, biz_code, data, .. } => {
                self.write_to(app, to, msg_id, at_ms, biz_code, data)
            }
            Event::MembersChanged { app, room, gateway, changes } => {
                let Some(mut effects) = self.meet(&gateway, at_ms) else { return Some(Vec::new()) };
                effects.extend(self.move_members(app, room, &gateway, msg_id, at_ms, &changes));
                effects
            }
            Event::SessionsChanged { app, gateway, changes } => {
                let Some(mut effects) = self.meet(&gateway, at_ms) else { return Some(Vec::new()) };
                for change in changes {
                    effects.extend(self.move_session(app, &gateway, at_ms, change));
                }
                effects
            }
            Event::RoomLiked { app, room, count, .. } => {
                self.like(app, room, count);
                Vec::new()
            }
            Event::BusinessSent { .. } => Vec::new(), // an integrator's consumer acts upon it
            Event::ContentRefused { .. } => Vec::new(), // no client receives it
            Event::SanctionImposed { app, room, user, sanction, until_ms, reason, by } => {
                let taken = Sanction { msg_id, at_ms, until_ms, reason, by };
                self.measures_of(app, room, user).map(|entry| entry.impose(sanction, taken));
                Vec::new() // gateways enforce it
            }
            Event::SanctionLifted { app, room, user, sanction, .. } => {
                self.measures_of(app, room, user).map(|entry| entry.lift(sanction, msg_id));
                Vec::new()
            }
            Event::Unacknowledged { app, room, gateway, messages, keep } => {
                self.repeat(app, room, &gateway, at_ms, messages, keep)
            }
            Event::GatewayGone { gateway } => self.bury(&gateway, at_ms),
            Event::Unknown => return None,
        };
        Some(effects)
    }

    /// Removes state that can have no effect any more at `at_ms`.
    pub fn forget(&mut self, at_ms: u64) {
        self.forget_names(at_ms);
        self.forget_waiting(at_ms);
        self.forget_measures(at_ms);
        for room in self.rooms.values_mut() {
            room.forget_owed(at_ms);
        }
        self.rooms.retain(|_, room| !room.means_nothing());
    }
}

#[cfg(test)]
mod tests {
    use super::{
        partition::{Partition, gateway, joined, left, online},
        *,
    };

    #[test]
    fn a_fold_read_back_from_its_bytes_is_the_same() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        log.moves(&a, &[joined(1, 1), joined(2, 2)]);
        log.session(&a, online(1, 1));
        log.writes(1);
        log.writes(5);
        log.fold.take_stirred();
        let bytes = qiyu_schema::codec::encode(&log.fold).unwrap();
        assert_eq!(qiyu_schema::codec::decode::<Fold>(&bytes).unwrap(), log.fold);
    }

    #[test]
    fn a_survey_does_not_depend_on_how_much_was_forgotten() {
        let mut log = Partition::default();
        let (a, b) = (gateway("a", 1), gateway("b", 1));
        let survey = |fold: &Fold, at_ms| fold.survey(at_ms, None, usize::MAX).0;
        log.moves(&a, &[joined(1, 1), joined(2, 2)]);
        log.session(&a, online(1, 1));
        log.writes(5);
        log.folds(Event::GatewayGone { gateway: a });
        log.moves(&b, &[joined(3, 3)]);
        let (whole, later) = (log.fold.clone(), log.seq + owed::OWED_KEPT_MS);
        assert_ne!(survey(&whole, 0), survey(&whole, later), "what was owed is");
        log.fold.forget(later);
        assert_eq!(survey(&log.fold, later), survey(&whole, later));
        let (first, more) = whole.survey(later, None, 1);
        let after = first.keys().next().copied();
        assert!(more && whole.survey(later, after, 9).0.len() + 1 == survey(&whole, later).len());
        log.moves(&b, &[left(3, 3), joined(3, 3)]);
        assert_ne!(survey(&log.fold, later), survey(&whole, later), "it joined later");
    }

    #[test]
    fn an_event_of_an_unknown_kind_is_not_applied() {
        let record = Record { v: 9, at_ms: 0, event: Event::Unknown };
        assert_eq!(Fold::default().apply(MsgId::at(1), record), None);
    }
}
