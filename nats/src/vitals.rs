//! The vitals of every process, queried from all of them at once for `qiyu top`.
//!
//! A query does not use JetStream, and processes respond from memory. It costs
//! the system nothing, works while the streams do not, and is never stored.

use std::{collections::HashMap, time::Duration};

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{bus::Bus, chain};
use qiyu_schema::{
    codec,
    id::{AppId, Incarnation, Partition, RoomId},
};

/// The subject that every process subscribes to.
const QUERY: &str = "qiyu.vitals";

/// The vitals of one process. Counters start at 0 with the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    /// Random number of the process; another one after a restart.
    pub process: u64,
    pub name: String,
    pub roles: Vec<String>,
    pub version: String,
    /// The process's clock, ms since 1970.
    pub at_ms: u64,
    /// CPU time used, ms.
    pub cpu_ms: u64,
    pub memory_bytes: u64,
    /// Age of each lease, ms, by its bucket.
    pub lease_ages_ms: HashMap<String, u64>,
    pub gateway: Option<GatewayVitals>,
    pub fanout: Option<FanoutVitals>,
}

/// The vitals of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayVitals {
    /// `None`: between two incarnations.
    pub gateway: Option<Incarnation>,
    pub draining: bool,
    /// Connections logged in.
    pub connections: u64,
    pub logins: u64,
    pub accepted: u64,
    pub refused: u64,
    /// First copies put on connections' queues.
    pub written: u64,
    /// Further copies.
    pub resent: u64,
    /// Acknowledgements that counted.
    pub acknowledged: u64,
    /// Deliveries never acknowledged.
    pub given_up: u64,
    /// Connections closed because they read too slowly.
    pub slow: u64,
    /// Bytes waiting for connections.
    pub queue_bytes: u64,
    /// Envelopes in its queue, not delivered yet.
    pub waiting: u64,
    /// Envelopes delivered to it and not resolved yet.
    pub pending: u64,
}

/// The vitals of a fan-out worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FanoutVitals {
    /// Lag of each partition it owns, ms.
    pub partitions: Vec<(Partition, u64)>,
    /// Events folded.
    pub events: u64,
    /// Envelopes stored in gateways' queues.
    pub envelopes: u64,
    /// Envelopes a full queue did not take.
    pub skipped: u64,
    /// The rooms with most messages, hottest first.
    pub rooms: Vec<HotRoom>,
}

/// A room with many messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotRoom {
    pub app: AppId,
    pub room: RoomId,
    /// Messages per second, over the last ten seconds.
    pub per_second: f64,
}

impl Bus {
    /// Responds to queries for this process's vitals until `stop`.
    ///
    /// # Errors
    ///
    /// Fails when the connection is closed.
    pub async fn serve_vitals(
        &self,
        tasks: &TaskTracker,
        stop: CancellationToken,
        vitals: impl Fn() -> Vitals + Send + 'static,
    ) -> Result<(), async_nats::SubscribeError> {
        let client = self.control.client();
        let mut queries = client.subscribe(QUERY).await?;
        tasks.spawn(async move {
            while let Some(Some(query)) = stop.run_until_cancelled(queries.next()).await {
                let Some(reply) = query.reply else { continue };
                let Ok(payload) = codec::encode(&vitals()) else { continue };
                if let Err(error) = client.publish(reply, payload).await {
                    debug!(error = %chain(&error), "vitals not sent");
                }
            }
        });
        Ok(())
    }

    /// Returns the vitals of all processes that respond within `timeout`.
    ///
    /// # Errors
    ///
    /// Fails when the connection is closed.
    pub async fn query_vitals(&self, timeout: Duration) -> Result<Vec<Vitals>, async_nats::Error> {
        let until = Instant::now() + timeout;
        let client = self.control.client();
        let inbox = client.new_inbox();
        let mut responses = client.subscribe(inbox.clone()).await?;
        client.publish_with_reply(QUERY, inbox, Default::default()).await?;
        client.flush().await?;
        let mut all = Vec::new();
        while let Ok(Some(response)) = timeout_at(until, responses.next()).await {
            if response.status.is_some() {
                break; // no responders
            }
            match codec::decode::<Vitals>(&response.payload) {
                Ok(vitals) => all.push(vitals),
                Err(error) => debug!(error = %chain(&error), "vitals of a newer build not read"),
            }
        }
        Ok(all)
    }
}
