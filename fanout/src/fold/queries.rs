//! Queries of a fold. None of them changes it.

use std::ops::Bound;

use qiyu_schema::{
    AppId, Incarnation, MsgId, RoomId, UserId, room::RoomCounts, sanction::SanctionEntry,
};

use super::{Fold, Room};
use crate::state::{Member as MemberState, RoomState};

impl Fold {
    /// Users inside a room, each once, and its likes; `None` if it is closed or was never known.
    pub fn counts(&self, app: AppId, room: RoomId) -> Option<RoomCounts> {
        let room = self.rooms.get(&(app, room)).filter(|room| room.closed.is_none())?;
        Some(room.counts())
    }

    /// The gateways that hold members of a room.
    pub fn gateways_of(&self, app: AppId, room: RoomId) -> Vec<Incarnation> {
        let room = self.rooms.get(&(app, room));
        room.map(|room| room.gateways.keys().cloned().collect()).unwrap_or_default()
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
        Some(RoomState {
            anchor: known.anchor,
            anchor_gone_ms: known.anchor_gone_ms,
            closed: known.closed.map(|closed| (closed.msg_id, closed.at_ms)),
            members,
            counts: known.counts(),
            measures,
        })
    }

    /// Open rooms whose anchor has been gone since before `since_ms`.
    pub fn abandoned(&self, since_ms: u64) -> impl Iterator<Item = (AppId, RoomId)> {
        let gone = move |room: &Room| {
            room.closed.is_none() && room.anchor_gone_ms.is_some_and(|gone| gone < since_ms)
        };
        self.rooms.iter().filter(move |(_, room)| gone(room)).map(|(key, _)| *key)
    }

    /// Measures against a user in the whole app.
    pub fn measures_in_app(&self, app: AppId, user: UserId) -> Option<&SanctionEntry> {
        self.measures.get(&(app, user))
    }

    /// Returns a user's pending messages above `after`, oldest first, and whether there are more than `limit`.
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
}

impl Room {
    fn counts(&self) -> RoomCounts {
        let watch_num = self.inside.len() as u64;
        // A snapshot of an older build has no peak, and people inside.
        let peak = Some(self.peak.max(watch_num));
        RoomCounts { watch_num, good_num: self.good_num, peak }
    }
}

#[cfg(test)]
mod tests {
    use crate::fold::partition::{Partition, app, gateway, joined, room, user};

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
}
