//! The compared items, their names, and the values expected by the log. Values are compared
//! as text.

use std::collections::BTreeMap;

use qiyu_fanout::fold::{Fold, Thing};
use qiyu_schema::{
    AppId, MsgId, Partition, RoomId, UserId,
    event::{Event, Record},
    sanction::{Sanction, SanctionEntry},
};
use serde::Serialize;

/// A kind of state that is derived from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Projection {
    /// The log itself: it has no gaps.
    Log,
    /// Rooms in the owners' folds: members, likes, sanctions.
    Membership,
    /// Users in the owners' folds: sessions and waiting messages.
    Sessions,
    /// clientMsgIds in the owners' folds.
    Names,
    /// Sanctions of the whole app in the owners' folds.
    Bans,
    /// The newest snapshots of the folds.
    Snapshots,
    /// Bucket `presence`.
    Presence,
    /// Bucket `rooms`.
    Rooms,
    /// Bucket `anchors`.
    Anchors,
    /// Bucket `watch`.
    Counters,
    /// Bucket `measures`.
    Moderation,
    /// Copies of direct messages to offline users.
    Inbox,
    /// Table `t_living_room`.
    Table,
    /// Table `t_living_room_record`.
    Records,
    /// The conservation law.
    Conservation,
}

impl Projection {
    pub(super) const ALL: [Self; 15] = [
        Self::Log,
        Self::Membership,
        Self::Sessions,
        Self::Names,
        Self::Bans,
        Self::Snapshots,
        Self::Presence,
        Self::Rooms,
        Self::Anchors,
        Self::Counters,
        Self::Moderation,
        Self::Inbox,
        Self::Table,
        Self::Records,
        Self::Conservation,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Membership => "membership",
            Self::Sessions => "sessions",
            Self::Names => "names",
            Self::Bans => "bans",
            Self::Snapshots => "snapshots",
            Self::Presence => "presence",
            Self::Rooms => "rooms",
            Self::Anchors => "anchors",
            Self::Counters => "counters",
            Self::Moderation => "moderation",
            Self::Inbox => "inbox",
            Self::Table => "table",
            Self::Records => "records",
            Self::Conservation => "conservation",
        }
    }
}

/// One item that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ItemKey {
    /// In the fold of the partition's owner.
    Live(Partition, Thing),
    /// In the snapshot at this sequence.
    Snapshot(Partition, u64, Thing),
    Presence(AppId, UserId),
    Room(AppId, RoomId),
    /// The claim of this anchor on this room.
    Anchor(AppId, RoomId, UserId),
    Counts(AppId, RoomId),
    Measure(AppId, Option<RoomId>, UserId),
    /// A copy of this message for this user.
    Kept(AppId, UserId, MsgId),
    Row(AppId, RoomId),
    Record(AppId, RoomId),
}

impl ItemKey {
    pub(super) fn projection(&self) -> Projection {
        match self {
            Self::Live(_, Thing::Room(..)) => Projection::Membership,
            Self::Live(_, Thing::User(..)) => Projection::Sessions,
            Self::Live(_, Thing::Names(..)) => Projection::Names,
            Self::Live(_, Thing::Measures(..)) => Projection::Bans,
            Self::Snapshot(..) => Projection::Snapshots,
            Self::Presence(..) => Projection::Presence,
            Self::Room(..) => Projection::Rooms,
            Self::Anchor(..) => Projection::Anchors,
            Self::Counts(..) => Projection::Counters,
            Self::Measure(..) => Projection::Moderation,
            Self::Kept(..) => Projection::Inbox,
            Self::Row(..) => Projection::Table,
            Self::Record(..) => Projection::Records,
        }
    }

    /// Returns the partition of the events about it.
    pub(super) fn partition(&self) -> Partition {
        match *self {
            Self::Live(partition, _) | Self::Snapshot(partition, ..) => partition,
            Self::Presence(app, user)
            | Self::Measure(app, None, user)
            | Self::Kept(app, user, _) => Partition::of_user(app, user),
            Self::Room(app, room)
            | Self::Anchor(app, room, _)
            | Self::Counts(app, room)
            | Self::Measure(app, Some(room), _)
            | Self::Row(app, room)
            | Self::Record(app, room) => Partition::of_room(app, room),
        }
    }

