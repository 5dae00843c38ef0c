//! What a gateway counts.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use qiyu_nats::event::Ending;

use crate::frame::Reason;

/// Every metric of this crate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Connections logged in.
    pub(crate) connections: Gauge,
    /// Logins that worked.
    pub(crate) logins: Counter,
    /// Logins refused, whatever the reason.
    pub(crate) logins_refused: Counter,
    /// Business frames stored in the log.
    pub(crate) accepted: Counter,
    /// Business frames refused.
    pub(crate) refused: Family<ReasonLabel, Counter>,
    /// What came too fast, by what was shared out.
    limited: Family<LimitLabel, Counter>,
    /// Questions about content that were not answered in time.
    pub(crate) checks_failed: Counter,
    /// Copies of messages put on connections' queues, first sends.
    pub(crate) written: Counter,
    /// Copies sent again.
    pub(crate) resent: Counter,
    /// Connections that acknowledged a message.
    pub(crate) acknowledged: Counter,
    /// Connections a message was given up for.
    pub(crate) given_up: Counter,
    /// Envelopes delivered to this gateway and not settled yet.
    pub(crate) envelopes_pending: Gauge,
    /// Messages whose envelope was lost and which were read from the log.
    pub(crate) gap_fills: Counter,
    /// Connections ended.
    pub(crate) ended: Family<EndingLabel, Counter>,
}

/// Label of [`Metrics::refused`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    reason: i32,
}

impl From<Reason> for ReasonLabel {
    fn from(reason: Reason) -> Self {
        Self { reason: reason.code() }
    }
}

/// What is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    ConnectAddress,
    ConnectUser,
    SendConnection,
    SendUser,
    SendAddress,
    SendRoom,
    /// Fan-out is far behind.
    SendPartition,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    what: &'static str,
    limit: &'static str,
}

impl From<Limit> for LimitLabel {
    fn from(limit: Limit) -> Self {
        let (what, limit) = match limit {
            Limit::ConnectAddress => ("connect", "address"),
            Limit::ConnectUser => ("connect", "user"),
            Limit::SendConnection => ("send", "connection"),
            Limit::SendUser => ("send", "user"),
            Limit::SendAddress => ("send", "address"),
            Limit::SendRoom => ("send", "room"),
            Limit::SendPartition => ("send", "partition"),
        };
        Self { what, limit }
    }
}

/// Label of [`Metrics::ended`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct EndingLabel {
    reason: EndingValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct EndingValue(Ending);

impl EncodeLabelValue for EndingValue {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let name = match self.0 {
            Ending::Logout => "logout",
            Ending::Disconnect => "disconnect",
            Ending::Idle => "idle",
            Ending::Slow => "slow",
            Ending::Abuse => "abuse",
            Ending::Replaced => "replaced",
            Ending::Kicked => "kicked",
            Ending::Banned => "banned",
            Ending::Drained => "drained",
            Ending::Unstored => "unstored",
            Ending::Other => "other",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

impl From<Ending> for EndingLabel {
    fn from(ending: Ending) -> Self {
        Self { reason: EndingValue(ending) }
    }
}

impl Metrics {
    /// Something was refused because it came too fast.
    pub(crate) fn too_fast(&self, limit: Limit) {
        self.limited.get_or_create(&limit.into()).inc();
    }

    pub(crate) fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let r = registry.sub_registry_with_prefix("qiyu_gateway");
        r.register("connections", "Connections logged in", m.connections.clone());
        r.register("logins", "Logins that worked", m.logins.clone());
        r.register("logins_refused", "Logins refused", m.logins_refused.clone());
        r.register("accepted", "Business frames stored in the log", m.accepted.clone());
        r.register("refused", "Business frames refused, by reason", m.refused.clone());
        r.register(
            "too_fast",
            "Logins and business frames refused for their rate, by what was shared out",
            m.limited.clone(),
        );
        r.register(
            "content_checks_failed",
            "Questions about content that were not answered in time",
            m.checks_failed.clone(),
        );
        r.register("written", "Copies put on connections' queues, first sends", m.written.clone());
        r.register("resent", "Copies sent again", m.resent.clone());
        r.register("acknowledged", "Acknowledgements that counted", m.acknowledged.clone());
        r.register("given_up", "Deliveries never acknowledged", m.given_up.clone());
        r.register(
            "envelopes_pending",
            "Envelopes delivered to this gateway and not settled yet",
            m.envelopes_pending.clone(),
        );
        r.register(
            "gap_fills",
            "Messages read from the log because their envelope was lost",
            m.gap_fills.clone(),
        );
        r.register("ended", "Connections ended, by reason", m.ended.clone());
        m
    }
}
