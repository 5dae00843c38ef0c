//! How every process is, asked of all of them at once: what `qiyu top` shows.
//!
//! Outside JetStream and answered from memory: looking costs the system nothing,
//! and works while its streams do not. Nothing of it is ever stored.

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

/// Every process listens here, each for itself.
const EVERYBODY: &str = "qiyu.vitals";

/// How one process is. Counts are since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    /// Told apart from every other process, and from its own next life.
    pub process: u64,
    /// As people know it.
    pub name: String,
    /// The roles it runs.
    pub roles: Vec<String>,
    /// The build it runs.
    pub version: String,
    /// Its clock, ms since 1970.
    pub at_ms: u64,
    /// CPU time it has used, ms.
    pub cpu_ms: u64,
    /// Memory it holds, bytes.
    pub memory_bytes: u64,
    /// Each lease's age, ms, by its bucket.
    pub lease_ages_ms: HashMap<String, u64>,
    /// Its gateway, if it is one.
    pub gateway: Option<GatewayVitals>,
    /// Its fan-out, if it does that.
    pub fanout: Option<FanoutVitals>,
}

/// How a gateway is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayVitals {
    /// Which life of which gateway. `None`: between two lives.
    pub gateway: Option<Incarnation>,
    /// Whether it sends its clients away.
    pub draining: bool,
    /// Connections logged in.
    pub connections: u64,
    /// Logins that worked.
    pub logins: u64,
    /// Messages stored.
    pub accepted: u64,
    /// Messages refused.
    pub refused: u64,
    /// First copies put on connections' queues.
    pub written: u64,
    /// Further copies.
    pub resent: u64,
    /// Acknowledgements that counted.
    pub acknowledged: u64,
    /// Deliveries never acknowledged.
    pub given_up: u64,
    /// Connections ended because they did not read.
    pub slow: u64,
    /// Bytes waiting for connections.
    pub queue_bytes: u64,
    /// Envelopes in its queue that it was not handed yet.
    pub waiting: u64,
    /// Envelopes it was handed and has not settled.
    pub pending: u64,
}

/// How a fan-out worker is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FanoutVitals {
    /// How far each partition of its is behind, ms.
    pub partitions: Vec<(Partition, u64)>,
    /// Events folded.
    pub events: u64,
    /// Envelopes handed to gateways.
    pub envelopes: u64,
    /// Envelopes a full queue did not take.
    pub skipped: u64,
    /// Where most is said, hottest first.
    pub rooms: Vec<HotRoom>,
}

/// A room where much is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotRoom {
    /// Where.
    pub app: AppId,
    /// Which room.
    pub room: RoomId,
    /// Messages a second, over the last ten.
    pub per_second: f64,
}

impl Bus {
    /// Answers whoever asks how this process is, until `stop`.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn serve_vitals(
        &self,
        tasks: &TaskTracker,
        stop: CancellationToken,
        vitals: impl Fn() -> Vitals + Send + 'static,
    ) -> Result<(), async_nats::SubscribeError> {
        let client = self.control.client();
        let mut asked = client.subscribe(EVERYBODY).await?;
        tasks.spawn(async move {
            while let Some(Some(question)) = stop.run_until_cancelled(asked.next()).await {
                let Some(reply) = question.reply else { continue };
                let Ok(payload) = codec::encode(&vitals()) else { continue };
                if let Err(error) = client.publish(reply, payload).await {
                    debug!(error = %chain(&error), "vitals not told");
                }
            }
        });
        Ok(())
    }

    /// How everybody is who answers within `patience`.
    ///
    /// # Errors
    ///
    /// When the connection is closed.
    pub async fn query_vitals(&self, patience: Duration) -> Result<Vec<Vitals>, async_nats::Error> {
        let until = Instant::now() + patience;
        let client = self.control.client();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await?;
        client.publish_with_reply(EVERYBODY, inbox, Default::default()).await?;
        client.flush().await?;
        let mut all = Vec::new();
        while let Ok(Some(answer)) = timeout_at(until, answers.next()).await {
            if answer.status.is_some() {
                break; // nobody listens
            }
            match codec::decode::<Vitals>(&answer.payload) {
                Ok(vitals) => all.push(vitals),
                Err(error) => debug!(error = %chain(&error), "vitals of a newer build not read"),
            }
        }
        Ok(all)
    }
}
