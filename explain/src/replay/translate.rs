//! Translates events of one log into events of another.
//!
//! Rooms and users keep their ids, and so their partitions. Positions change, because the
//! other log assigns its own. Gateways get unique names and an end of their own, because
//! they do not run there. clientMsgIds get a prefix, because the other log may know them
//! from an earlier replay. Times move with the window.

use std::collections::{BTreeMap, BTreeSet};

use qiyu_nats::log::LogEntry;
use qiyu_schema::{
    GatewayId, Incarnation, MsgId, Partition,
    event::{Event, MemberChange, Record, Sender, SessionChange, UnackedMessage},
    subject,
};

/// Message ids kept for later references by reads and unacknowledged messages.
const POSITIONS_MAX: usize = 1_000_000;
/// Characters of an id or a name, at most.
const NAME_CHARS_MAX: usize = 64;

/// Translates one window into one log.
#[derive(Debug)]
pub(crate) struct Translator {
    /// A prefix that is unique among all replays.
    run: String,
    positions: BTreeMap<MsgId, MsgId>,
    /// Incarnations by their old names, and the partitions that know the new ones.
    gateways: BTreeMap<Incarnation, (Incarnation, BTreeSet<Partition>)>,
}

/// The result of a translation.
#[derive(Debug)]
pub(crate) enum Translated {
    /// The translated event.
    Event { subject: String, record: Box<Record> },
    /// No event: it refers to something that the other log lacks.
    Meaningless,
    /// The event is of a kind that this build does not know.
    Unknown,
}

impl Translator {
    /// `run`: unique among all replays into this log; short.
    pub(crate) fn new(run: String) -> Self {
        Self { run, positions: BTreeMap::new(), gateways: BTreeMap::new() }
    }

    /// Translates `entry` as if it happened at `now_ms`.
    pub(crate) fn translate(&mut self, entry: &LogEntry, now_ms: u64) -> Translated {
        let Ok(mut record) = entry.record() else { return Translated::Unknown };
        let Some(partition) = entry.partition() else { return Translated::Unknown };
        let mut subject = entry.subject.clone();
        match &mut record.event {
            Event::Unknown => return Translated::Unknown,
            Event::RoomOpened { .. } | Event::RoomClosed { .. } | Event::SanctionLifted { .. } => {}
            Event::RoomMessageSent { sender, .. }
            | Event::DirectMessageSent { sender, .. }
            | Event::BusinessSent { sender, .. }
            | Event::ContentRefused { sender, .. } => self.rename_sender(sender),
            // A gateway without members or sessions needs no end.
            Event::RoomLiked { gateway, .. } => *gateway = self.named(gateway),
            Event::MembersChanged { gateway, changes, .. } => {
                *gateway = self.met(gateway, partition);
                for change in changes.iter_mut() {
                    if let MemberChange::Left { last_seen, .. } = change {
                        *last_seen = last_seen.and_then(|id| self.position(id));
                    }
                }
            }
            Event::SessionsChanged { gateway, changes, .. } => {
                *gateway = self.met(gateway, partition);
                for change in changes.iter_mut() {
                    if let SessionChange::Read { msg_ids, .. } = change {
                        *msg_ids = msg_ids.iter().filter_map(|id| self.position(*id)).collect();
                    }
                }
            }
            Event::Unacknowledged { gateway, messages, .. } => {
                *gateway = self.named(gateway);
                let known = |message: UnackedMessage| {
                    Some(UnackedMessage { msg_id: self.position(message.msg_id)?, ..message })
                };
                *messages = std::mem::take(messages).into_iter().filter_map(known).collect();
                if messages.is_empty() {
                    return Translated::Meaningless;
                }
            }
            Event::GatewayGone { gateway } => {
                let Some((new, _)) = self.gateways.get(gateway) else {
                    return Translated::Meaningless;
                };
                *gateway = new.clone();
                subject = subject::gateway_gone(partition, &gateway.id);
            }
            Event::SanctionImposed { until_ms, .. } => {
                let left = |until: u64| until.saturating_sub(record.at_ms);
                *until_ms = until_ms.map(|until| now_ms.saturating_add(left(until)));
            }
        }
        record.at_ms = now_ms;
        Translated::Event { subject, record: Box::new(record) }
    }

    /// Returns the deduplication key of an entry, equal on every attempt.
    pub(crate) fn key(&self, entry: &LogEntry) -> String {
        format!("replay:{}:{}:{}", self.run, entry.seq, entry.subject)
    }

    /// Records the id of a message in the other log.
    pub(crate) fn stored(&mut self, old: MsgId, new: MsgId) {
        if POSITIONS_MAX <= self.positions.len() {
            self.positions.pop_first();
        }
        self.positions.insert(old, new);
    }

    /// Returns the end of every replayed incarnation, so that its members do not stay
    /// in a room.
    pub(crate) fn ends(&self) -> Vec<(String, Record)> {
        let lives = self.gateways.values();
        let ends = lives.flat_map(|(gateway, partitions)| {
            partitions.iter().map(move |partition| {
                let subject = subject::gateway_gone(*partition, &gateway.id);
                (
                    subject,
                    Record::at(
                        qiyu_nats::now_ms(),
                        Event::GatewayGone { gateway: gateway.clone() },
                    ),
                )
            })
        });
        ends.collect()
    }

    fn position(&self, old: MsgId) -> Option<MsgId> {
        self.positions.get(&old).copied()
    }

