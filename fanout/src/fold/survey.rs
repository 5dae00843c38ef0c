//! Looking at a fold as a whole: every thing it knows, by name, with a hash of
//! what it knows about it. Two folds of the same log have the same survey,
//! even if one of them has forgotten more state that can have no effect any more.

use std::collections::BTreeMap;

use qiyu_schema::{
    AppId, ConnId, Incarnation, MsgId, Namespace, RoomId, UserId, codec,
    sanction::{Sanction, SanctionEntry},
};
use serde::Serialize;

use super::{
    Fold, Member, Room,
    names::{SENT_KEPT_MS, Sent},
    owed::OWED_KEPT_MS,
    users::{Session, Unread, User},
};

/// Something a fold knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thing {
    /// A room: its anchor, its members, its likes, its measures.
    Room(AppId, RoomId),
    /// A user: their sessions and pending messages.
    User(AppId, UserId),
    /// The client message ids of a user, or of the server API.
    Names(AppId, Namespace),
    /// Measures against a user in the whole app.
    Measures(AppId, UserId),
}

impl std::fmt::Display for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Room(app, room) => write!(f, "room {app}.{room}"),
            Self::User(app, user) => write!(f, "user {app}.{user}"),
            Self::Names(app, namespace) => write!(f, "names {app}.{namespace}"),
            Self::Measures(app, user) => write!(f, "measures {app}.{user}"),
        }
    }
}

/// Not the name of a thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names nothing a fold knows")]
pub struct NoThing(String);

impl std::str::FromStr for Thing {
    type Err = NoThing;
    fn from_str(name: &str) -> Result<Self, NoThing> {
        let parsed = || {
            let (kind, key) = name.split_once(' ')?;
            let (app, id) = key.split_once('.')?;
            let app = app.parse().ok()?;
            Some(match kind {
                "room" => Self::Room(app, id.parse().ok()?),
                "user" => Self::User(app, id.parse().ok()?),
                "names" => Self::Names(app, id.parse().ok()?),
                "measures" => Self::Measures(app, id.parse().ok()?),
                _ => return None,
            })
        };
        parsed().ok_or_else(|| NoThing(name.to_owned()))
    }
}

impl Fold {
    /// Up to `limit` things above `after` in the order of [`Thing`], each with the
    /// hash of its state that still matters at `at_ms`; and whether there are more.
    pub fn survey(
        &self,
        at_ms: u64,
        after: Option<Thing>,
        limit: usize,
    ) -> (BTreeMap<Thing, u64>, bool) {
        let rooms = self.rooms.keys().map(|(app, room)| Thing::Room(*app, *room));
        let users = self.users.keys().map(|(app, user)| Thing::User(*app, *user));
        let names = self.sent.keys().map(|(app, namespace)| Thing::Names(*app, *namespace));
        let measures = self.measures.keys().map(|(app, user)| Thing::Measures(*app, *user));
        let mut things: Vec<Thing> = rooms
            .chain(users)
            .chain(names)
            .chain(measures)
            .filter(|thing| after.is_none_or(|after| after < *thing))
            .collect();
        things.sort_unstable();
        let mut found = BTreeMap::new();
        for thing in things {
            let Some(hash) = self.hash_of(thing, at_ms) else { continue };
            if limit <= found.len() {
                return (found, true);
            }
            found.insert(thing, hash);
        }
        (found, false)
    }

    /// The hash of the state of `thing` that still matters at `at_ms`; `None`: nothing does.
    pub fn hash_of(&self, thing: Thing, at_ms: u64) -> Option<u64> {
        match thing {
            Thing::Room(app, room) => self.rooms.get(&(app, room))?.essence(at_ms),
            Thing::User(app, user) => self.users.get(&(app, user))?.essence(at_ms),
            Thing::Names(app, namespace) => {
                let recent = |sent: &&Sent| at_ms < sent.at_ms.saturating_add(SENT_KEPT_MS);
                let sent = self.sent.get(&(app, namespace))?;
                let sent: Vec<&Sent> = sent.iter().filter(recent).collect();
                (!sent.is_empty()).then(|| hashed(&sent))
            }
            Thing::Measures(app, user) => {
                in_force(self.measures.get(&(app, user))?, at_ms).map(|held| hashed(&held))
            }
        }
    }

    /// Whose a room is, and where it closed, as far as that is known. `None`: a room
    /// that no event names.
    pub fn standing(&self, app: AppId, room: RoomId) -> Option<(Option<UserId>, Option<MsgId>)> {
        let room = self.rooms.get(&(app, room))?;
        Some((room.anchor, room.closed.map(|closed| closed.msg_id)))
    }

    /// Connections of a gateway inside a room, but for those of `speaker`.
    pub fn hearers(
        &self,
        app: AppId,
        room: RoomId,
        at: &Incarnation,
        speaker: Option<UserId>,
    ) -> usize {
        let members = self.rooms.get(&(app, room)).and_then(|room| room.gateways.get(at));
        let hears = |member: &&Member| Some(member.user) != speaker;
        members.map_or(0, |members| members.connections.values().filter(hears).count())
    }

    /// Rooms that are known, closed ones for a while too.
    pub fn rooms(&self) -> impl Iterator<Item = (AppId, RoomId)> {
        self.rooms.keys().copied()
    }

    /// The rooms and users that measures are known against. No room: the whole app.
    pub fn measured(&self) -> Vec<(AppId, Option<RoomId>, UserId)> {
        let in_rooms = self.rooms.iter().flat_map(|((app, room), known)| {
            known.measures.keys().map(|user| (*app, Some(*room), *user))
        });
        let in_apps = self.measures.keys().map(|(app, user)| (*app, None, *user));
        in_rooms.chain(in_apps).collect()
    }