    /// Returns the room it is about, if any.
    pub(super) fn room(&self) -> Option<(AppId, RoomId)> {
        match *self {
            Self::Live(_, Thing::Room(app, room))
            | Self::Snapshot(_, _, Thing::Room(app, room))
            | Self::Room(app, room)
            | Self::Anchor(app, room, _)
            | Self::Counts(app, room)
            | Self::Measure(app, Some(room), _)
            | Self::Row(app, room)
            | Self::Record(app, room) => Some((app, room)),
            _ => None,
        }
    }

    /// Returns the value expected by the log; `None`: it must be absent.
    pub(super) fn expected(&self, state: &PartitionState, at_ms: u64) -> Option<String> {
        match *self {
            Self::Live(_, thing) | Self::Snapshot(_, _, thing) => {
                state.fold.hash_of(thing, at_ms).map(shown_hash)
            }
            Self::Presence(app, user) => {
                let sessions = state.fold.sessions(app, user);
                let session = |(gateway, connection)| format!("{connection} of {gateway}");
                let sessions: Vec<String> = sessions.into_iter().map(session).collect();
                (!sessions.is_empty()).then(|| shown_sessions(sessions))
            }
            Self::Room(app, room) | Self::Row(app, room) => {
                let anchor = state.open(app, room)?;
                let opened = state.rooms.get(&(app, room)).and_then(|known| known.opened.as_ref());
                Some(opened.map_or_else(|| shown_anchor(anchor), |opened| opened.shown(anchor)))
            }
            Self::Anchor(app, room, anchor) => {
                state.open(app, room).filter(|of| *of == anchor).map(|_| shown_claim())
            }
            Self::Counts(app, room) => {
                let counts = state.fold.counts(app, room)?;
                Some(shown_counts(counts.watch_num, counts.good_num))
            }
            Self::Measure(app, room, user) => {
                let entry = state.fold.measures_against(app, room, user)?;
                shown_measures(entry, at_ms)
            }
            Self::Kept(app, user, msg_id) => state.fold.is_kept(app, user, msg_id).then(shown_kept),
            Self::Record(app, room) => {
                let known = state.rooms.get(&(app, room))?;
                let ((closed, at_ms), anchor) = (known.closed?, state.anchor(app, room)?);
                let opened = known.opened.as_ref();
                let by_anchor =
                    opened.map_or_else(|| shown_anchor(anchor), |opened| opened.named(anchor));
                Some(shown_record(&by_anchor, closed, at_ms))
            }
        }
    }
}

impl std::fmt::Display for ItemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Live(partition, thing) => {
                write!(f, "{thing} in the fold of the owner of {partition}")
            }
            Self::Snapshot(partition, position, thing) => {
                write!(f, "{thing} in the snapshot of {partition} at {position}")
            }
            Self::Presence(app, user) => write!(f, "user {app}.{user} in the bucket presence"),
            Self::Room(app, room) => write!(f, "room {app}.{room} in the bucket rooms"),
            Self::Anchor(app, room, anchor) => {
                write!(f, "room {app}.{room} in the bucket anchors, for anchor {anchor}")
            }
            Self::Counts(app, room) => write!(f, "room {app}.{room} in the bucket watch"),
            Self::Measure(app, Some(room), user) => {
                write!(f, "user {app}.{user} in room {room} in the bucket measures")
            }
            Self::Measure(app, None, user) => {
                write!(f, "user {app}.{user} in the bucket measures")
            }
            Self::Kept(app, user, msg_id) => {
                write!(f, "message {msg_id} in the inbox of user {app}.{user}")
            }
            Self::Row(app, room) => write!(f, "room {app}.{room} in t_living_room"),
            Self::Record(app, room) => write!(f, "room {app}.{room} in t_living_room_record"),
        }
    }
}

/// The state established by the events of one partition.
#[derive(Clone, Debug, Default)]
pub(super) struct PartitionState {
    pub(super) fold: Fold,
    /// Rooms whose `opened` or `closed` event is in the log.
    pub(super) rooms: BTreeMap<(AppId, RoomId), RoomEvents>,
}

/// The two events of a room, as far as the log has them.
#[derive(Clone, Debug, Default)]
pub(super) struct RoomEvents {
    pub(super) opened: Option<RoomOpening>,
    pub(super) closed: Option<(MsgId, u64)>,
}

#[derive(Clone, Debug)]
pub(super) struct RoomOpening {
    room_type: u8,
    name: String,
    cover: String,
    msg_id: MsgId,
}

