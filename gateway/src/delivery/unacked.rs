//! The messages that one connection has not acknowledged.

use std::collections::VecDeque;

use qiyu_schema::MsgId;

use super::ids::DeliveryId;

/// Messages that one connection may leave unacknowledged. Further ones are
/// written to it, and given up at once.
pub(super) const UNACKED_MAX: usize = 4096;

/// The unacknowledged messages of a connection, ordered by id. Two deliveries
/// of one message keep the order in which they were sent.
///
/// Clients acknowledge in order, mostly, and messages are sent in order, mostly:
/// both ends are O(1), everything else is a binary search. So a client that
/// acknowledges messages it never got costs little, too.
#[derive(Debug, Default)]
pub(super) struct Unacked(VecDeque<(MsgId, DeliveryId)>);

impl Unacked {
    pub(super) fn insert(&mut self, msg_id: MsgId, delivery: DeliveryId) {
        match self.0.back() {
            Some((newest, _)) if *newest > msg_id => {
                let index = self.0.partition_point(|(id, _)| *id <= msg_id);
                self.0.insert(index, (msg_id, delivery));
            }
            _ => self.0.push_back((msg_id, delivery)),
        }
    }

    /// Removes the oldest delivery of a message and returns it.
    pub(super) fn acknowledge(&mut self, msg_id: MsgId) -> Option<DeliveryId> {
        let index = self.first(msg_id);
        self.0.get(index).filter(|(id, _)| *id == msg_id)?;
        self.0.remove(index).map(|(_, delivery)| delivery)
    }

    pub(super) fn contains(&self, msg_id: MsgId, delivery: DeliveryId) -> bool {
        self.index(msg_id, delivery).is_some()
    }

    /// Removes one delivery of a message. Returns `false` if it was acknowledged before.
    pub(super) fn remove(&mut self, msg_id: MsgId, delivery: DeliveryId) -> bool {
        let index = self.index(msg_id, delivery);
        index.is_some_and(|index| self.0.remove(index).is_some())
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= UNACKED_MAX
    }

    /// Returns the deliveries, oldest message first.
    pub(super) fn into_deliveries(self) -> impl Iterator<Item = DeliveryId> {
        self.0.into_iter().map(|(_, delivery)| delivery)
    }

    fn first(&self, msg_id: MsgId) -> usize {
        match self.0.front() {
            Some((oldest, _)) if *oldest == msg_id => 0,
            _ => self.0.partition_point(|(id, _)| *id < msg_id),
        }
    }

    fn index(&self, msg_id: MsgId, delivery: DeliveryId) -> Option<usize> {
        let first = self.first(msg_id);
        let same = self.0.range(first..).take_while(|(id, _)| *id == msg_id);
        same.enumerate().find(|(_, (_, found))| *found == delivery).map(|(n, _)| first + n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unacked(deliveries: &[(u64, u64)]) -> Unacked {
        let mut unacked = Unacked::default();
        for (seq, delivery) in deliveries {
            unacked.insert(MsgId::at(*seq), DeliveryId(*delivery));
        }
        unacked
    }

    #[test]
    fn an_acknowledgement_removes_the_oldest_delivery_of_its_message() {
        let mut unacked = unacked(&[(3, 1), (5, 2), (4, 3), (5, 4)]);
        assert_eq!(unacked.acknowledge(MsgId::at(5)), Some(DeliveryId(2)));
        assert_eq!(unacked.acknowledge(MsgId::at(5)), Some(DeliveryId(4)));
        assert_eq!(unacked.acknowledge(MsgId::at(5)), None);
        assert_eq!(unacked.acknowledge(MsgId::at(9)), None);
        assert_eq!(unacked.into_deliveries().collect::<Vec<_>>(), [DeliveryId(1), DeliveryId(3)]);
    }

    #[test]
    fn one_of_two_deliveries_of_a_message_is_removed() {
        let mut unacked = unacked(&[(5, 1), (5, 2), (6, 3)]);
        assert!(unacked.contains(MsgId::at(5), DeliveryId(2)));
        assert!(unacked.remove(MsgId::at(5), DeliveryId(2)));
        assert!(!unacked.remove(MsgId::at(5), DeliveryId(2)));
        assert!(!unacked.contains(MsgId::at(6), DeliveryId(1)));
        assert_eq!(unacked.into_deliveries().collect::<Vec<_>>(), [DeliveryId(1), DeliveryId(3)]);
    }
}
