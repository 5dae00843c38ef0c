//! Seed events: events that bring an empty fold to the state of a room.
//!
//! A capsule and a sandbox begin somewhere in a room's life. The state before it is
//! expressed in the log's own events, which every build reads.

use std::collections::BTreeMap;

use qiyu_nats::log::LogEntry;
use qiyu_schema::{
    AppId, GatewayId, Incarnation, MsgId, RoomId, UserId, codec,
    event::{Event, MemberChange, Record, VERSION},
    sanction::{Sanction, SanctionEntry, SanctionKind},
    subject::{self, RoomKind},
};

use super::room_snapshot::RoomSnapshot;

/// Returns the events that bring an empty fold to `snapshot`, in the order in which to
/// apply them. Members that left, and since when the anchor is gone, are not included.
pub(crate) fn seed_events(snapshot: &RoomSnapshot) -> Vec<LogEntry> {
    let Some(state) = &snapshot.state else { return Vec::new() };
    let (app, room) = (snapshot.app, snapshot.room);
    let mut told = Vec::new();
    if let Some(anchor) = state.anchor {
        let (name, cover) = (snapshot.name.clone().unwrap_or_default(), String::new());
        let opened = Event::RoomOpened { app, room, anchor, room_type: 1, name, cover };
        told.push(entry(
            MsgId::at(0),
            snapshot.at_ms,
            room_subject(app, room, RoomKind::Opened),
            opened,
        ));
    }
    let mut joined: BTreeMap<(MsgId, Incarnation), Vec<MemberChange>> = BTreeMap::new();
    for member in &state.members {
        let (connection, user) = (member.connection, member.user);
        let change = MemberChange::Joined { connection, user, resumed: false };
        joined.entry((member.joined, member.gateway.clone())).or_default().push(change);
    }
    for ((position, gateway), changes) in joined {
        let event = Event::MembersChanged { app, room, gateway, changes };
        let subject = room_subject(app, room, RoomKind::Members);
        told.push(entry(position, snapshot.at_ms, subject, event));
    }
    if 0 < state.counts.good_num {
        let gateway = state.members.first().map(|member| member.gateway.clone());
        let gateway = gateway.unwrap_or_else(nobody);
        let event = Event::RoomLiked { app, room, gateway, count: state.counts.good_num };
        let subject = room_subject(app, room, RoomKind::Likes);
        told.push(entry(snapshot.position, snapshot.at_ms, subject, event));
    }
    for (user, measures) in &state.measures {
        let subject = room_subject(app, room, RoomKind::Sanctions);
        told.extend(taken(app, Some(room), *user, measures, &subject));
    }
    for (user, measures) in &snapshot.everywhere {
        told.extend(taken(
            app,
            None,
            *user,
            measures,
            &subject::user(app, *user, subject::UserKind::Sanctions),
        ));
    }
    if let Some((position, at_ms)) = state.closed {
        let closed = Event::RoomClosed { app, room, by: None, peak: None, good_num: None };
        told.push(entry(position, at_ms, room_subject(app, room, RoomKind::Closed), closed));
    }
    told.sort_by_key(|entry| entry.seq);
    told
}

fn taken(
    app: AppId,
    room: Option<RoomId>,
    user: UserId,
    entry_of: &SanctionEntry,
    subject: &str,
) -> Vec<LogEntry> {
    let named = [
        (SanctionKind::Mute, &entry_of.mute),
        (SanctionKind::Ban, &entry_of.ban),
        (SanctionKind::Kick, &entry_of.kick),
    ];
    let mut told = Vec::new();
    for (sanction, taken) in named {
        let Some(Sanction { msg_id, at_ms, until_ms, reason, by }) = taken.clone() else {
            continue;
        };
        let event = Event::SanctionImposed { app, room, user, sanction, until_ms, reason, by };
        told.push(entry(msg_id, at_ms, subject.to_owned(), event));
    }
    // A sanction entry accepts only newer events.
    told.sort_by_key(|entry| entry.seq);
    told
}

fn room_subject(app: AppId, room: RoomId, kind: RoomKind) -> String {
    subject::room(app, room, kind)
}

fn entry(position: MsgId, at_ms: u64, subject: String, event: Event) -> LogEntry {
    let record = Record { v: VERSION, at_ms, event };
    let payload = codec::encode(&record).expect("plain data encodes");
    LogEntry { seq: position.seq(), subject, payload, pending: 0, written_ms: at_ms }
}

/// The gateway of likes without an origin.
fn nobody() -> Incarnation {
    let id: GatewayId = "nobody".parse().expect("a name");
    Incarnation { id, epoch: 0 }
}
