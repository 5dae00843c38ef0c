//! Client message ids: a second message of the same sender with the same id
//! within a day is a duplicate, and is not delivered again.

use qiyu_schema::{AppId, ClientMsgId, MsgId, Namespace, event::Sender};
use serde::{Deserialize, Serialize};

use super::Fold;

/// A message with a client message id.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sent {
    /// A hash of the id; 64 bits among a thousand ids do not collide by chance.
    hash: u64,
    msg_id: MsgId,
    pub(super) at_ms: u64,
}

/// How long a client message id is remembered.
pub(super) const SENT_KEPT_MS: u64 = 24 * 3600 * 1000;
/// Ids remembered per sender and partition: 24 bytes each.
const SENT_MAX: usize = 1000;

impl Fold {
    /// Returns the sender's message with this client message id from the last 24 h.
    pub fn find_sent(
        &self,
        app: AppId,
        namespace: Namespace,
        name: &ClientMsgId,
        now_ms: u64,
    ) -> Option<MsgId> {
        let (sent, hash) = (self.sent.get(&(app, namespace))?, hash_of(name));
        let recent = |sent: &&Sent| now_ms < sent.at_ms.saturating_add(SENT_KEPT_MS);
        // From the back: a retry usually follows soon.
        sent.iter().rev().take_while(recent).find(|sent| sent.hash == hash).map(|sent| sent.msg_id)
    }

    /// Returns whether the message is a duplicate; if not, its id is remembered.
    pub(super) fn is_repeat(
        &mut self,
        app: AppId,
        sender: &Sender,
        msg_id: MsgId,
        at_ms: u64,
    ) -> bool {
        let Some(name) = &sender.client_msg_id else { return false };
        let namespace = sender.namespace();
        if self.find_sent(app, namespace, name, at_ms).is_some() {
            return true;
        }
        let sent = self.sent.entry((app, namespace)).or_default();
        if SENT_MAX <= sent.len() {
            sent.pop_front();
        }
        sent.push_back(Sent { hash: hash_of(name), msg_id, at_ms });
        false
    }

    /// Removes senders without a client message id of the last 24 h.
    pub(super) fn forget_names(&mut self, at_ms: u64) {
        self.sent.retain(|_, sent| {
            sent.back().is_some_and(|last| at_ms < last.at_ms.saturating_add(SENT_KEPT_MS))
        });
    }
}

/// FNV-1a, 64 bits: written down in snapshots, so it must not change with the compiler.
fn hash_of(name: &ClientMsgId) -> u64 {
    name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use qiyu_schema::event::Event;

    use crate::fold::partition::{Partition, app, gateway, joined, room, sender, sent, user};

    use super::*;

    #[test]
    fn a_name_used_twice_within_a_day_is_delivered_once() {
        let mut log = Partition::default();
        log.moves(&gateway("a", 1), &[joined(1, 1)]);
        let name: ClientMsgId = "tea".parse().unwrap();
        let said = |from: u64| Event::RoomMessageSent {
            app: app(),
            room: room(),
            sender: Sender { client_msg_id: Some(name.clone()), ..sender(from) },
            biz_code: 5555,
            data: "{}".into(),
        };
        assert_eq!(sent(&log.folds(said(1))).len(), 1);
        let first = log.here();
        assert_eq!(log.folds(said(1)), []);
        assert_eq!(log.fold.find_sent(app(), Namespace::of_user(user(1)), &name, 0), Some(first));
        assert_eq!(sent(&log.folds(said(2))).len(), 1, "another's name is another name");
        let mut by_the_server = said(1);
        if let Event::RoomMessageSent { sender, .. } = &mut by_the_server {
            (sender.gateway, sender.connection) = (None, None);
        }
        assert_eq!(sent(&log.folds(by_the_server.clone())).len(), 1, "nor is the server's");
        assert_eq!(log.folds(by_the_server), []);
        log.seq += SENT_KEPT_MS;
        assert_eq!(sent(&log.folds(said(1))).len(), 1, "a day later it is new");
        log.fold.forget(log.seq + SENT_KEPT_MS);
        assert_eq!(log.fold.find_sent(app(), Namespace::of_user(user(1)), &name, 0), None);
    }

    /// README, "Limits", and docs/RELIABILITY.md state this price.
    #[test]
    fn a_name_costs_24_bytes_in_memory_and_46_in_a_snapshot() {
        let mut fold = Fold::default();
        let size = |fold: &Fold| qiyu_schema::codec::encode(fold).unwrap().len();
        let empty = size(&fold);
        let at_ms = 1_800_000_000_000; // of a length like today's
        for number in 0..1000 {
            let name: ClientMsgId = format!("name-{number}").parse().unwrap();
            let sender = Sender { client_msg_id: Some(name), ..sender(1) };
            assert!(!fold.is_repeat(app(), &sender, MsgId::at(1 << 30), at_ms));
        }
        assert_eq!(size_of::<Sent>(), 24);
        let each = (size(&fold) - empty) as f64 / 1000.0;
        assert!((each - 46.0).abs() < 1.0, "{each} bytes");
    }
}
