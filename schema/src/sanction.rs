//! Measures against users: who may not speak, who may not come in, who was
//! shown out. Their log is the truth; the bucket `measures` holds the fold of
//! it, so that whoever must enforce one need not read the log.

use serde::{Deserialize, Serialize};

use crate::id::{AppId, MsgId, RoomId, UserId};

/// What may be done about a user, in one room or in the whole app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SanctionKind {
    /// What they say is refused with 4010.
    Mute,
    /// Their connections are closed, once; they may come back.
    Kick,
    /// Their connections are closed, and they may not come back.
    Ban,
    /// A measure newer than this build.
    #[serde(other)]
    Unknown,
}

/// A measure as it was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sanction {
    /// The event's place in the log.
    pub msg_id: MsgId,
    /// When, ms since 1970.
    pub at_ms: u64,
    /// Until when, ms since 1970. `None`: until it is lifted.
    pub until_ms: Option<u64>,
    /// For people; may be empty.
    pub reason: String,
    /// The anchor who did it. `None`: the server API.
    pub by: Option<UserId>,
}

impl Sanction {
    /// Whether it still holds.
    pub fn holds(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until| now_ms < until)
    }
}

/// What the bucket `measures` says of one user under [`key`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SanctionEntry {
    /// The newest event folded into it; older ones change nothing any more.
    pub folded: Option<MsgId>,
    /// They may not speak.
    pub mute: Option<Sanction>,
    /// They may not come in.
    pub ban: Option<Sanction>,
    /// They were shown out last.
    pub kick: Option<Sanction>,
}

impl SanctionEntry {
    /// Folds a measure taken. `false`: it was folded before.
    pub fn take(&mut self, sanction: SanctionKind, taken: Sanction) -> bool {
        if !self.is_news(taken.msg_id) {
            return false;
        }
        match sanction {
            SanctionKind::Mute => self.mute = Some(taken),
            SanctionKind::Ban => self.ban = Some(taken),
            SanctionKind::Kick => self.kick = Some(taken),
            SanctionKind::Unknown => {}
        }
        true
    }

    /// Folds a measure lifted. `false`: it was folded before.
    pub fn lift(&mut self, sanction: SanctionKind, msg_id: MsgId) -> bool {
        if !self.is_news(msg_id) {
            return false;
        }
        match sanction {
            SanctionKind::Mute => self.mute = None,
            SanctionKind::Ban => self.ban = None,
            SanctionKind::Kick | SanctionKind::Unknown => {}
        }
        true
    }

    /// Whether they may not speak.
    pub fn is_muted(&self, now_ms: u64) -> bool {
        self.mute.as_ref().is_some_and(|mute| mute.holds(now_ms))
    }

    /// Whether they may not come in.
    pub fn is_banned(&self, now_ms: u64) -> bool {
        self.ban.as_ref().is_some_and(|ban| ban.holds(now_ms))
    }

    /// Until when it matters, ms since 1970. `None`: for ever.
    pub fn ends_ms(&self) -> Option<u64> {
        let standing = [&self.mute, &self.ban].into_iter().flatten();
        standing.map(|taken| taken.until_ms).try_fold(0, |latest, until| Some(latest.max(until?)))
    }

    fn is_news(&mut self, msg_id: MsgId) -> bool {
        if self.folded.is_some_and(|folded| msg_id <= folded) {
            return false;
        }
        self.folded = Some(msg_id);
        true
    }
}

/// A user's key in the bucket `measures`; no room: the whole app.
pub fn key(app: AppId, room: Option<RoomId>, user: UserId) -> String {
    format!("{app}.{}.{user}", room.map_or(0, RoomId::get))
}

/// Whose entry a key of the bucket `measures` is.
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

    fn taken(seq: u64, until_ms: Option<u64>) -> Sanction {
        Sanction { msg_id: MsgId::at(seq), at_ms: 1, until_ms, reason: String::new(), by: None }
    }

    #[test]
    fn only_what_is_newer_changes_anything() {
        let mut entry = SanctionEntry::default();
        assert!(entry.take(SanctionKind::Mute, taken(3, None)));
        assert!(entry.lift(SanctionKind::Mute, MsgId::at(5)));
        assert!(!entry.take(SanctionKind::Mute, taken(3, None)), "told again");
        assert!(!entry.take(SanctionKind::Mute, taken(4, None)), "told late");
        assert!(!entry.is_muted(0));
        assert!(entry.take(SanctionKind::Ban, taken(6, Some(100))));
        assert!(entry.is_banned(99) && !entry.is_banned(100));
    }

    #[test]
    fn an_entry_ends_with_its_last_measure() {
        let mut entry = SanctionEntry::default();
        assert_eq!(entry.ends_ms(), Some(0), "nothing holds");
        entry.take(SanctionKind::Mute, taken(1, Some(50)));
        entry.take(SanctionKind::Ban, taken(2, Some(70)));
        assert_eq!(entry.ends_ms(), Some(70));
        entry.take(SanctionKind::Mute, taken(3, None));
        assert_eq!(entry.ends_ms(), None);
    }

    #[test]
    fn a_key_says_whose_it_is() {
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