impl RoomOpening {
    fn shown(&self, anchor: UserId) -> String {
        shown_room(&self.named(anchor), self.msg_id)
    }

    fn named(&self, anchor: UserId) -> String {
        shown_named(anchor, self.room_type, &self.name, &self.cover)
    }
}

impl PartitionState {
    /// Records the facts that the fold does not keep.
    pub(super) fn note(&mut self, msg_id: MsgId, record: &Record) {
        match &record.event {
            Event::RoomOpened { app, room, room_type, name, cover, .. } => {
                let known = self.rooms.entry((*app, *room)).or_default();
                let (room_type, name, cover) = (*room_type, name.clone(), cover.clone());
                known.opened.get_or_insert(RoomOpening { room_type, name, cover, msg_id });
            }
            Event::RoomClosed { app, room, .. } => {
                let known = self.rooms.entry((*app, *room)).or_default();
                known.closed.get_or_insert((msg_id, record.at_ms));
            }
            _ => {}
        }
    }

    /// Returns the anchor of an open room.
    pub(super) fn open(&self, app: AppId, room: RoomId) -> Option<UserId> {
        match self.fold.standing(app, room)? {
            (Some(anchor), None) => Some(anchor),
            _ => None,
        }
    }

    fn anchor(&self, app: AppId, room: RoomId) -> Option<UserId> {
        self.fold.standing(app, room).and_then(|(anchor, _)| anchor)
    }

    /// Returns every item it expects outside the folds.
    pub(super) fn keys(&self) -> Vec<ItemKey> {
        let mut keys = Vec::new();
        for (app, room) in self.fold.rooms() {
            if let Some(anchor) = self.open(app, room) {
                let claim = ItemKey::Anchor(app, room, anchor);
                keys.extend([ItemKey::Room(app, room), claim, ItemKey::Row(app, room)]);
            }
            keys.push(ItemKey::Counts(app, room));
        }
        keys.extend(self.fold.online().map(|(app, user)| ItemKey::Presence(app, user)));
        let measured = self.fold.measured().into_iter();
        keys.extend(measured.map(|(app, room, user)| ItemKey::Measure(app, room, user)));
        let kept = self.fold.kept();
        keys.extend(kept.map(|(app, user, msg_id)| ItemKey::Kept(app, user, msg_id)));
        let closed = self.rooms.iter().filter(|(_, known)| known.closed.is_some());
        keys.extend(closed.map(|((app, room), _)| ItemKey::Record(*app, *room)));
        keys
    }
}

pub(super) fn shown_hash(hash: u64) -> String {
    format!("hash {hash:016x}")
}

pub(super) fn shown_anchor(anchor: UserId) -> String {
    format!("of user {anchor}")
}

pub(super) fn shown_named(anchor: UserId, room_type: u8, name: &str, cover: &str) -> String {
    format!("{}, type {room_type}, named {name:?}, cover {cover:?}", shown_anchor(anchor))
}

pub(super) fn shown_room(named: &str, opened: MsgId) -> String {
    format!("{named}, opened {opened}")
}

pub(super) fn shown_claim() -> String {
    "claimed".to_owned()
}

pub(super) fn shown_kept() -> String {
    "kept".to_owned()
}

pub(super) fn shown_counts(watch_num: u64, good_num: u64) -> String {
    format!("{watch_num} inside, {good_num} likes")
}

pub(super) fn shown_sessions(mut sessions: Vec<String>) -> String {
    sessions.sort_unstable();
    format!("connections {}", sessions.join(", "))
}

pub(super) fn shown_record(by_anchor: &str, closed: MsgId, at_ms: u64) -> String {
    format!("{by_anchor}, closed {closed} at {at_ms} ms")
}

/// Formats the mute and the ban in force.
pub(super) fn shown_measures(entry: &SanctionEntry, at_ms: u64) -> Option<String> {
    let shown = |what: &str, taken: &Option<Sanction>| {
        let taken = taken.as_ref().filter(|taken| taken.is_active(at_ms))?;
        let until = taken.until_ms.map_or("lifted".to_owned(), |until| format!("{until} ms"));
        Some(format!("{what} since {} until {until} for {:?}", taken.msg_id, taken.reason))
    };
    let held: Vec<String> =
        [shown("mute", &entry.mute), shown("ban", &entry.ban)].into_iter().flatten().collect();
    (!held.is_empty()).then(|| held.join(", "))
}
