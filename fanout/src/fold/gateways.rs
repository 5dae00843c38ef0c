//! The incarnations of gateways. One at a time: a newer one ends the older ones,
//! and the events of an ended incarnation have no effect.

use qiyu_schema::Incarnation;
use serde::{Deserialize, Serialize};

use super::{Effect, Fold};

/// The newest and the newest ended incarnation of one gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Lives {
    /// The newest epoch seen in an event.
    current: u64,
    /// This one and all before it are over.
    gone: u64,
}

impl Fold {
    /// Registers the incarnation of an event. Returns `None` if it has ended: its events have no effect.
    pub(super) fn meet(&mut self, gateway: &Incarnation, at_ms: u64) -> Option<Vec<Effect>> {
        let lives = self.gateways.entry(gateway.id.clone()).or_default();
        if gateway.epoch <= lives.gone || gateway.epoch < lives.current {
            return None;
        }
        if gateway.epoch == lives.current {
            return Some(Vec::new());
        }
        // A newer incarnation ends the older ones, even without a `GatewayGone`.
        let older = Incarnation { id: gateway.id.clone(), epoch: gateway.epoch - 1 };
        let effects = self.bury(&older, at_ms);
        self.gateways.entry(gateway.id.clone()).or_default().current = gateway.epoch;
        Some(effects)
    }

    /// Ends this incarnation of a gateway and all before it.
    pub(super) fn bury(&mut self, gateway: &Incarnation, at_ms: u64) -> Vec<Effect> {
        let lives = self.gateways.entry(gateway.id.clone()).or_default();
        if gateway.epoch <= lives.gone {
            return Vec::new();
        }
        lives.gone = gateway.epoch;
        let over = |g: &Incarnation| g.id == gateway.id && g.epoch <= gateway.epoch;
        self.end_memberships(over, at_ms);
        self.end_all_sessions(over)
    }
}

#[cfg(test)]
mod tests {
    use qiyu_schema::event::Event;

    use crate::fold::{
        Effect,
        partition::{Partition, app, gateway, joined, online, sent, user, viewers},
    };

    #[test]
    fn a_dead_gateway_leaves_every_room_and_its_late_events_have_no_effect() {
        let mut log = Partition::default();
        let (old, new) = (gateway("a", 1), gateway("a", 5));
        log.moves(&old, &[joined(1, 1)]);
        log.session(&old, online(1, 1));
        let ended = log.folds(Event::GatewayGone { gateway: old.clone() });
        assert_eq!(ended, [Effect::WentOffline { app: app(), user: user(1) }]);
        assert_eq!(log.moves(&old, &[joined(2, 2)]), []);
        assert_eq!(log.says(3), []);
        assert_eq!(viewers(&log), Some(0));
        log.moves(&new, &[joined(1, 1)]);
        assert_eq!(sent(&log.says(3)).len(), 1);
    }

    #[test]
    fn a_newer_incarnation_ends_the_older_one() {
        let mut log = Partition::default();
        log.moves(&gateway("a", 1), &[joined(1, 1)]);
        log.moves(&gateway("a", 2), &[joined(1, 2)]);
        let heard = sent(&log.says(3));
        assert_eq!(heard.iter().map(|(to, ..)| to.as_str()).collect::<Vec<_>>(), ["a.2"]);
        assert_eq!(viewers(&log), Some(1));
    }
}
