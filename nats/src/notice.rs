//! Notices: messages that may be lost. Core NATS carries them to each gateway
//! with members. They are never stored or acknowledged and have no msgId.

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use crate::{bus::Bus, chain};
use qiyu_schema::{
    codec,
    id::{AppId, Incarnation, RoomId},
    subject,
};

/// A message for the members of a room that may be lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    pub app: AppId,
    pub room: RoomId,
    /// 5601 viewers, 5602 likes.
    pub biz_code: i32,
    /// JSON text for the recipients.
    pub data: String,
}

/// Sends `notice` to one gateway. It is dropped while the connection is down,
/// because no notice is worth a wait.
pub async fn send(bus: &Bus, to: &Incarnation, notice: &Notice) {
    let Ok(payload) = codec::encode(notice) else { return };
    if bus.is_connected() {
        bus.publish_and_forget(subject::notices(to), payload).await;
    }
}

impl Bus {
    /// Subscribes to the notices for one gateway incarnation.
    ///
    /// # Errors
    ///
    /// Fails when the connection is closed.
    pub async fn notices(
        &self,
        gateway: &Incarnation,
    ) -> Result<Notices, async_nats::SubscribeError> {
        Ok(Notices(self.consume.client().subscribe(subject::notices(gateway)).await?))
    }
}

/// The notices sent to one gateway.
#[derive(Debug)]
pub struct Notices(async_nats::Subscriber);

impl Notices {
    /// Returns the next notice that can be decoded; `None` when the bus is closed.
    pub async fn next(&mut self) -> Option<Notice> {
        loop {
            match codec::decode(&self.0.next().await?.payload) {
                Ok(notice) => return Some(notice),
                Err(error) => tracing::warn!(error = %chain(&error), "notice ignored"),
            }
        }
    }
}
