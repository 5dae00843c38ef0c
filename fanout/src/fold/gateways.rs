//! The lives of gateways. One at a time: a newer life ends the older ones, and
//! after its end nothing a life says means anything.

use qiyu_schema::Incarnation;
use serde::{Deserialize, Serialize};

use super::{Effect, Fold};

/// What is known of one gateway's lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Lives {
    /// The newest that was heard of.
    current: u64,
    /// This one and all before it are over.
    gone: u64,
}

impl Fold {
    /// Takes note of a gateway that acts. `None`: its life is over, and what it does means nothing.
    pub(super) fn meet(&mut self, gateway: &Incarnation, at_ms: u64) -> Option<Vec<Effect>> {
        let lives = self.gateways.entry(gateway.id.clone()).or_default();
        if gateway.epoch <= lives.gone || gateway.epoch < lives.current {
            return None;
        }
        if gateway.epoch == lives.current {
            return Some(Vec::new());
        }
        // A newer life: the older ones are over, whether or not anybody said so.
        let older = Incarnation { id: gateway.id.clone(), epoch: gateway.epoch - 1 };
        let effects = self.bury(&older, at_ms);
        self.gateways.entry(gateway.id.clone()).or_default().current = gateway.epoch;
        Some(effects)
    }

    /// Ends this life of a gateway and all before it.
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
    fn the_dead_leave_every_room_and_their_last_words_mean_nothing() {
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
    fn a_newer_life_ends_the_older_one_unasked() {
        let mut log = Partition::default();
        log.moves(&gateway("a", 1), &[joined(1, 1)]);
        log.moves(&gateway("a", 2), &[joined(1, 2)]);
        let heard = sent(&log.says(3));
        assert_eq!(heard.iter().map(|(to, ..)| to.as_str()).collect::<Vec<_>>(), ["a.2"]);
        assert_eq!(viewers(&log), Some(1));
    }
}
