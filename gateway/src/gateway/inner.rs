//! The state of a gateway that outlives its incarnations.

use std::sync::Arc;

use parking_lot::RwLock;
use qiyu_nats::Bus;
use qiyu_presence::Gateways;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config, instance::GatewayInstance, metrics::Metrics, rate_limit::RateLimits,
    send::content::ContentChecker,
};

/// The state that outlives an incarnation.
pub(crate) struct GatewayInner {
    pub(crate) config: Arc<Config>,
    pub(crate) rate_limits: Arc<RateLimits>,
    /// The tasks of sockets.
    pub(crate) socket_tasks: TaskTracker,
    pub(crate) bus: Bus,
    pub(crate) gateways: Gateways,
    pub(crate) metrics: Metrics,
    pub(crate) content: Arc<ContentChecker>,
    /// The announced addresses: WebSocket, TCP.
    pub(crate) addresses: (String, String),
    pub(crate) current: RwLock<Option<Arc<GatewayInstance>>>,
    /// Cancelled when no new clients are accepted any more.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the drained incarnation has to end.
    pub(crate) finish: CancellationToken,
}

impl GatewayInner {
    /// Returns the running incarnation. `None`: none has started, or the last
    /// one has ended.
    pub(crate) fn instance(&self) -> Option<Arc<GatewayInstance>> {
        self.current.read().clone()
    }
}
