//! Which gateways live, as every process that asks knows it.

use qiyu_nats::{
    Bus,
    bucket::{BucketError, Mirror},
    stream::BucketName,
};
use qiyu_schema::{GatewayId, Incarnation, codec};
use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The value of a gateway's lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeaseValue {
    pub(crate) epoch: u64,
    pub(crate) ws: String,
    pub(crate) tcp: String,
    pub(crate) connections: u64,
    pub(crate) draining: bool,
    /// Declared dead. Written over the expired lease, so that of the reaper and
    /// a gateway that wakes up only one gets its way.
    #[serde(default)]
    pub(crate) dead: bool,
}

/// A living gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayView {
    /// Which life of which gateway.
    pub incarnation: Incarnation,
    /// Where clients reach its WebSocket, host:port.
    pub ws: String,
    /// Where clients reach its TCP port, host:port.
    pub tcp: String,
    /// How many it holds; at most 2 s old.
    pub connections: u64,
    /// Whether it is about to go.
    pub draining: bool,
}

/// The living gateways, kept in memory.
#[derive(Clone, Debug)]
pub struct Gateways(Mirror);

impl Gateways {
    /// Follows the leases until `stop`.
    ///
    /// # Errors
    ///
    /// When they cannot be read at first.
    pub async fn follow(
        bus: &Bus,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, BucketError> {
        Ok(Self(bus.bucket(BucketName::Gateways).mirror(tasks, stop).await?))
    }

    /// Every living gateway, draining ones too.
    pub fn live(&self) -> Vec<GatewayView> {
        let view = |(key, slot): (String, qiyu_nats::bucket::KvEntry)| {
            let id: GatewayId = key.parse().ok()?;
            let value: LeaseValue = codec::decode(&slot.value?).ok()?;
            (!value.dead).then_some(GatewayView {
                incarnation: Incarnation { id, epoch: value.epoch },
                ws: value.ws,
                tcp: value.tcp,
                connections: value.connections,
                draining: value.draining,
            })
        };
        self.0.all().into_iter().filter_map(view).collect()
    }

    /// Whether exactly this life of the gateway goes on.
    pub fn is_live(&self, incarnation: &Incarnation) -> bool {
        self.0
            .get(incarnation.id.as_str())
            .and_then(|value| codec::decode::<LeaseValue>(&value).ok())
            .is_some_and(|value| value.epoch == incarnation.epoch && !value.dead)
    }
}
