//! The queue of a gateway that is gone, open for its recovery.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, pull};
use futures_util::StreamExt;
use tracing::debug;

use super::{ACK_PENDING_MAX, Delivery, OutboxError};
use crate::{bus::Bus, chain, stream};
use qiyu_schema::{id::Incarnation, subject};

const ATTEMPT: &str = "take over";
const BATCH: usize = 500;
/// An envelope whose recovering process dies is delivered to the next one after this time.
const ACK_WAIT: Duration = Duration::from_secs(5);
const CONSUMER_INACTIVE_MAX: Duration = Duration::from_secs(600);
/// Pause while the rest of the queue is with another process.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The queue of a gateway that is gone.
pub struct AbandonedOutbox {
    gateway: Incarnation,
    name: String,
    consumer: Consumer<pull::Config>,
}

impl Bus {
    /// Opens the queue of a gateway that is gone. Several processes may do so at
    /// once and share the work.
    ///
    /// # Errors
    ///
    /// Fails when NATS refuses or does not respond.
    pub async fn open_abandoned_outbox(
        &self,
        gateway: &Incarnation,
    ) -> Result<AbandonedOutbox, OutboxError> {
        self.remove_outbox(gateway).await; // a queue allows one consumer only
        let out = self.consume.get_stream_no_info(stream::OUT).await;
        let out = out.map_err(OutboxError::of(ATTEMPT, gateway))?;
        let name = format!("take-{}-{}", gateway.id, gateway.epoch);
        let consumer = out
            .create_consumer(pull::Config {
                durable_name: Some(name.clone()),
                deliver_policy: DeliverPolicy::All,
                ack_policy: AckPolicy::Explicit,
                ack_wait: ACK_WAIT,
                filter_subject: subject::outbox(gateway),
                max_ack_pending: ACK_PENDING_MAX,
                max_deliver: -1,
                inactive_threshold: CONSUMER_INACTIVE_MAX,
                ..Default::default()
            })
            .await
            .map_err(OutboxError::of(ATTEMPT, gateway))?;
        Ok(AbandonedOutbox { gateway: gateway.clone(), name, consumer })
    }
}

impl AbandonedOutbox {
    /// Returns some of the remaining deliveries; none when the queue is empty
    /// and no other process holds any.
    ///
    /// # Errors
    ///
    /// Fails when NATS does not respond.
    pub async fn fetch_batch(&mut self) -> Result<Vec<Delivery>, OutboxError> {
        loop {
            let batch = self.consumer.fetch().max_messages(BATCH).messages().await;
            let mut batch = batch.map_err(OutboxError::of(ATTEMPT, &self.gateway))?;
            let mut fetched = Vec::new();
            while let Some(message) = batch.next().await {
                let message = message.map_err(OutboxError::of(ATTEMPT, &self.gateway))?;
                fetched.extend(Delivery::of(message));
            }
            if !fetched.is_empty() {
                return Ok(fetched);
            }
            let info = self.consumer.get_info().await;
            let info = info.map_err(OutboxError::of(ATTEMPT, &self.gateway))?;
            if info.num_pending == 0 && info.num_ack_pending == 0 {
                return Ok(fetched);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Removes the consumer of the empty queue.
    pub async fn close(self, bus: &Bus) {
        let Ok(out) = bus.control.get_stream_no_info(stream::OUT).await else { return };
        if let Err(error) = out.delete_consumer(&self.name).await {
            debug!(gateway = %self.gateway, error = %chain(&error), "consumer not removed, it ends by itself");
        }
    }
}
