//! Sanctions of moderators as this gateway knows them: mutes and bans for the
//! checks, and changes for the connections that are there.
//!
//! The sanctions in force are in a mirror of the bucket `measures`.

use std::collections::{HashMap, HashSet};

use qiyu_nats::bucket::{KvEntry, Mirror};
use qiyu_schema::{
    AppId, MsgId, RoomId, UserId, codec,
    sanction::{self, Sanction, SanctionEntry},
};
use tokio::sync::watch;

/// The sanctions in force.
#[derive(Clone)]
pub(crate) struct Sanctions(Mirror);

impl Sanctions {
    pub(crate) fn new(mirror: Mirror) -> Self {
        Self(mirror)
    }

    /// Returns whether the user is muted in the room or in the whole app.
    pub(crate) fn is_muted(&self, app: AppId, room: Option<RoomId>, user: UserId) -> bool {
        let now_ms = qiyu_nats::now_ms();
        self.any(app, room, user, |entry| entry.is_muted(now_ms))
    }

    /// Returns whether the user is banned from the room or from the whole app.
    pub(crate) fn is_banned(&self, app: AppId, room: Option<RoomId>, user: UserId) -> bool {
        let now_ms = qiyu_nats::now_ms();
        self.any(app, room, user, |entry| entry.is_banned(now_ms))
    }

    /// Returns a signal that fires after each change of the bucket.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.changes()
    }

    fn any(
        &self,
        app: AppId,
        room: Option<RoomId>,
        user: UserId,
        holds: impl Fn(&SanctionEntry) -> bool,
    ) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let entry = |room| decode(self.0.get(&sanction::key(app, room, user)).as_deref());
        entry(None).is_some_and(|entry| holds(&entry))
            || room.is_some_and(|room| entry(Some(room)).is_some_and(|entry| holds(&entry)))
    }
}

fn decode(value: Option<&[u8]>) -> Option<SanctionEntry> {
    codec::decode(value?).ok()
}

/// A change of the sanctions against one user.
#[derive(Debug, PartialEq)]
pub(crate) struct UserSanctionChange {
    pub(crate) app: AppId,
    /// `None`: the whole app.
    pub(crate) room: Option<RoomId>,
    pub(crate) user: UserId,
    pub(crate) change: SanctionChange,
}

/// The difference between two states of the sanctions against one user.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SanctionChange {
    pub(crate) kicked: Option<Sanction>,
    pub(crate) banned: Option<Sanction>,
    /// `Some(None)`: the mute was lifted.
    pub(crate) mute: Option<Option<Sanction>>,
}

impl SanctionChange {
    fn between(before: &SanctionEntry, after: &SanctionEntry, now_ms: u64) -> Self {
        let id = |sanction: &Option<Sanction>| sanction.as_ref().map(|sanction| sanction.msg_id);
        let newer = |a: Option<MsgId>, b: Option<MsgId>| a < b;
        let banned = after.ban.clone().filter(|ban| ban.is_active(now_ms));
        let mute = after.mute.clone().filter(|mute| mute.is_active(now_ms));
        Self {
            kicked: after.kick.clone().filter(|_| newer(id(&before.kick), id(&after.kick))),
            banned: banned.filter(|_| newer(id(&before.ban), id(&after.ban))),
            mute: (id(&before.mute) != id(&mute)).then_some(mute),
        }
    }
}

/// Compares the bucket with its state of before, so that a gateway that was cut
/// off makes up for the changes it missed.
#[derive(Default)]
pub(crate) struct SanctionTracker {
    known: HashMap<String, KnownEntry>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct KnownEntry {
    revision: u64,
    entry: SanctionEntry,
}

impl SanctionTracker {
    /// Returns the changes since the last call.
    pub(crate) fn take_changes(&mut self, sanctions: &Sanctions) -> Vec<UserSanctionChange> {
        let now_ms = qiyu_nats::now_ms();
        let all = sanctions.0.all();
        let keys: HashSet<&String> = all.iter().map(|(key, _)| key).collect();
        self.known.retain(|key, _| keys.contains(key));
        let mut changes = Vec::new();
        for (key, KvEntry { revision, value }) in &all {
            let known = self.known.entry(key.clone()).or_default();
            if known.revision == *revision {
                continue;
            }
            let Some(after) = decode(value.as_deref()) else { continue };
            let change = SanctionChange::between(&known.entry, &after, now_ms);
            *known = KnownEntry { revision: *revision, entry: after };
            if change != SanctionChange::default()
                && let Some((app, room, user)) = sanction::parse_key(key)
            {
                changes.push(UserSanctionChange { app, room, user, change });
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::sanction::SanctionKind;

    use super::*;

    fn sanction(seq: u64, until_ms: Option<u64>) -> Sanction {
        Sanction { msg_id: MsgId::at(seq), at_ms: 0, until_ms, reason: String::new(), by: None }
    }

    fn entry(steps: &[(SanctionKind, Option<Sanction>, u64)]) -> SanctionEntry {
        let mut entry = SanctionEntry::default();
        for (kind, sanction, seq) in steps {
            match sanction {
                Some(sanction) => entry.impose(*kind, sanction.clone()),
                None => entry.lift(*kind, MsgId::at(*seq)),
            };
        }
        entry
    }

    #[test]
    fn a_change_holds_only_sanctions_that_are_new_and_in_force() {
        use SanctionKind::{Ban, Kick, Mute};
        let (none, mute, ban) =
            (SanctionEntry::default(), sanction(1, None), sanction(2, Some(100)));
        let muted = entry(&[(Mute, Some(mute.clone()), 1)]);
        let unmuted = entry(&[(Mute, Some(mute.clone()), 1), (Mute, None, 2)]);
        let banned = entry(&[(Mute, Some(mute.clone()), 1), (Ban, Some(ban.clone()), 2)]);
        let kicked = entry(&[(Kick, Some(sanction(3, None)), 3)]);
        let kicked_again = entry(&[(Kick, Some(sanction(4, None)), 4)]);
        let no_change = SanctionChange::default;
        let mute_change = |mute| SanctionChange { mute: Some(mute), ..no_change() };
        let kick = |seq| SanctionChange { kicked: Some(sanction(seq, None)), ..no_change() };
        for (before, after, expected) in [
            (&none, &none, no_change()),
            (&none, &muted, mute_change(Some(mute))),
            (&muted, &muted, no_change()),
            (&muted, &unmuted, mute_change(None)),
            (&muted, &banned, SanctionChange { banned: Some(ban), ..no_change() }),
            (&none, &kicked, kick(3)),
            (&kicked, &kicked, no_change()),
            (&kicked, &kicked_again, kick(4)),
        ] {
            let change = SanctionChange::between(before, after, 50);
            assert_eq!(change, expected, "{before:?} {after:?}");
        }
        let late = SanctionChange::between(&muted, &banned, 100);
        assert_eq!(late, no_change(), "the ban has expired");
    }
}
