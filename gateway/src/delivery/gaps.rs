//! Gaps: messages of a room that are read from the log after their envelopes
//! were lost.
//!
//! A lost envelope is noticed when a later one names it, or when rooms are
//! compared with the log because NATS was away.

use std::time::Duration;

use qiyu_schema::{MsgId, ledger::Via};

use super::{
    action::{Action, Timer},
    ids::RoomKey,
    in_flight::Origin,
    input::LoggedMessage,
    state::{Core, GapTimer, Payload, Room},
};

/// How long a missing envelope may still arrive by itself: owners retry after
/// 50 ms, and a retry may overtake.
pub(super) const GAP_TIMEOUT: Duration = Duration::from_millis(200);
/// The pause after a failed read of the log.
const GAP_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// The pause before rooms are compared with the log after an outage. Workers are
/// back sooner, so a message that is only late comes by itself.
const COMPARE_DELAY: Duration = Duration::from_secs(5);

impl Core {
    /// Reads the log if the missing envelope of a room still has not arrived.
    pub(super) fn check_gap(&mut self, key: RoomKey) {
        let Some(room) = self.rooms.get_mut(&key) else { return };
        room.gap_timer = GapTimer::Idle;
        let (Some(last), Some((_, first))) = (room.last, room.buffered.first_key_value()) else {
            return;
        };
        let until = first.prev;
        if last < until {
            room.gap_timer = GapTimer::Armed;
            self.actions.push(Action::ReadRoom { room: key, after: last, until });
        }
    }

    /// Delivers the messages that the log has of a gap up to `until`, as if their
    /// envelopes had come.
    pub(super) fn fill_gap(&mut self, key: RoomKey, until: MsgId, found: Vec<LoggedMessage>) {
        for LoggedMessage { msg_id, from, biz_code, data, at_ms } in found {
            let is_missed = |room: &Room| room.last.is_some_and(|last| last < msg_id);
            if self.rooms.get(&key).is_some_and(is_missed) {
                self.counts.gap_fills += 1;
                // The envelope may still come, or be buffered: it is a repeat then.
                let payload = Payload::Message { from, biz_code, data, at_ms: Some(at_ms) };
                self.deliver(key, msg_id, &payload, Origin::without_envelope(Via::Log));
            }
        }
        if let Some(room) = self.rooms.get_mut(&key) {
            room.gap_timer = GapTimer::Idle;
            // Unknown stays unknown: the room may have been left and entered again.
            room.last = room.last.map(|last| last.max(until));
        }
        self.drain_in_order(key);
    }

    /// Reads the log again after a failure.
    pub(super) fn retry_gap(&mut self, timer: Timer) {
        self.actions.push(Action::ArmTimer { after: GAP_RETRY_INTERVAL, timer });
    }

    pub(super) fn compare_later(&mut self) {
        let (after, timer) = (COMPARE_DELAY, Timer::CompareRooms);
        self.actions.push(Action::ArmTimer { after, timer });
    }

    /// Compares every room with the log. A queue that lost its tail has lost the
    /// sign that something is missing, too: the log alone has it.
    pub(super) fn compare_rooms(&mut self) {
        let compared = |(key, room): (&RoomKey, &Room)| {
            (!room.closed && !room.members.is_empty()).then_some((*key, room.last?))
        };
        let rooms = self.rooms.iter().filter_map(compared).collect();
        self.actions.push(Action::CompareRooms(rooms));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            input::Input,
            test_bed::{TestBed, closing, logged, msg, room},
        },
        *,
    };

    #[test]
    fn a_gap_is_read_from_the_log_after_its_timeout() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(3, 4);
        bed.receive_message(4, 5);
        assert_eq!(bed.timers.len(), 1, "one timer for the room");
        bed.pass(GAP_TIMEOUT);
        assert_eq!(bed.room_reads, [(room(7), msg(1), msg(3))]);
        let found = vec![logged(2), logged(3)];
        bed.apply(Input::RoomRead { room: room(7), until: msg(3), found });
        assert_eq!(bed.first_copies_of(1), [2, 3, 4, 5]);
        bed.receive_message(1, 2);
        assert_eq!(bed.first_copies_of(1).len(), 4, "the late envelope is a repeat");
        assert_eq!(bed.last_counts(), [0; 6]);
    }

    #[test]
    fn an_envelope_that_is_only_late_is_not_read_from_the_log() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(2, 3);
        bed.receive_message(1, 2);
        bed.pass(GAP_TIMEOUT);
        assert!(bed.room_reads.is_empty());
        assert_eq!(bed.first_copies_of(1), [2, 3]);
    }

    #[test]
    fn a_failed_read_is_tried_again() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(2, 3);
        bed.pass(GAP_TIMEOUT);
        bed.apply(Input::RoomReadFailed { room: room(7) });
        bed.receive_message(3, 4);
        bed.pass(GAP_RETRY_INTERVAL);
        assert_eq!(bed.room_reads.len(), 2);
    }

    #[test]
    fn a_read_that_reaches_less_far_leads_to_another() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(3, 4);
        bed.pass(GAP_TIMEOUT);
        bed.apply(Input::RoomRead { room: room(7), until: msg(2), found: vec![logged(2)] });
        bed.pass(GAP_TIMEOUT);
        assert_eq!(bed.room_reads[1], (room(7), msg(2), msg(3)));
    }

    #[test]
    fn after_an_outage_open_rooms_with_members_are_compared_with_the_log() {
        let mut bed = TestBed::with_members([1]);
        bed.receive_message(1, 2);
        bed.apply(Input::Reconnected);
        bed.pass(COMPARE_DELAY);
        assert_eq!(bed.compared, [(room(7), msg(2))]);
        bed.compared.clear();
        bed.enter(2);
        bed.receive(closing(2, 3, &[]));
        bed.apply(Input::TimerFired(Timer::CompareRooms));
        assert!(bed.compared.is_empty(), "a closed room misses nothing");
    }
}
