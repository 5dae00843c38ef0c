//! Measures against users, in one room or in the whole app. Gateways enforce
//! them; the fold carries them past the log's retention.
//!
//! A lifted sanction stays lifted: an entry knows the newest event it has folded.

use qiyu_schema::{AppId, RoomId, UserId, sanction::SanctionEntry};

use super::Fold;

/// How long a measure that is over is remembered.
const MEASURE_KEPT_MS: u64 = 24 * 3600 * 1000;

impl Fold {
    /// Where measures against a user are folded. `None`: in a room that is over.
    pub(super) fn measures_of(
        &mut self,
        app: AppId,
        room: Option<RoomId>,
        user: UserId,
    ) -> Option<&mut SanctionEntry> {
        match room {
            None => Some(self.measures.entry((app, user)).or_default()),
            Some(room) => {
                let room = self.rooms.get_mut(&(app, room)).filter(|r| r.closed.is_none())?;
                Some(room.measures.entry(user).or_default())
            }
        }
    }

    /// Removes sanctions that ended long ago.
    pub(super) fn forget_measures(&mut self, at_ms: u64) {
        let over = |entry: &SanctionEntry| {
            entry.ends_ms().is_some_and(|ends| ends.saturating_add(MEASURE_KEPT_MS) < at_ms)
        };
        self.measures.retain(|_, entry| !over(entry));
        for room in self.rooms.values_mut() {
            room.measures.retain(|_, entry| !over(entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::{event::Event, sanction::SanctionKind};

    use crate::fold::partition::{Partition, app, gateway, joined, room, user};

    use super::*;

    #[test]
    fn sanctions_are_kept_per_app_or_room_and_end_with_the_room() {
        let mut log = Partition::default();
        let (app, room, user) = (app(), room(), user(1));
        let take = |room| Event::SanctionImposed {
            app,
            room,
            user,
            sanction: SanctionKind::Mute,
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
        log.folds(Event::SanctionLifted {
            app,
            room: None,
            user,
            sanction: SanctionKind::Mute,
            by: None,
        });
        assert!(!log.fold.measures[&(app, user)].is_muted(0));
        log.fold.forget(log.seq + MEASURE_KEPT_MS + 1);
        assert!(log.fold.measures.is_empty());
        assert!(log.fold.rooms[&(app, room)].measures[&user].is_muted(0), "it holds for ever");
        log.folds(Event::RoomClosed { app, room, by: None, peak: None, good_num: None });
        assert!(log.fold.rooms[&(app, room)].measures.is_empty());
    }
}