    fn rename_sender(&self, sender: &mut Sender) {
        sender.gateway = sender.gateway.as_ref().map(|gateway| self.named(gateway));
        sender.client_msg_id = sender
            .client_msg_id
            .as_ref()
            .and_then(|name| self.prefixed(name.as_str()).parse().ok());
    }

    fn met(&mut self, old: &Incarnation, partition: Partition) -> Incarnation {
        let new = self.named(old);
        let (_, partitions) =
            self.gateways.entry(old.clone()).or_insert_with(|| (new.clone(), BTreeSet::new()));
        partitions.insert(partition);
        new
    }

    /// Renames an incarnation. The epoch stays: a newer incarnation still ends the
    /// older ones.
    fn named(&self, old: &Incarnation) -> Incarnation {
        let id = self.prefixed(old.id.as_str()).parse::<GatewayId>();
        Incarnation { id: id.unwrap_or_else(|_| old.id.clone()), epoch: old.epoch }
    }

    /// Prefixes a name. Where the whole is too long its end is kept, because names
    /// count up there.
    fn prefixed(&self, name: &str) -> String {
        let room = NAME_CHARS_MAX - self.run.len() - 1;
        let end = &name[name.len().saturating_sub(room)..];
        format!("{}-{end}", self.run)
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::{
        AppId, RoomId, UserId, codec, event::VERSION, sanction::SanctionKind, subject::RoomKind,
    };

    use super::*;

    fn app() -> AppId {
        "10001".parse().unwrap()
    }

    fn room() -> RoomId {
        "7".parse().unwrap()
    }

    fn user() -> UserId {
        "100001".parse().unwrap()
    }

    fn gateway() -> Incarnation {
        Incarnation { id: "g1".parse().unwrap(), epoch: 5 }
    }

    fn entry(seq: u64, kind: RoomKind, event: Event) -> LogEntry {
        let payload = codec::encode(&Record { v: VERSION, at_ms: 1_000, event }).unwrap();
        let subject = subject::room(app(), room(), kind);
        LogEntry { seq, subject, payload, pending: 0, written_ms: 1_000 }
    }

    fn event(translated: Translated) -> (String, Event) {
        let Translated::Event { subject, record } = translated else { panic!("{translated:?}") };
        assert_eq!(record.at_ms, 9_000);
        (subject, record.event)
    }

    #[test]
    fn lives_get_names_of_their_own_and_an_end() {
        let mut translator = Translator::new("r1".to_owned());
        let (app, room, old) = (app(), room(), gateway());
        let gone = Event::GatewayGone { gateway: old.clone() };
        let never_met = translator.translate(&entry(1, RoomKind::Members, gone.clone()), 9_000);
        assert!(matches!(never_met, Translated::Meaningless), "nobody of it is there");
        let changes = vec![MemberChange::Left {
            connection: qiyu_schema::ConnId(std::num::NonZeroU64::MIN),
            user: user(),
            last_seen: Some(MsgId::at(1)),
        }];
        let moved = Event::MembersChanged { app, room, gateway: old.clone(), changes };
        let moved = translator.translate(&entry(2, RoomKind::Members, moved), 9_000);
        let (_, Event::MembersChanged { gateway: new, .. }) = event(moved) else { panic!() };
        assert_eq!(new.to_string(), "r1-g1.5");
        let (subject, ended) =
            event(translator.translate(&entry(3, RoomKind::Members, gone), 9_000));
        assert_eq!(ended, Event::GatewayGone { gateway: new.clone() });
        assert!(subject.ends_with(".gateway.r1-g1.gone"), "{subject}");
        let [(_, end)] = &translator.ends()[..] else { panic!() };
        assert_eq!(end.event, Event::GatewayGone { gateway: new });
    }

    #[test]
    fn ids_are_those_of_the_other_log_and_times_move_along() {
        let mut translator = Translator::new("r1".to_owned());
        let (app, room) = (app(), room());
        translator.stored(MsgId::at(4), MsgId::at(400));
        let unacked = |seq| UnackedMessage { msg_id: MsgId::at(seq), users: None, sends: 1 };
        let messages = vec![unacked(4), unacked(5)];
        let owed = Event::Unacknowledged { app, room, gateway: gateway(), messages, keep: true };
        let owed = translator.translate(&entry(6, RoomKind::Unacked, owed), 9_000);
        let (_, Event::Unacknowledged { messages, .. }) = event(owed) else { panic!() };
        assert_eq!(messages, [unacked(400)]);

        let (sanction, reason, by) = (SanctionKind::Mute, String::new(), None);
        let until_ms = Some(61_000);
        let room = Some(room);
        let muted =
            Event::SanctionImposed { app, room, user: user(), sanction, until_ms, reason, by };
        let muted = translator.translate(&entry(7, RoomKind::Sanctions, muted), 9_000);
        let (_, Event::SanctionImposed { until_ms, .. }) = event(muted) else { panic!() };
        assert_eq!(until_ms, Some(69_000), "a minute is a minute");
    }

    #[test]
    fn long_names_stay_names() {
        let translator = Translator::new("r1".to_owned());
        let long = format!("{}-17", "x".repeat(61));
        let named = translator.prefixed(&long);
        assert_eq!(named.len(), NAME_CHARS_MAX);
        assert!(named.starts_with("r1-") && named.ends_with("-17"));
    }
}
