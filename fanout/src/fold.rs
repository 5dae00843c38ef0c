//! The rules: from the events of one partition to what must be sent.
//!
//! Pure, and a function of the log's prefix alone: every owner that folds the
//! same events knows the same members and computes the same envelopes. That is
//! what lets an owner die at any moment, and what lets anybody replay a room.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    ops::Bound,
};

use qiyu_nats::{
    AppId, ClientMsgId, ConnId, GatewayId, Incarnation, MsgId, RoomId, UserId,
    envelope::{DirectTarget, Envelope},
    event::{Event, MemberChange, Record, Sender, SessionChange, UnackedMessage},
    measure::{MeasureEntry, Taken},
    room::RoomCounts,
    stream::{INBOX_AGE_MAX, INBOX_MESSAGES_MAX},
};
use serde::{Deserialize, Serialize};

mod survey;

pub use survey::{NoThing, Thing};

use crate::state::{Member as MemberState, RoomState};

/// What folding an event asks its owner to do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Hand an envelope to a gateway.
    Deliver {
        /// To which life of which gateway.
        to: Incarnation,
        /// What.
        envelope: Envelope,
    },
    /// Send what waits for a user to a connection that has just logged in:
    /// the contents lie in the log or the inbox.
    DeliverWaiting {
        /// Where the connection is.
        to: Incarnation,
        /// Where.
        app: AppId,
        /// Whose.
        user: UserId,
        /// Which connection.
        connection: ConnId,
        /// What waits, oldest first.
        msg_ids: Vec<MsgId>,
    },
    /// Send a room message again to connections that came back for it: its
    /// content lies in the log.
    Repeat {
        /// To which life of which gateway.
        to: Incarnation,
        /// Where.
        app: AppId,
        /// Which room.
        room: RoomId,
        /// Which message.
        msg_id: MsgId,
        /// Copies sent before.
        sends: u32,
        /// Which connections, if they are not the sender's.
        connections: Vec<ConnId>,
    },
    /// Copy a 1:1 message to the inbox, which outlives the log: nobody is there.
    KeepForLater {
        /// Where.
        app: AppId,
        /// For whom.
        user: UserId,
        /// What it is about.
        biz_code: i32,
        /// Its data.
        data: String,
    },
    /// Copy 1:1 messages to the inbox that were sent to connections which are
    /// all gone now; their contents lie in the log.
    KeepUnread {
        /// Where.
        app: AppId,
        /// For whom.
        user: UserId,
        /// Which ones.
        msg_ids: Vec<MsgId>,
    },
    /// Nothing waits for the user any more: the inbox can be emptied.
    NothingWaits {
        /// Where.
        app: AppId,
        /// For whom.
        user: UserId,
    },
    /// The user's first session came.
    CameOnline {
        /// Where.
        app: AppId,
        /// Who.
        user: UserId,
    },
    /// The user's last session went.
    WentOffline {
        /// Where.
        app: AppId,
        /// Who.
        user: UserId,
    },
}

/// Everything the events of one partition have established.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    rooms: HashMap<(AppId, RoomId), Room>,
    users: HashMap<(AppId, UserId), User>,
    gateways: HashMap<GatewayId, Lives>,
    /// What users have named, so that the same name again is known again.
    /// `None`: what the server API has.
    sent: HashMap<(AppId, Option<UserId>), VecDeque<Sent>>,
    /// Measures against users in the whole app.
    #[serde(default)]
    measures: HashMap<(AppId, UserId), MeasureEntry>,
    /// Rooms whose counts may have changed; not part of the truth.
    #[serde(skip)]
    stirred: HashSet<(AppId, RoomId)>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Room {
    anchor: Option<UserId>,
    closed: Option<Closed>,
    gateways: BTreeMap<Incarnation, Members>,
    /// Connections of each user inside, through whatever gateway.
    inside: HashMap<UserId, u32>,
    good_num: u64,
    /// The most users that were ever inside at once.
    #[serde(default)]
    peak: u64,
    /// Members of gateways that died a short while ago.
    departed: Vec<Departed>,
    /// Messages kept a while for users who may come back.
    owed: HashMap<UserId, Vec<Owed>>,
    /// Since when the anchor is gone, who was inside before.
    #[serde(default)]
    anchor_gone_ms: Option<u64>,
    /// Measures against users in this room.
    #[serde(default)]
    measures: HashMap<UserId, MeasureEntry>,
}

/// Somebody whose gateway died.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Departed {
    gateway: Incarnation,
    user: UserId,
    joined: MsgId,
    at_ms: u64,
}

/// A message a user never acknowledged on a connection that is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Owed {
    msg_id: MsgId,
    sends: u32,
    at_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Closed {
    msg_id: MsgId,
    at_ms: u64,
}