    /// The state of sanctions against a user.
    pub fn measures_against(
        &self,
        app: AppId,
        room: Option<RoomId>,
        user: UserId,
    ) -> Option<&SanctionEntry> {
        match room {
            None => self.measures.get(&(app, user)),
            Some(room) => self.rooms.get(&(app, room))?.measures.get(&user),
        }
    }

    /// Users with a session.
    pub fn online(&self) -> impl Iterator<Item = (AppId, UserId)> {
        let online = |(_, user): &(&(AppId, UserId), &User)| !user.sessions.is_empty();
        self.users.iter().filter(online).map(|(key, _)| *key)
    }

    /// A user's sessions, in order.
    pub fn sessions(&self, app: AppId, user: UserId) -> Vec<(Incarnation, ConnId)> {
        let Some(user) = self.users.get(&(app, user)) else { return Vec::new() };
        let session = |s: &Session| (s.gateway.clone(), s.connection);
        let mut sessions: Vec<_> = user.sessions.iter().map(session).collect();
        sessions.sort_unstable();
        sessions
    }

    /// 1:1 messages that wait and were copied to the inbox, which outlives the log.
    pub fn kept(&self) -> impl Iterator<Item = (AppId, UserId, MsgId)> {
        self.users.iter().flat_map(|((app, user), known)| {
            let kept = known.waiting.iter().filter(|(_, unread)| unread.kept);
            kept.map(|(msg_id, _)| (*app, *user, *msg_id))
        })
    }

    /// Whether a 1:1 message waits and was copied to the inbox.
    pub fn is_kept(&self, app: AppId, user: UserId, msg_id: MsgId) -> bool {
        let user = self.users.get(&(app, user));
        user.and_then(|user| user.waiting.get(&msg_id)).is_some_and(|unread| unread.kept)
    }

    /// Whether a 1:1 message waits for its recipient.
    pub fn waits(&self, app: AppId, user: UserId, msg_id: MsgId) -> bool {
        self.users.get(&(app, user)).is_some_and(|user| user.waiting.contains_key(&msg_id))
    }
}

impl Room {
    fn essence(&self, at_ms: u64) -> Option<u64> {
        let recent = |at: u64| at_ms < at.saturating_add(OWED_KEPT_MS);
        let mut departed: Vec<_> = self.departed.iter().filter(|d| recent(d.at_ms)).collect();
        departed.sort_unstable_by_key(|d| (d.user, d.joined, &d.gateway));
        let owed: BTreeMap<_, Vec<_>> = self
            .owed
            .iter()
            .map(|(user, owed)| (user, owed.iter().filter(|o| recent(o.at_ms)).collect::<Vec<_>>()))
            .filter(|(_, owed)| !owed.is_empty())
            .collect();
        let leftovers = !departed.is_empty() || !owed.is_empty();
        let known = self.anchor.is_some() || self.closed.is_some();
        if !known && self.gateways.is_empty() && !leftovers {
            return None;
        }
        let gateways: Vec<_> = self
            .gateways
            .iter()
            .map(|(gateway, members)| {
                (gateway, members.prev, members.connections.iter().collect::<BTreeMap<_, _>>())
            })
            .collect();
        let inside: BTreeMap<_, _> = self.inside.iter().collect();
        let measures: BTreeMap<_, _> = self
            .measures
            .iter()
            .filter_map(|(user, entry)| Some((user, in_force(entry, at_ms)?)))
            .collect();
        // Not the peak: a snapshot of an older build does not know it.
        let rest = (self.good_num, departed, owed, self.anchor_gone_ms, measures);
        Some(hashed(&(self.anchor, self.closed, gateways, inside, rest)))
    }
}

impl User {
    fn essence(&self, at_ms: u64) -> Option<u64> {
        let waits = |(_, unread): &(&MsgId, &Unread)| unread.waits(at_ms);
        let waiting: Vec<_> = self.waiting.iter().filter(waits).collect();
        let nothing = self.sessions.is_empty() && waiting.is_empty();
        (!nothing).then(|| hashed(&(&self.sessions, waiting)))
    }
}

/// The mute and the ban that hold; the rest is remembered or not, as it happens.
fn in_force(entry: &SanctionEntry, at_ms: u64) -> Option<[Option<&Sanction>; 2]> {
    let held = [&entry.mute, &entry.ban];
    let held = held.map(|taken| taken.as_ref().filter(|taken| taken.is_active(at_ms)));
    held.iter().any(Option::is_some).then_some(held)
}

/// FNV-1a, 64 bits: workers and tools of different builds must agree.
fn hashed<T: Serialize>(essence: &T) -> u64 {
    let bytes = codec::encode(essence).expect("plain data encodes");
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_read_back_from_their_names() {
        let (app, user) = ("10001".parse().unwrap(), "100002".parse().unwrap());
        let room = Thing::Room(app, "7".parse().unwrap());
        for thing in [
            room,
            Thing::User(app, user),
            Thing::Names(app, Namespace::of_user(user)),
            Thing::Names(app, Namespace::SERVER),
            Thing::Measures(app, user),
        ] {
            assert_eq!(thing.to_string().parse(), Ok(thing));
        }
        for bad in ["", "room", "room 7", "room 10001.x", "cat 10001.7"] {
            assert!(bad.parse::<Thing>().is_err(), "{bad}");
        }
    }
}
