//! The metrics of the gateway, and their labels.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use qiyu_runtime::metrics::{Latency, LatencyBounds};
use qiyu_schema::event::DisconnectReason;

use crate::frame::RefusalCode;

qiyu_runtime::metrics! {
    prefix = "qiyu_gateway";
    /// Every metric of this crate.
    #[derive(Clone, Debug)]
    pub(crate) struct Metrics {
        pub(crate) connections: Gauge = "Connections logged in";
        pub(crate) logins: Counter = "Logins that succeeded";
        pub(crate) logins_refused: Counter = "Logins refused";
        pub(crate) accepted: Counter = "Business frames stored in the log";
        refused: Family<RefusalLabel, Counter> = "Business frames refused, by reason";
        too_fast: Family<LimitLabel, Counter> =
            "Logins and business frames refused for their rate, by limit";
        pub(crate) content_checks_failed: Counter =
            "Requests to the content webhook that got no usable response in time";
        pub(crate) written: Counter = "First copies of messages put on connections' queues";
        pub(crate) resent: Counter = "Further copies of messages put on connections' queues";
        pub(crate) acknowledged: Counter = "Acknowledgements that counted";
        pub(crate) given_up: Counter = "Deliveries never acknowledged";
        pub(crate) envelopes_pending: Gauge =
            "Envelopes delivered to this gateway and not resolved yet";
        pub(crate) gap_fills: Counter =
            "Messages read from the log because their envelope was lost";
        pub(crate) ended: Family<DisconnectLabel, Counter> = "Connections ended, by reason";
        pub(crate) append_duration_seconds: Latency<Bounds> =
            "Time from sending a message to the log to the log's confirmation";
        /// Measured at one recipient of each message.
        pub(crate) delivery_duration_seconds: Latency<Bounds> =
            "Time from accepting a message to writing it to one recipient's socket";
        /// Measured at one recipient of each message.
        pub(crate) acknowledgement_duration_seconds: Latency<Bounds> =
            "Time from accepting a message to one recipient's acknowledgement";
        pub(crate) queue_bytes: Gauge = "Bytes waiting for all connections";
        pub(crate) queue_bytes_max: Gauge = "Bytes waiting for the connection with the most";
        pub(crate) brakes_on: Gauge =
            "Partitions that take no messages because their fan-out is behind";
        pub(crate) outbox_waiting: Gauge =
            "Envelopes in this gateway's queue that were not delivered to it yet";
        pub(crate) outbox_unacknowledged: Gauge =
            "Envelopes delivered to this gateway and not acknowledged to the queue";
    }
}

impl Metrics {
    /// Registers every metric, with every label value at 0: a query for an
    /// increase would miss the first one otherwise.
    pub(crate) fn with_labels(registry: &mut Registry) -> Self {
        let metrics = Self::register(registry);
        for code in RefusalCode::ALL {
            drop(metrics.refused.get_or_create(&code.into()));
        }
        for limit in Limit::ALL {
            drop(metrics.too_fast.get_or_create(&limit.into()));
        }
        for reason in DISCONNECT_REASONS {
            drop(metrics.ended.get_or_create(&reason.into()));
        }
        metrics
    }

    /// Counts a refused business frame.
    pub(crate) fn count_refusal(&self, code: RefusalCode) {
        self.refused.get_or_create(&code.into()).inc();
    }

    /// Returns the number of refused business frames.
    pub(crate) fn refusals(&self) -> u64 {
        let count = |code: &RefusalCode| self.refused.get_or_create(&(*code).into()).get();
        RefusalCode::ALL.iter().map(count).sum()
    }

    /// Counts a login or a business frame that exceeded `limit`.
    pub(crate) fn count_rate_limited(&self, limit: Limit) {
        self.too_fast.get_or_create(&limit.into()).inc();
    }
}

/// The bounds of the latency histograms: from one hop over loopback to the
/// deadline of an append (10 s).
#[derive(Debug)]
pub(crate) struct Bounds;

impl LatencyBounds for Bounds {
    const SECONDS: &'static [f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
}

/// The label of [`Metrics::refused`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RefusalLabel {
    reason: i32,
}

impl From<RefusalCode> for RefusalLabel {
    fn from(code: RefusalCode) -> Self {
        Self { reason: code.code() }
    }
}

/// A rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    ConnectAddress,
    ConnectUser,
    SendConnection,
    SendUser,
    SendAddress,
    SendRoom,
    /// Backpressure: the partition's fan-out is far behind.
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

/// The labels of [`Metrics::too_fast`].
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

/// The reasons that this crate produces.
const DISCONNECT_REASONS: [DisconnectReason; 10] = [
    DisconnectReason::Logout,
    DisconnectReason::Disconnect,
    DisconnectReason::Idle,
    DisconnectReason::Slow,
    DisconnectReason::Abuse,
    DisconnectReason::Replaced,
    DisconnectReason::Kicked,
    DisconnectReason::Banned,
    DisconnectReason::Drained,
    DisconnectReason::Unstored,
];

/// The label of [`Metrics::ended`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DisconnectLabel {
    reason: DisconnectValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct DisconnectValue(DisconnectReason);

impl EncodeLabelValue for DisconnectValue {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0.as_str(), encoder)
    }
}

impl From<DisconnectReason> for DisconnectLabel {
    fn from(reason: DisconnectReason) -> Self {
        Self { reason: DisconnectValue(reason) }
    }
}