/// One gateway's connections in one room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Members {
    /// The last message sent to it, or the join that brought it in.
    prev: MsgId,
    connections: HashMap<ConnId, Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Member {
    user: UserId,
    joined: MsgId,
    /// It asked for what it had missed, and so needs no copies of that.
    resumed: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct User {
    sessions: Vec<Session>,
    /// 1:1 messages nobody has acknowledged.
    waiting: BTreeMap<MsgId, Unread>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Unread {
    written_ms: u64,
    /// The inbox has a copy, which outlives the log.
    kept: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Session {
    gateway: Incarnation,
    connection: ConnId,
    /// The last 1:1 message sent to it.
    prev: Option<MsgId>,
}

/// A message its sender has named.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Sent {
    /// Of the name; 64 bits among a thousand names never meet by chance.
    hash: u64,
    msg_id: MsgId,
    at_ms: u64,
}

/// What is known of one gateway's lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Lives {
    /// The newest that was heard of.
    current: u64,
    /// This one and all before it are over.
    gone: u64,
}

/// How long a closed room is remembered, for those who still try to enter.
/// Afterwards a join finds no room at all, which the gateway refuses before.
const CLOSED_KEPT_MS: u64 = 24 * 3600 * 1000;

/// How long those whose gateway died have to come back and still be sent what
/// they had not acknowledged. Afterwards they read it in the history.
const OWED_KEPT_MS: u64 = 60_000;

/// How long a sender's own name for a message is remembered.
const SENT_KEPT_MS: u64 = 24 * 3600 * 1000;
/// How long a measure that is over is remembered.
const MEASURE_KEPT_MS: u64 = 24 * 3600 * 1000;
/// Names remembered per sender and partition: 24 bytes each.
const SENT_MAX: usize = 1000;

/// What somebody said in a room, and when.
struct Said {
    from: Option<UserId>,
    biz_code: i32,
    data: String,
    at_ms: u64,
}

impl Fold {
    /// Folds the event stored as `msg_id`.
    ///
    /// Returns `None` for a kind this build does not know: the event is set
    /// aside and the partition goes on.
    pub fn apply(&mut self, msg_id: MsgId, record: Record) -> Option<Vec<Effect>> {
        let at_ms = record.at_ms;
        let effects = match record.event {
            Event::RoomOpened { app, room, anchor, .. } => {
                self.rooms.entry((app, room)).or_default().anchor = Some(anchor);
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
                if let Some(liked) = self.rooms.get_mut(&(app, room)) {
                    liked.good_num = liked.good_num.saturating_add(count);
                    self.stirred.insert((app, room));
                }
                Vec::new()
            }
            Event::BusinessSent { .. } => Vec::new(), // an integrator's consumer acts upon it
            Event::ContentRefused { .. } => Vec::new(), // nobody hears it
            Event::MeasureTaken { app, room, user, measure, until_ms, reason, by } => {
                let taken = Taken { msg_id, at_ms, until_ms, reason, by };
                self.measures_of(app, room, user).map(|entry| entry.take(measure, taken));
                Vec::new() // gateways enforce it
            }
            Event::MeasureLifted { app, room, user, measure, .. } => {
                self.measures_of(app, room, user).map(|entry| entry.lift(measure, msg_id));
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

    /// The message a sender has given this name, within the last 24 h.
    pub fn find_sent(
        &self,
        app: AppId,
        user: Option<UserId>,
        name: &ClientMsgId,
        now_ms: u64,
    ) -> Option<MsgId> {
        let (sent, hash) = (self.sent.get(&(app, user))?, hash_of(name));
        let recent = |sent: &&Sent| now_ms < sent.at_ms.saturating_add(SENT_KEPT_MS);
        // From the back: who retries, retries soon.
        sent.iter().rev().take_while(recent).find(|sent| sent.hash == hash).map(|sent| sent.msg_id)
    }

    /// What waits for a user above `after`, oldest first, and whether it is more than `limit`.
    pub fn waiting(
        &self,
        app: AppId,
        user: UserId,
        after: Option<MsgId>,
        limit: usize,
    ) -> (Vec<MsgId>, bool) {
        let Some(user) = self.users.get(&(app, user)) else { return (Vec::new(), false) };
        let above = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let mut waiting = user.waiting.range(above).map(|(msg_id, _)| *msg_id);
        let first: Vec<MsgId> = waiting.by_ref().take(limit).collect();
        (first, waiting.next().is_some())
    }

    /// Forgets what can matter to nobody any more at `at_ms`.
    pub fn forget(&mut self, at_ms: u64) {
        self.sent.retain(|_, sent| {
            sent.back().is_some_and(|last| at_ms < last.at_ms.saturating_add(SENT_KEPT_MS))
        });
        let inbox_age_ms = u64::try_from(INBOX_AGE_MAX.as_millis()).unwrap_or(u64::MAX);
        self.users.retain(|_, user| {
            user.waiting.retain(|_, unread| at_ms < unread.written_ms.saturating_add(inbox_age_ms));
            !user.sessions.is_empty() || !user.waiting.is_empty()
        });
        let over = |entry: &MeasureEntry| {
            entry.ends_ms().is_some_and(|ends| ends.saturating_add(MEASURE_KEPT_MS) < at_ms)
        };
        self.measures.retain(|_, entry| !over(entry));
        for room in self.rooms.values_mut() {
            room.measures.retain(|_, entry| !over(entry));
            room.forget_departed(at_ms);
            room.owed.retain(|_, owed| {
                owed.retain(|owed| at_ms < owed.at_ms.saturating_add(OWED_KEPT_MS));
                !owed.is_empty()
            });
        }
        self.rooms.retain(|_, room| !room.means_nothing());
    }

    /// Open rooms whose anchor has been gone since before `since_ms`.
    pub fn abandoned(&self, since_ms: u64) -> impl Iterator<Item = (AppId, RoomId)> {
        let gone = move |room: &Room| {
            room.closed.is_none() && room.anchor_gone_ms.is_some_and(|gone| gone < since_ms)
        };
        self.rooms.iter().filter(move |(_, room)| gone(room)).map(|(key, _)| *key)
    }

    /// Users inside a room above `after`, in order, and how many there are in all.
    pub fn members(
        &self,
        app: AppId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> (Vec<UserId>, usize) {
        let Some(room) = self.rooms.get(&(app, room)) else { return (Vec::new(), 0) };
        let above = |user: &&UserId| after.is_none_or(|after| after < **user);
        let mut users: Vec<UserId> = room.inside.keys().filter(above).copied().collect();
        if limit < users.len() {
            users.select_nth_unstable(limit);
            users.truncate(limit);
        }
        users.sort_unstable();
        (users, room.inside.len())
    }

    /// Everything that is known of a room. `None`: it was never heard of, or is forgotten.
    pub fn room_state(&self, app: AppId, room: RoomId) -> Option<RoomState> {
        let known = self.rooms.get(&(app, room))?;
        let mut members: Vec<MemberState> = known
            .gateways
            .iter()
            .flat_map(|(gateway, inside)| {
                inside.connections.iter().map(|(connection, member)| MemberState {
                    user: member.user,
                    gateway: gateway.clone(),
                    connection: *connection,
                    joined: member.joined,
                })
            })
            .collect();
        members.sort_unstable_by_key(|member| (member.joined, member.user, member.connection));
        let mut measures: Vec<_> =
            known.measures.iter().map(|(user, entry)| (*user, entry.clone())).collect();
        measures.sort_unstable_by_key(|(user, _)| *user);
        let watch_num = known.inside.len() as u64;
        let peak = Some(known.peak.max(watch_num));
        Some(RoomState {
            anchor: known.anchor,
            anchor_gone_ms: known.anchor_gone_ms,
            closed: known.closed.map(|closed| (closed.msg_id, closed.at_ms)),
            members,
            counts: RoomCounts { watch_num, good_num: known.good_num, peak },
            measures,
        })
    }

    /// Measures against a user in the whole app.
    pub fn measures_in_app(&self, app: AppId, user: UserId) -> Option<&MeasureEntry> {
        self.measures.get(&(app, user))
    }

    /// Where measures against a user are folded. `None`: in a room that is over.
    fn measures_of(
        &mut self,
        app: AppId,
        room: Option<RoomId>,
        user: UserId,
    ) -> Option<&mut MeasureEntry> {
        match room {
            None => Some(self.measures.entry((app, user)).or_default()),
            Some(room) => {
                let room = self.rooms.get_mut(&(app, room)).filter(|r| r.closed.is_none())?;
                Some(room.measures.entry(user).or_default())
            }
        }
    }

    fn is_repeat(&mut self, app: AppId, sender: &Sender, msg_id: MsgId, at_ms: u64) -> bool {
        let Some(name) = &sender.client_msg_id else { return false };
        let namespace = sender.namespace();
        if self.find_sent(app, namespace, name, at_ms).is_some() {
            return true;
        }
        let sent = self.sent.entry((app, namespace)).or_default();
        if SENT_MAX <= sent.len() {
            sent.pop_front();
        }
        sent.push_back(Sent { hash: hash_of(name), msg_id, at_ms });
        false
    }

    /// Users inside a room, each once, and its likes; `None` if it is closed or was never known.
    pub fn counts(&self, app: AppId, room: RoomId) -> Option<RoomCounts> {
        let room = self.rooms.get(&(app, room)).filter(|room| room.closed.is_none())?;
        let watch_num = room.inside.len() as u64;
        // A snapshot of an older build has no peak, and people inside.
        let peak = Some(room.peak.max(watch_num));
        Some(RoomCounts { watch_num, good_num: room.good_num, peak })
    }

    /// The gateways that hold members of a room.
    pub fn gateways_of(&self, app: AppId, room: RoomId) -> Vec<Incarnation> {
        let room = self.rooms.get(&(app, room));
        room.map(|room| room.gateways.keys().cloned().collect()).unwrap_or_default()
    }

    /// The rooms whose counts may have changed since this was last asked.
    pub fn take_stirred(&mut self) -> HashSet<(AppId, RoomId)> {
        std::mem::take(&mut self.stirred)
    }

    /// Every open room with somebody inside: what a new owner must count anew.
    pub fn stir_all(&mut self) {
        self.stirred.extend(
            self.rooms.iter().filter(|(_, room)| room.closed.is_none()).map(|(key, _)| *key),
        );
    }

    fn say(&mut self, app: AppId, room: RoomId, msg_id: MsgId, said: &Said) -> Vec<Effect> {
        let Some(members) = self.rooms.get_mut(&(app, room)) else { return Vec::new() };
        if members.closed.is_some() {
            return Vec::new(); // kept and readable, delivered to nobody
        }
        let envelope = |to: &Incarnation, members: &mut Members| Effect::Deliver {
            to: to.clone(),
            envelope: Envelope::Room {
                app,
                room,
                msg_id,
                prev: std::mem::replace(&mut members.prev, msg_id),
                from: said.from,
                biz_code: said.biz_code,
                data: said.data.clone(),
                at_ms: Some(said.at_ms),
            },
        };
        members.gateways.iter_mut().map(|(to, members)| envelope(to, members)).collect()
    }

    fn close(&mut self, app: AppId, room: RoomId, msg_id: MsgId, at_ms: u64) -> Vec<Effect> {
        self.rooms.retain(|_, room| {
            room.closed.is_none_or(|closed| at_ms < closed.at_ms.saturating_add(CLOSED_KEPT_MS))
        });
        let closing = self.rooms.entry((app, room)).or_default();
        if closing.closed.is_some() {
            return Vec::new();
        }
        closing.closed = Some(Closed { msg_id, at_ms });
        closing.inside.clear();
        closing.measures.clear();
        closing.anchor_gone_ms = None;
        self.stirred.insert((app, room));
        std::mem::take(&mut closing.gateways)
            .into_iter()
            .map(|(to, members)| Effect::Deliver {
                to,
                envelope: Envelope::RoomClosed {
                    app,
                    room,
                    msg_id,
                    prev: members.prev,
                    late: Vec::new(),
                },
            })
            .collect()
    }

    fn move_members(
        &mut self,
        app: AppId,
        room_id: RoomId,
        gateway: &Incarnation,
        position: MsgId,
        at_ms: u64,
        changes: &[MemberChange],
    ) -> Vec<Effect> {
        let room = self.rooms.entry((app, room_id)).or_default();
        if let Some(closed) = room.closed {
            // They came after the end: they get the notice at once.
            let late: Vec<ConnId> = changes
                .iter()
                .filter_map(|change| match change {
                    MemberChange::Joined { connection, .. } => Some(*connection),
                    MemberChange::Left { .. } | MemberChange::Unknown => None,
                })
                .collect();
            if late.is_empty() {
                return Vec::new();
            }
            let (msg_id, prev) = (closed.msg_id, closed.msg_id);
            let envelope = Envelope::RoomClosed { app, room: room_id, msg_id, prev, late };
            return vec![Effect::Deliver { to: gateway.clone(), envelope }];
        }
        let anchor_was_inside = room.anchor_is_inside();
        let mut repeats: BTreeMap<(MsgId, u32), Vec<ConnId>> = BTreeMap::new();
        for change in changes {
            match *change {
                MemberChange::Joined { connection, user, resumed } => {
                    let members = room
                        .gateways
                        .entry(gateway.clone())
                        .or_insert_with(|| Members { prev: position, connections: HashMap::new() });
                    let member = Member { user, joined: position, resumed };
                    if members.connections.insert(connection, member).is_none() {
                        *room.inside.entry(user).or_default() += 1;
                        room.peak = room.peak.max(room.inside.len() as u64);
                    }
                    for (msg_id, sends) in room.take_owed(user, at_ms) {
                        // What was asked for by a resume has come with it.
                        if !resumed && msg_id < position {
                            repeats.entry((msg_id, sends)).or_default().push(connection);
                        }
                    }
                }
                MemberChange::Left { connection, .. } => {
                    let Some(members) = room.gateways.get_mut(gateway) else { continue };
                    if let Some(member) = members.connections.remove(&connection) {
                        step_out(&mut room.inside, member.user);
                    }
                    if members.connections.is_empty() {
                        room.gateways.remove(gateway);
                    }
                }
                MemberChange::Unknown => {}
            }
        }
        room.watch_anchor(anchor_was_inside, at_ms);
        if room.means_nothing() {
            self.rooms.remove(&(app, room_id));
        }
        self.stirred.insert((app, room_id));
        // One envelope per message, whoever of the batch is to hear it again.
        let repeat = |((msg_id, sends), connections)| Effect::Repeat {
            to: gateway.clone(),
            app,
            room: room_id,
            msg_id,
            sends,
            connections,
        };
        repeats.into_iter().map(repeat).collect()
    }

    /// Sends what was never acknowledged to those who have come back since.
    fn repeat(
        &mut self,
        app: AppId,
        room_id: RoomId,
        gateway: &Incarnation,
        at_ms: u64,
        messages: Vec<UnackedMessage>,
        keep: bool,
    ) -> Vec<Effect> {
        let Some(room) = self.rooms.get_mut(&(app, room_id)) else { return Vec::new() };
        room.forget_departed(at_ms);
        let mut effects = Vec::new();
        for UnackedMessage { msg_id, users, sends } in messages {
            let users: BTreeSet<UserId> = match users {
                Some(users) => users.into_iter().collect(),
                None => {
                    let had_it = |d: &&Departed| d.gateway == *gateway && d.joined < msg_id;
                    room.departed.iter().filter(had_it).map(|d| d.user).collect()
                }
            };
            // Of each user the one connection that came last, on whatever gateway.
            let mut newest: BTreeMap<UserId, (Member, &Incarnation, ConnId)> = BTreeMap::new();
            for (to, members) in &room.gateways {
                for (connection, member) in &members.connections {
                    let back = users.contains(&member.user) && msg_id < member.joined;
                    let place = (member.joined, to, *connection);
                    let newer =
                        |(m, to, c): &(Member, &Incarnation, ConnId)| (m.joined, *to, *c) < place;
                    if back && newest.get(&member.user).is_none_or(newer) {
                        newest.insert(member.user, (*member, to, *connection));
                    }
                }
            }
            let served: BTreeSet<UserId> = newest.keys().copied().collect();
            let mut targets: BTreeMap<Incarnation, Vec<ConnId>> = BTreeMap::new();
            // Whoever asked for what was missed has it from there.
            for (_, to, connection) in newest.into_values().filter(|(m, ..)| !m.resumed) {
                targets.entry(to.clone()).or_default().push(connection);
            }
            for (to, connections) in targets {
                effects.push(Effect::Repeat { to, app, room: room_id, msg_id, sends, connections });
            }
            if keep && room.closed.is_none() {
                for user in users.difference(&served) {
                    room.owed.entry(*user).or_default().push(Owed { msg_id, sends, at_ms });
                }
            }
        }
        effects
    }

    fn write_to(
        &mut self,
        app: AppId,
        to: UserId,
        msg_id: MsgId,
        at_ms: u64,
        biz_code: i32,
        data: String,
    ) -> Vec<Effect> {
        let user = self.users.entry((app, to)).or_default();
        let kept = user.sessions.is_empty();
        user.waiting.insert(msg_id, Unread { written_ms: at_ms, kept });
        while INBOX_MESSAGES_MAX < i64::try_from(user.waiting.len()).unwrap_or(i64::MAX) {
            user.waiting.pop_first(); // the contract keeps the newest 1000
        }
        if user.sessions.is_empty() {
            return vec![Effect::KeepForLater { app, user: to, biz_code, data }];
        }
        // One envelope per gateway, whatever number of connections it has there.
        let mut targets: BTreeMap<Incarnation, Vec<DirectTarget>> = BTreeMap::new();
        for session in &mut user.sessions {
            let prev = session.prev.replace(msg_id);
            let target = DirectTarget { connection: session.connection, prev };
            targets.entry(session.gateway.clone()).or_default().push(target);
        }
        targets
            .into_iter()
            .map(|(gateway, targets)| Effect::Deliver {
                to: gateway,
                envelope: Envelope::Direct {
                    app,
                    user: to,
                    msg_id,
                    biz_code,
                    data: data.clone(),
                    to: targets,
                    at_ms: Some(at_ms),
                },
            })
            .collect()
    }

    fn move_session(
        &mut self,
        app: AppId,
        gateway: &Incarnation,
        at_ms: u64,
        change: SessionChange,
    ) -> Vec<Effect> {
        match change {
            SessionChange::Online { connection, user, .. } => {
                self.come_online(app, user, gateway, connection, at_ms)
            }
            SessionChange::Offline { connection, user, .. } => self
                .end_sessions(app, user, |s| s.gateway == *gateway && s.connection == connection),
            SessionChange::Read { user, msg_ids } => {
                let Some(reader) = self.users.get_mut(&(app, user)) else { return Vec::new() };
                let mut kept = false;
                for msg_id in msg_ids {
                    kept |= reader.waiting.remove(&msg_id).is_some_and(|unread| unread.kept);
                }
                let nothing_waits = reader.waiting.is_empty();
                if nothing_waits && reader.sessions.is_empty() {
                    self.users.remove(&(app, user));
                }
                match kept && nothing_waits {
                    true => vec![Effect::NothingWaits { app, user }],
                    false => Vec::new(), // the inbox has nothing, or something that still waits
                }
            }
            SessionChange::Unknown => Vec::new(),
        }
    }

    fn come_online(
        &mut self,
        app: AppId,
        user: UserId,
        gateway: &Incarnation,
        connection: ConnId,
        at_ms: u64,
    ) -> Vec<Effect> {
        let person = self.users.entry((app, user)).or_default();
        let known = |s: &Session| s.gateway == *gateway && s.connection == connection;
        if person.sessions.iter().any(known) {
            return Vec::new();
        }
        let too_old = at_ms.saturating_sub(u64::try_from(INBOX_AGE_MAX.as_millis()).unwrap_or(0));
        person.waiting.retain(|_, unread| too_old <= unread.written_ms);
        let msg_ids: Vec<MsgId> = person.waiting.keys().copied().collect();
        let first = person.sessions.is_empty();
        person.sessions.push(Session {
            gateway: gateway.clone(),
            connection,
            prev: msg_ids.last().copied(),
        });
        let mut effects = Vec::new();
        if first {
            effects.push(Effect::CameOnline { app, user });
        }
        if !msg_ids.is_empty() {
            let to = gateway.clone();
            effects.push(Effect::DeliverWaiting { to, app, user, connection, msg_ids });
        }
        effects
    }

    fn end_sessions(
        &mut self,
        app: AppId,
        user: UserId,
        ends: impl Fn(&Session) -> bool,
    ) -> Vec<Effect> {
        let Some(person) = self.users.get_mut(&(app, user)) else { return Vec::new() };
        let before = person.sessions.len();
        person.sessions.retain(|session| !ends(session));
        if person.sessions.len() == before || !person.sessions.is_empty() {
            return Vec::new();
        }
        let mut effects = vec![Effect::WentOffline { app, user }];
        let mut msg_ids = Vec::new();
        for (msg_id, unread) in person.waiting.iter_mut().filter(|(_, unread)| !unread.kept) {
            unread.kept = true;
            msg_ids.push(*msg_id);
        }
        if person.waiting.is_empty() {
            self.users.remove(&(app, user));
        }
        if !msg_ids.is_empty() {
            effects.push(Effect::KeepUnread { app, user, msg_ids });
        }
        effects
    }

    /// Takes note of a gateway that acts. `None`: its life is over, and what it does means nothing.
    fn meet(&mut self, gateway: &Incarnation, at_ms: u64) -> Option<Vec<Effect>> {
        let lives = self.gateways.entry(gateway.id.clone()).or_default();
        if gateway.epoch <= lives.gone || gateway.epoch < lives.current {
            return None;
        }
        if gateway.epoch == lives.current {
            return Some(Vec::new());
        }
        // A newer life: the older ones are over, whether or not anybody said so.
        let older = Incarnation { id: gateway.id.clone(), epoch: gateway.epoch - 1 };
        let effects = self.bury(&older, at_ms);
        self.gateways.entry(gateway.id.clone()).or_default().current = gateway.epoch;
        Some(effects)
    }

    /// Ends this life of a gateway and all before it.
    fn bury(&mut self, gateway: &Incarnation, at_ms: u64) -> Vec<Effect> {
        let lives = self.gateways.entry(gateway.id.clone()).or_default();
        if gateway.epoch <= lives.gone {
            return Vec::new();
        }
        lives.gone = gateway.epoch;
        let over = |g: &Incarnation| g.id == gateway.id && g.epoch <= gateway.epoch;
        for (key, room) in &mut self.rooms {
            let dead: Vec<Incarnation> =
                room.gateways.keys().filter(|g| over(g)).cloned().collect();
            if dead.is_empty() {
                continue;
            }
            room.forget_departed(at_ms);
            let anchor_was_inside = room.anchor_is_inside();
            for gateway in dead {
                let Some(members) = room.gateways.remove(&gateway) else { continue };
                self.stirred.insert(*key);
                for Member { user, joined, .. } in members.connections.into_values() {
                    step_out(&mut room.inside, user);
                    let gateway = gateway.clone();
                    room.departed.push(Departed { gateway, user, joined, at_ms });
                }
            }
            room.departed.sort_unstable_by_key(|d| (d.user, d.joined)); // whatever the map's order
            room.watch_anchor(anchor_was_inside, at_ms);
        }
        self.rooms.retain(|_, room| !room.means_nothing());
        let mut touched: Vec<(AppId, UserId)> = self
            .users
            .iter()
            .filter(|(_, user)| user.sessions.iter().any(|s| over(&s.gateway)))
            .map(|(key, _)| *key)
            .collect();
        touched.sort_unstable(); // every owner derives the same facts in the same order
        touched
            .into_iter()
            .flat_map(|(app, user)| self.end_sessions(app, user, |s| over(&s.gateway)))
            .collect()
    }
}

impl Room {
    /// Never opened, as far as the log reaches, and nobody inside.
    fn means_nothing(&self) -> bool {
        let leftovers = !self.departed.is_empty() || !self.owed.is_empty();
        self.anchor.is_none() && self.closed.is_none() && self.gateways.is_empty() && !leftovers
    }

    fn anchor_is_inside(&self) -> bool {
        self.anchor.is_some_and(|anchor| self.inside.contains_key(&anchor))
    }

    /// Takes note of when the anchor leaves and comes back. One who never
    /// entered speaks elsewhere, and is not gone.
    fn watch_anchor(&mut self, was_inside: bool, at_ms: u64) {
        match (was_inside, self.anchor_is_inside()) {
            (_, true) => self.anchor_gone_ms = None,
            (true, false) => self.anchor_gone_ms = Some(at_ms),
            (false, false) => {}
        }
    }

    /// What is owed to a user who comes back, oldest first.
    fn take_owed(&mut self, user: UserId, at_ms: u64) -> BTreeMap<MsgId, u32> {
        let owed = self.owed.remove(&user).unwrap_or_default();
        let in_time = |owed: &Owed| at_ms < owed.at_ms.saturating_add(OWED_KEPT_MS);
        owed.into_iter().filter(in_time).map(|owed| (owed.msg_id, owed.sends)).collect()
    }

    fn forget_departed(&mut self, at_ms: u64) {
        self.departed.retain(|d| at_ms < d.at_ms.saturating_add(OWED_KEPT_MS));
    }
}

/// FNV-1a, 64 bits: written down in snapshots, so it must not change with the compiler.
fn hash_of(name: &ClientMsgId) -> u64 {
    name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn step_out(inside: &mut HashMap<UserId, u32>, user: UserId) {
    if let Some(connections) = inside.get_mut(&user) {
        *connections -= 1;
        if *connections == 0 {
            inside.remove(&user);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use qiyu_nats::{
        event::{Ending, Sender},
        measure::Measure,
    };

    use super::*;

    fn app() -> AppId {
        "10001".parse().unwrap()
    }

    fn room() -> RoomId {
        "7".parse().unwrap()
    }

    fn user(n: u64) -> UserId {
        (10_000 + n).try_into().unwrap()
    }

    fn conn(n: u64) -> ConnId {
        ConnId(NonZeroU64::new(n).unwrap())
    }

    fn gateway(id: &str, epoch: u64) -> Incarnation {
        Incarnation { id: id.parse().unwrap(), epoch }
    }

    /// A log under construction, and the fold of it.
    #[derive(Default)]
    struct Partition {
        seq: u64,
        fold: Fold,
    }

    impl Partition {
        fn folds(&mut self, event: Event) -> Vec<Effect> {
            self.seq += 1;
            self.fold.apply(MsgId::at(self.seq), Record { v: 1, at_ms: self.seq, event }).unwrap()
        }

        fn here(&self) -> MsgId {
            MsgId::at(self.seq)
        }

        fn moves(&mut self, gateway: &Incarnation, changes: &[MemberChange]) -> Vec<Effect> {
            let (app, room, gateway) = (app(), room(), gateway.clone());
            self.folds(Event::MembersChanged { app, room, gateway, changes: changes.to_vec() })
        }

        fn session(&mut self, gateway: &Incarnation, change: SessionChange) -> Vec<Effect> {
            let (app, gateway, changes) = (app(), gateway.clone(), vec![change]);
            self.folds(Event::SessionsChanged { app, gateway, changes })
        }

        fn says(&mut self, from: u64) -> Vec<Effect> {
            let sender = sender(from);
            let (app, room, data) = (app(), room(), "{}".into());
            self.folds(Event::RoomMessageSent { app, room, sender, biz_code: 5555, data })
        }

        fn writes(&mut self, to: u64) -> Vec<Effect> {
            let (app, to, sender, data) = (app(), user(to), sender(99), "{}".into());
            self.folds(Event::DirectMessageSent { app, to, sender, biz_code: 5555, data })
        }
    }

    fn viewers(log: &Partition) -> Option<u64> {
        log.fold.counts(app(), room()).map(|counts| counts.watch_num)
    }

    fn sender(n: u64) -> Sender {
        Sender {
            user: Some(user(n)),
            gateway: Some(gateway("a", 1)),
            connection: Some(conn(1)),
            client_msg_id: None,
        }
    }

    fn joined(c: u64, u: u64) -> MemberChange {
        MemberChange::Joined { connection: conn(c), user: user(u), resumed: false }
    }

    fn left(c: u64, u: u64) -> MemberChange {
        MemberChange::Left { connection: conn(c), user: user(u) }
    }

    fn online(c: u64, u: u64) -> SessionChange {
        SessionChange::Online { connection: conn(c), user: user(u), room: None }
    }

    fn offline(c: u64, u: u64) -> SessionChange {
        let reason = Ending::Disconnect;
        SessionChange::Offline { connection: conn(c), user: user(u), reason }
    }

    /// (gateway, msg, prev) of every room envelope among the effects.
    fn sent(effects: &[Effect]) -> Vec<(String, MsgId, MsgId)> {
        let room_envelope = |effect: &Effect| match effect {
            Effect::Deliver { to, envelope: Envelope::Room { msg_id, prev, .. } } => {
                Some((to.to_string(), *msg_id, *prev))
            }
            _ => None,
        };
        effects.iter().filter_map(room_envelope).collect()
    }

    #[test]
    fn a_message_goes_once_to_each_gateway_with_members_and_names_the_one_before() {
        let mut log = Partition::default();
        let (a, b) = (gateway("a", 1), gateway("b", 1));
        log.moves(&a, &[joined(1, 1), joined(2, 2)]);
        let in_a = log.here();
        let first = log.says(1);
        let m1 = log.here();
        assert_eq!(sent(&first), [("a.1".into(), m1, in_a)]);
        log.moves(&b, &[joined(1, 3)]);
        let in_b = log.here();
        let second = log.says(1);
        let m2 = log.here();
        assert_eq!(sent(&second), [("a.1".into(), m2, m1), ("b.1".into(), m2, in_b)]);
    }

    #[test]
    fn a_gateway_without_members_hears_nothing_and_starts_anew_when_it_has_some() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        log.moves(&a, &[joined(1, 1)]);
        log.moves(&a, &[left(1, 1)]);
        assert_eq!(log.says(2), []);
        log.moves(&a, &[joined(2, 1)]);
        let back = log.here();
        let heard = log.says(2);
        assert_eq!(sent(&heard), [("a.1".into(), log.here(), back)]);
    }

    #[test]
    fn the_dead_leave_every_room_and_their_last_words_mean_nothing() {
        let mut log = Partition::default();
        let (old, new) = (gateway("a", 1), gateway("a", 5));
        log.moves(&old, &[joined(1, 1)]);
        log.session(&old, online(1, 1));
        let ended = log.folds(Event::GatewayGone { gateway: old.clone() });
        assert_eq!(ended, [Effect::WentOffline { app: app(), user: user(1) }]);
        assert_eq!(log.moves(&old, &[joined(2, 2)]), []);
        assert_eq!(log.says(3), []);
        assert_eq!(viewers(&log), Some(0));
        log.moves(&new, &[joined(1, 1)]);
        assert_eq!(sent(&log.says(3)).len(), 1);
    }

    #[test]
    fn what_a_dead_gateway_owed_follows_its_people_wherever_they_come_back() {
        let mut log = Partition::default();
        let (dead, b, c) = (gateway("a", 1), gateway("b", 1), gateway("c", 1));
        log.folds(Event::RoomOpened {
            app: app(),
            room: room(),
            anchor: user(9),
            room_type: 1,
            name: String::new(),
            cover: String::new(),
        });
        log.moves(&dead, &[joined(1, 1), joined(2, 2), joined(3, 3)]);
        log.says(9);
        let lost = log.here();
        log.folds(Event::GatewayGone { gateway: dead.clone() });
        log.moves(&b, &[joined(1, 1)]);
        let messages = vec![UnackedMessage { msg_id: lost, users: None, sends: 1 }];
        let (app, room, gateway) = (app(), room(), dead);
        let left = Event::Unacknowledged { app, room, gateway, messages, keep: true };
        let repeat = |to: &Incarnation, c: u64| Effect::Repeat {
            to: to.clone(),
            app,
            room,
            msg_id: lost,
            sends: 1,
            connections: vec![conn(c)],
        };
        assert_eq!(log.folds(left), [repeat(&b, 1)]);
        assert_eq!(log.moves(&c, &[joined(5, 2)]), [repeat(&c, 5)]);
        assert_eq!(log.moves(&c, &[joined(6, 2)]), [], "once");
        let resumed = MemberChange::Joined { connection: conn(7), user: user(3), resumed: true };
        assert_eq!(log.moves(&c, &[resumed]), [], "the resume has it");
        assert_eq!(log.moves(&c, &[joined(8, 3)]), []);
    }

    #[test]
    fn what_somebody_left_unacknowledged_follows_them_only_if_they_are_back() {
        let mut log = Partition::default();
        let (a, b) = (gateway("a", 1), gateway("b", 1));
        log.moves(&a, &[joined(1, 1), joined(2, 2), joined(9, 9)]);
        log.says(9);
        let msg_id = log.here();
        log.moves(&a, &[left(1, 1), left(2, 2)]);
        log.moves(&b, &[joined(1, 1)]);
        log.moves(&b, &[joined(2, 1)]);
        let users = Some(vec![user(1), user(2)]);
        let messages = vec![UnackedMessage { msg_id, users, sends: 1 }];
        let (app, room, sends, connections) = (app(), room(), 1, vec![conn(2)]);
        let owed = Event::Unacknowledged { app, room, gateway: a.clone(), messages, keep: false };
        let repeat = Effect::Repeat { to: b, app, room, msg_id, sends, connections };
        assert_eq!(log.folds(owed), [repeat], "to one connection, the newest");
        assert_eq!(log.moves(&a, &[joined(3, 2)]), [], "too late");
    }

    #[test]
    fn a_newer_life_ends_the_older_one_unasked() {
        let mut log = Partition::default();
        log.moves(&gateway("a", 1), &[joined(1, 1)]);
        log.moves(&gateway("a", 2), &[joined(1, 2)]);
        let heard = sent(&log.says(3));
        assert_eq!(heard.iter().map(|(to, ..)| to.as_str()).collect::<Vec<_>>(), ["a.2"]);
        assert_eq!(viewers(&log), Some(1));
    }

    #[test]
    fn a_user_goes_offline_once_with_the_last_session() {
        let mut log = Partition::default();
        let (a, b) = (gateway("a", 1), gateway("b", 1));
        let came = [Effect::CameOnline { app: app(), user: user(1) }];
        let went = [Effect::WentOffline { app: app(), user: user(1) }];
        assert_eq!(log.session(&a, online(1, 1)), came);
        assert_eq!(log.session(&b, online(1, 1)), []);
        assert_eq!(log.session(&a, offline(1, 1)), []);
        assert_eq!(log.session(&a, offline(1, 1)), []);
        assert_eq!(log.session(&b, offline(1, 1)), went);
        assert_eq!(log.session(&b, offline(1, 1)), []);
    }

    #[test]
    fn what_is_written_to_someone_away_waits_until_it_is_read() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        assert!(matches!(log.writes(1)[..], [Effect::KeepForLater { .. }]));
        let first = log.here();
        log.writes(1);
        let second = log.here();
        let waiting = |connection, msg_ids: Vec<MsgId>| Effect::DeliverWaiting {
            to: a.clone(),
            app: app(),
            user: user(1),
            connection,
            msg_ids,
        };
        let login = log.session(&a, online(1, 1));
        assert_eq!(login[1], waiting(conn(1), vec![first, second]));
        let read = |ids: Vec<MsgId>| SessionChange::Read { user: user(1), msg_ids: ids };
        assert_eq!(log.session(&a, read(vec![first])), []);
        let again = log.session(&a, online(2, 1));
        assert_eq!(again, [waiting(conn(2), vec![second])]);
        let done = log.session(&a, read(vec![second, second])); // both were kept
        assert_eq!(done, [Effect::NothingWaits { app: app(), user: user(1) }]);
        assert_eq!(log.session(&a, online(3, 1)), []);
    }

    #[test]
    fn what_was_sent_and_never_read_is_kept_when_the_last_connection_goes() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        log.session(&a, online(1, 1));
        log.writes(1);
        let unread = log.here();
        let went = Effect::WentOffline { app: app(), user: user(1) };
        let msg_ids = vec![unread];
        let keep = Effect::KeepUnread { app: app(), user: user(1), msg_ids };
        assert_eq!(log.session(&a, offline(1, 1)), [went.clone(), keep]);
        log.session(&a, online(2, 1));
        assert_eq!(log.session(&a, offline(2, 1)), [went], "once");
    }

    #[test]
    fn one_envelope_serves_all_of_a_users_connections_on_a_gateway() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        log.session(&a, online(1, 1));
        log.session(&a, online(2, 1));
        log.writes(1);
        let first = log.here();
        let effects = log.writes(1);
        let [Effect::Deliver { envelope: Envelope::Direct { to, .. }, .. }] = &effects[..] else {
            panic!("{effects:?}");
        };
        let prev = Some(first);
        assert_eq!(to[..], [1, 2].map(|c| DirectTarget { connection: conn(c), prev }));
    }

    #[test]
    fn a_closed_room_is_silent_and_tells_latecomers_at_once() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        let (app, room) = (app(), room());
        log.moves(&a, &[joined(1, 1)]);
        let closing = Event::RoomClosed { app, room, by: None, peak: None, good_num: None };
        let told = log.folds(closing.clone());
        assert!(matches!(
            &told[..],
            [Effect::Deliver { envelope: Envelope::RoomClosed { late, .. }, .. }] if late.is_empty()
        ));
        assert_eq!(log.folds(closing), []);
        assert_eq!(log.says(1), []);
        let late = log.moves(&a, &[joined(2, 2)]);
        assert!(matches!(
            &late[..],
            [Effect::Deliver { envelope: Envelope::RoomClosed { late, .. }, .. }] if late == &[conn(2)]
        ));
        assert_eq!(viewers(&log), None);
    }

    #[test]
    fn viewers_are_users_each_counted_once() {
        let mut log = Partition::default();
        log.moves(&gateway("a", 1), &[joined(1, 1), joined(2, 1), joined(3, 2)]);
        log.moves(&gateway("b", 1), &[joined(1, 1)]);
        assert_eq!(viewers(&log), Some(2));
        log.moves(&gateway("a", 1), &[left(1, 1), left(2, 1), left(2, 1)]);
        assert_eq!(viewers(&log), Some(2));
        log.moves(&gateway("b", 1), &[left(1, 1)]);
        assert_eq!(viewers(&log), Some(1));
    }

    #[test]
    fn a_fold_read_back_from_its_bytes_is_the_same() {
        let mut log = Partition::default();
        let a = gateway("a", 1);
        log.moves(&a, &[joined(1, 1), joined(2, 2)]);
        log.session(&a, online(1, 1));
        log.writes(1);
        log.writes(5);
        log.fold.take_stirred();
        let bytes = qiyu_nats::codec::encode(&log.fold).unwrap();
        assert_eq!(qiyu_nats::codec::decode::<Fold>(&bytes).unwrap(), log.fold);
    }

    #[test]
    fn a_survey_does_not_see_who_has_forgotten_more() {
        let mut log = Partition::default();
        let (a, b) = (gateway("a", 1), gateway("b", 1));
        let survey = |fold: &Fold, at_ms| fold.survey(at_ms, None, usize::MAX).0;
        log.moves(&a, &[joined(1, 1), joined(2, 2)]);
        log.session(&a, online(1, 1));
        log.writes(5);
        log.folds(Event::GatewayGone { gateway: a });
        log.moves(&b, &[joined(3, 3)]);
        let (whole, later) = (log.fold.clone(), log.seq + OWED_KEPT_MS);
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
    fn a_name_used_twice_within_a_day_is_delivered_once() {
        let mut log = Partition::default();
        log.moves(&gateway("a", 1), &[joined(1, 1)]);
        let name: ClientMsgId = "tea".parse().unwrap();
        let said = |from: u64| Event::RoomMessageSent {
            app: app(),
            room: room(),
            sender: Sender { client_msg_id: Some(name.clone()), ..sender(from) },
            biz_code: 5555,
            data: "{}".into(),
        };
        assert_eq!(sent(&log.folds(said(1))).len(), 1);
        let first = log.here();
        assert_eq!(log.folds(said(1)), []);
        assert_eq!(log.fold.find_sent(app(), Some(user(1)), &name, 0), Some(first));
        assert_eq!(sent(&log.folds(said(2))).len(), 1, "another's name is another name");
        let mut by_the_server = said(1);
        if let Event::RoomMessageSent { sender, .. } = &mut by_the_server {
            (sender.gateway, sender.connection) = (None, None);
        }
        assert_eq!(sent(&log.folds(by_the_server.clone())).len(), 1, "nor is the server's");
        assert_eq!(log.folds(by_the_server), []);
        log.seq += SENT_KEPT_MS;
        assert_eq!(sent(&log.folds(said(1))).len(), 1, "a day later it is new");
        log.fold.forget(log.seq + SENT_KEPT_MS);
        assert_eq!(log.fold.find_sent(app(), Some(user(1)), &name, 0), None);
    }

    /// README, "Limits", and docs/RELIABILITY.md state this price.
    #[test]
    fn a_name_costs_24_bytes_in_memory_and_46_in_a_snapshot() {
        let mut fold = Fold::default();
        let size = |fold: &Fold| qiyu_nats::codec::encode(fold).unwrap().len();
        let empty = size(&fold);
        let at_ms = 1_800_000_000_000; // of a length like today's
        for number in 0..1000 {
            let name: ClientMsgId = format!("name-{number}").parse().unwrap();
            let sender = Sender { client_msg_id: Some(name), ..sender(1) };
            assert!(!fold.is_repeat(app(), &sender, MsgId::at(1 << 30), at_ms));
        }
        assert_eq!(size_of::<Sent>(), 24);
        let each = (size(&fold) - empty) as f64 / 1000.0;
        assert!((each - 46.0).abs() < 1.0, "{each} bytes");
    }

    #[test]
    fn an_anchor_is_gone_from_when_they_leave_until_they_are_back() {
        let mut log = Partition::default();
        let (app, room, a) = (app(), room(), gateway("a", 1));
        let (name, cover) = (String::new(), String::new());
        log.folds(Event::RoomOpened { app, room, anchor: user(9), room_type: 1, name, cover });
        let abandoned = |log: &Partition| log.fold.abandoned(u64::MAX).count();
        assert_eq!(abandoned(&log), 0, "who never came is not gone");
        log.moves(&a, &[joined(1, 9), joined(2, 9), joined(3, 1)]);
        log.moves(&a, &[left(1, 9)]);
        assert_eq!(abandoned(&log), 0, "there is a second device");
        log.moves(&a, &[left(2, 9)]);
        let gone = log.seq;
        assert_eq!(log.fold.abandoned(gone).count(), 0, "not before");
        assert_eq!(log.fold.abandoned(gone + 1).collect::<Vec<_>>(), [(app, room)]);
        log.moves(&a, &[left(3, 1)]);
        assert_eq!(log.fold.abandoned(gone + 1).count(), 1, "others change nothing");
        log.moves(&a, &[joined(4, 9)]);
        assert_eq!(abandoned(&log), 0);
        log.folds(Event::GatewayGone { gateway: a });
        assert_eq!(abandoned(&log), 1, "with the gateway");
        log.folds(Event::RoomClosed { app, room, by: None, peak: None, good_num: None });
        assert_eq!(abandoned(&log), 0);
    }

    #[test]
    fn members_are_listed_in_order_page_by_page() {
        let mut log = Partition::default();
        let users = [5, 3, 9, 1, 3].map(|n| joined(20 + n, n));
        log.moves(&gateway("a", 1), &users);
        let page =
            |after: Option<u64>, limit| log.fold.members(app(), room(), after.map(user), limit);
        assert_eq!(page(None, 2), (vec![user(1), user(3)], 4));
        assert_eq!(page(Some(3), 2), (vec![user(5), user(9)], 4));
        assert_eq!(page(Some(9), 2), (vec![], 4));
    }

    #[test]
    fn measures_are_folded_where_they_belong_and_end_with_the_room() {
        let mut log = Partition::default();
        let (app, room, user) = (app(), room(), user(1));
        let take = |room| Event::MeasureTaken {
            app,
            room,
            user,
            measure: Measure::Mute,
            until_ms: None,
            reason: "loud".into(),
            by: None,
        };
        log.folds(take(None));
        log.folds(take(Some(room)));
        assert!(log.fold.rooms.is_empty(), "of a room nobody knows nothing is kept");
        log.moves(&gateway("a", 1), &[joined(1, 1)]);
        log.folds(take(Some(room)));
        assert!(log.fold.measures[&(app, user)].is_muted(0));
        assert!(log.fold.rooms[&(app, room)].measures[&user].is_muted(0));
        log.folds(Event::MeasureLifted { app, room: None, user, measure: Measure::Mute, by: None });
        assert!(!log.fold.measures[&(app, user)].is_muted(0));
        log.fold.forget(log.seq + MEASURE_KEPT_MS + 1);
        assert!(log.fold.measures.is_empty());
        assert!(log.fold.rooms[&(app, room)].measures[&user].is_muted(0), "it holds for ever");
        log.folds(Event::RoomClosed { app, room, by: None, peak: None, good_num: None });
        assert!(log.fold.rooms[&(app, room)].measures.is_empty());
    }

    #[test]
    fn a_kind_of_the_future_is_set_aside() {
        let record = Record { v: 9, at_ms: 0, event: Event::Unknown };
        assert_eq!(Fold::default().apply(MsgId::at(1), record), None);
    }
}
