//! What a gateway counts.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use qiyu_schema::event::Ending;

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
    refused: Family<ReasonLabel, Counter>,
    /// The sum of them, for vitals.
    pub(crate) refused_in_all: Counter,
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
    /// Time from handing a message to the log to the log's confirmation.
    pub(crate) append: Latency,
    /// Time from accepting a message to its last byte leaving for one recipient.
    pub(crate) delivery: Latency,
    /// Time from accepting a message to that recipient's acknowledgement.
    pub(crate) acknowledgement: Latency,
    /// Bytes waiting for connections, all together.
    pub(crate) queue_bytes: Gauge,
    /// Bytes waiting for the connection with the most.
    pub(crate) queue_bytes_max: Gauge,
    /// Partitions that take no messages because their fan-out is behind.
    pub(crate) brakes_on: Gauge,
    /// Envelopes in this gateway's queue that it was not handed yet.
    pub(crate) outbox_waiting: Gauge,
    /// Envelopes it was handed and the queue has not seen acknowledged.
    pub(crate) outbox_unacknowledged: Gauge,
}

/// How long something took.
#[derive(Clone, Debug)]
pub(crate) struct Latency(Histogram);

impl Default for Latency {
    fn default() -> Self {
        // From one hop over loopback to where an append is given up (10 s).
        Self(Histogram::new([
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ]))
    }
}

impl Latency {
    pub(crate) fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }

    /// Since a moment of this or another machine's clock; clocks that differ
    /// the wrong way make it nothing, not negative.
    pub(crate) fn observe_since(&self, at_ms: u64) {
        self.observe(Duration::from_millis(qiyu_nats::now_ms().saturating_sub(at_ms)));
    }
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

/// How a connection ends here.
const ENDINGS: [Ending; 10] = [
    Ending::Logout,
    Ending::Disconnect,
    Ending::Idle,
    Ending::Slow,
    Ending::Abuse,
    Ending::Replaced,
    Ending::Kicked,
    Ending::Banned,
    Ending::Drained,
    Ending::Unstored,
];
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

impl Limit {
    const ALL: [Self; 7] = [
        Self::ConnectAddress,
        Self::ConnectUser,
        Self::SendConnection,
        Self::SendUser,
        Self::SendAddress,
        Self::SendRoom,
        Self::SendPartition,
    ];
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
    /// A business frame was refused.
    pub(crate) fn refuse(&self, reason: Reason) {
        self.refused.get_or_create(&reason.into()).inc();
        self.refused_in_all.inc();
    }

    /// Something was refused because it came too fast.
    pub(crate) fn too_fast(&self, limit: Limit) {
        self.limited.get_or_create(&limit.into()).inc();
    }

    pub(crate) fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        // From the start at 0: who looks for an increase would miss the first one.
        for reason in Reason::ALL {
            drop(m.refused.get_or_create(&reason.into()));
        }
        for limit in Limit::ALL {
            drop(m.limited.get_or_create(&limit.into()));
        }
        for ending in ENDINGS {
            drop(m.ended.get_or_create(&ending.into()));
        }
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
        r.register(
            "append_duration_seconds",
            "Time from handing a message to the log to the log's confirmation",
            m.append.0.clone(),
        );
        r.register(
            "delivery_duration_seconds",
            "Time from accepting a message to writing it to a recipient's socket; one of each message's",
            m.delivery.0.clone(),
        );
        r.register(
            "acknowledgement_duration_seconds",
            "Time from accepting a message to a recipient's acknowledgement; one of each message's",
            m.acknowledgement.0.clone(),
        );
        r.register(
            "queue_bytes",
            "Bytes waiting for connections, all together",
            m.queue_bytes.clone(),
        );
        r.register(
            "queue_bytes_max",
            "Bytes waiting for the connection with the most",
            m.queue_bytes_max.clone(),
        );
        r.register(
            "brakes_on",
            "Partitions that take no messages because their fan-out is behind",
            m.brakes_on.clone(),
        );
        r.register(
            "outbox_waiting",
            "Envelopes in this gateway's queue that it was not handed yet",
            m.outbox_waiting.clone(),
        );
        r.register(
            "outbox_unacknowledged",
            "Envelopes it was handed and the queue has not seen acknowledged",
            m.outbox_unacknowledged.clone(),
        );
        m
    }
}
