//! Sanctions on users: mutes, kicks and bans, in a room or in a whole app.
//!
//! The log is the source of truth. The bucket `measures` holds the fold of the
//! log by user, so that a process that enforces a sanction need not read the log.

use serde::{Deserialize, Serialize};

use crate::id::{AppId, MsgId, RoomId, UserId};

/// The kinds of sanctions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SanctionKind {
    /// The user's messages are refused with 4010.
    Mute,
    /// The user's connections are closed once; the user may join again.
    Kick,
    /// The user's connections are closed, and the user may not join again.
    Ban,
    /// A kind newer than this build.
    #[serde(other)]
    Unknown,
}

/// A sanction as it was imposed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sanction {
    /// Position of its event in the log.
    pub msg_id: MsgId,
    /// Writer's clock, ms since 1970.
    pub at_ms: u64,
    /// End, ms since 1970. `None`: until it is lifted.
    pub until_ms: Option<u64>,
    /// For display; may be empty.
    pub reason: String,
    /// The anchor that imposed it. `None`: the server API.
    pub by: Option<UserId>,
}

impl Sanction {
    /// Whether the sanction has not ended at `now_ms`.
    pub fn is_active(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until| now_ms < until)
    }
}

/// The sanctions on one user, as the bucket `measures` holds them under [`key`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SanctionEntry {
    /// The newest event applied. Older events change nothing.
    pub folded: Option<MsgId>,
    pub mute: Option<Sanction>,
    pub ban: Option<Sanction>,
    /// The latest kick.
    pub kick: Option<Sanction>,
}

impl SanctionEntry {
    /// Applies an imposed sanction. `false`: this or a newer event was applied before.
    pub fn impose(&mut self, kind: SanctionKind, sanction: Sanction) -> bool {
        if !self.advance(sanction.msg_id) {
            return false;
        }
        match kind {
            SanctionKind::Mute => self.mute = Some(sanction),
            SanctionKind::Ban => self.ban = Some(sanction),
            SanctionKind::Kick => self.kick = Some(sanction),
            SanctionKind::Unknown => {}
        }
        true
    }

    /// Applies a lifted sanction. `false`: this or a newer event was applied before.
    pub fn lift(&mut self, kind: SanctionKind, msg_id: MsgId) -> bool {
        if !self.advance(msg_id) {
            return false;
        }
        match kind {
            SanctionKind::Mute => self.mute = None,
            SanctionKind::Ban => self.ban = None,
            SanctionKind::Kick | SanctionKind::Unknown => {}
        }
        true
    }

    /// Whether a mute is active at `now_ms`.
    pub fn is_muted(&self, now_ms: u64) -> bool {
        self.mute.as_ref().is_some_and(|mute| mute.is_active(now_ms))
    }

    /// Whether a ban is active at `now_ms`.
    pub fn is_banned(&self, now_ms: u64) -> bool {
        self.ban.as_ref().is_some_and(|ban| ban.is_active(now_ms))
    }

    /// Returns the end of the last sanction, ms since 1970. `None`: one has no end.
    pub fn ends_ms(&self) -> Option<u64> {
        let lasting = [&self.mute, &self.ban].into_iter().flatten();
        lasting.map(|one| one.until_ms).try_fold(0, |latest, until| Some(latest.max(until?)))
    }

    fn advance(&mut self, msg_id: MsgId) -> bool {
        if self.folded.is_some_and(|folded| msg_id <= folded) {
            return false;
        }
        self.folded = Some(msg_id);
        true
    }
}

/// Returns a user's key in the bucket `measures`. `room` is `None` for the whole app.
pub fn key(app: AppId, room: Option<RoomId>, user: UserId) -> String {
    format!("{app}.{}.{user}", room.map_or(0, RoomId::get))
}

/// Returns the scope and the user that [`key`] made `key` for.
pub fn parse_key(key: &str) -> Option<(AppId, Option<RoomId>, UserId)> {
    let mut parts = key.split('.');
    let app = parts.next()?.parse().ok()?;
    let room = match parts.next()? {
        "0" => None,
        room => Some(room.parse().ok()?),
    };
    let user = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some((app, room, user))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sanction(seq: u64, until_ms: Option<u64>) -> Sanction {
        Sanction { msg_id: MsgId::at(seq), at_ms: 1, until_ms, reason: String::new(), by: None }
    }

    #[test]
    fn only_a_newer_event_changes_an_entry() {
        let mut entry = SanctionEntry::default();
        assert!(entry.impose(SanctionKind::Mute, sanction(3, None)));
        assert!(entry.lift(SanctionKind::Mute, MsgId::at(5)));
        assert!(!entry.impose(SanctionKind::Mute, sanction(3, None)), "applied again");
        assert!(!entry.impose(SanctionKind::Mute, sanction(4, None)), "applied late");
        assert!(!entry.is_muted(0));
        assert!(entry.impose(SanctionKind::Ban, sanction(6, Some(100))));
        assert!(entry.is_banned(99) && !entry.is_banned(100));
    }

    #[test]
    fn an_entry_ends_with_its_last_sanction() {
        let mut entry = SanctionEntry::default();
        assert_eq!(entry.ends_ms(), Some(0), "nothing is active");
        entry.impose(SanctionKind::Mute, sanction(1, Some(50)));
        entry.impose(SanctionKind::Ban, sanction(2, Some(70)));
        assert_eq!(entry.ends_ms(), Some(70));
        entry.impose(SanctionKind::Mute, sanction(3, None));
        assert_eq!(entry.ends_ms(), None);
    }

    #[test]
    fn a_key_is_parsed_back_to_its_scope_and_user() {
        let (app, room, user) =
            ("10001".parse().unwrap(), "7".parse().unwrap(), "100002".parse().unwrap());
        for room in [None, Some(room)] {
            assert_eq!(parse_key(&key(app, room, user)), Some((app, room, user)));
        }
        for bad in ["", "10001", "10001.7", "10001.x.100002", "10001.7.100002.1"] {
            assert_eq!(parse_key(bad), None, "{bad}");
        }
    }
}
