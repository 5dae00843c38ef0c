//! A small log under construction, for the tests of the rules.

use std::num::NonZeroU64;

use qiyu_schema::{
    AppId, ConnId, Incarnation, MsgId, RoomId, UserId,
    envelope::Envelope,
    event::{DisconnectReason, Event, MemberChange, Record, Sender, SessionChange},
};

use super::{Effect, Fold};

pub(super) fn app() -> AppId {
    "10001".parse().unwrap()
}

pub(super) fn room() -> RoomId {
    "7".parse().unwrap()
}

pub(super) fn user(n: u64) -> UserId {
    (10_000 + n).try_into().unwrap()
}

pub(super) fn conn(n: u64) -> ConnId {
    ConnId(NonZeroU64::new(n).unwrap())
}

pub(super) fn gateway(id: &str, epoch: u64) -> Incarnation {
    Incarnation { id: id.parse().unwrap(), epoch }
}

/// A log under construction, and the fold of it.
#[derive(Default)]
pub(super) struct Partition {
    pub(super) seq: u64,
    pub(super) fold: Fold,
}

impl Partition {
    pub(super) fn folds(&mut self, event: Event) -> Vec<Effect> {
        self.seq += 1;
        self.fold.apply(MsgId::at(self.seq), Record { v: 1, at_ms: self.seq, event }).unwrap()
    }

    pub(super) fn here(&self) -> MsgId {
        MsgId::at(self.seq)
    }

    pub(super) fn moves(&mut self, gateway: &Incarnation, changes: &[MemberChange]) -> Vec<Effect> {
        let (app, room, gateway) = (app(), room(), gateway.clone());
        self.folds(Event::MembersChanged { app, room, gateway, changes: changes.to_vec() })
    }

    pub(super) fn session(&mut self, gateway: &Incarnation, change: SessionChange) -> Vec<Effect> {
        let (app, gateway, changes) = (app(), gateway.clone(), vec![change]);
        self.folds(Event::SessionsChanged { app, gateway, changes })
    }

    pub(super) fn says(&mut self, from: u64) -> Vec<Effect> {
        let sender = sender(from);
        let (app, room, data) = (app(), room(), "{}".into());
        self.folds(Event::RoomMessageSent { app, room, sender, biz_code: 5555, data })
    }

    pub(super) fn writes(&mut self, to: u64) -> Vec<Effect> {
        let (app, to, sender, data) = (app(), user(to), sender(99), "{}".into());
        self.folds(Event::DirectMessageSent { app, to, sender, biz_code: 5555, data })
    }
}

pub(super) fn viewers(log: &Partition) -> Option<u64> {
    log.fold.counts(app(), room()).map(|counts| counts.watch_num)
}

pub(super) fn sender(n: u64) -> Sender {
    Sender {
        user: Some(user(n)),
        gateway: Some(gateway("a", 1)),
        connection: Some(conn(1)),
        client_msg_id: None,
    }
}

pub(super) fn joined(c: u64, u: u64) -> MemberChange {
    MemberChange::Joined { connection: conn(c), user: user(u), resumed: false }
}

pub(super) fn left(c: u64, u: u64) -> MemberChange {
    MemberChange::Left { connection: conn(c), user: user(u), last_seen: None }
}

pub(super) fn online(c: u64, u: u64) -> SessionChange {
    SessionChange::Online { connection: conn(c), user: user(u), room: None }
}

pub(super) fn offline(c: u64, u: u64) -> SessionChange {
    let reason = DisconnectReason::Disconnect;
    SessionChange::Offline { connection: conn(c), user: user(u), reason }
}

/// (gateway, msg, prev) of every room envelope among the effects.
pub(super) fn sent(effects: &[Effect]) -> Vec<(String, MsgId, MsgId)> {
    let room_envelope = |effect: &Effect| match effect {
        Effect::Deliver { to, envelope: Envelope::Room { msg_id, prev, .. } } => {
            Some((to.to_string(), *msg_id, *prev))
        }
        _ => None,
    };
    effects.iter().filter_map(room_envelope).collect()
}
