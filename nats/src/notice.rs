//! Notices: what may be lost. Core NATS to each gateway that holds members,
//! never stored, never acknowledged, without a msgId.

use serde::{Deserialize, Serialize};

use crate::{bus::Bus, chain};
use qiyu_schema::{
    codec,
    id::{AppId, Incarnation, RoomId},
    subject,
};

/// Something the members of a room may like to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Where.
    pub app: AppId,
    /// Which room.
    pub room: RoomId,
    /// 5601 viewers, 5602 likes.
    pub biz_code: i32,
    /// JSON text for the recipients.
    pub data: String,
}

/// Sends `notice` to one gateway, or loses it.
pub async fn send(bus: &Bus, to: &Incarnation, notice: &Notice) {
    let Ok(payload) = codec::encode(notice) else { return };
    // A notice is worth no wait: with the connection down it is dropped here.
    if bus.is_connected() {
        bus.publish_and_forget(subject::notices(to), payload).await;
    }
}

/// The notices sent to one gateway.
#[derive(Debug)]
pub struct Notices(pub(crate) async_nats::Subscriber);

impl Notices {
    /// The next one that can be read; `None` when the bus is closed.
    pub async fn next(&mut self) -> Option<Notice> {
        use futures_util::StreamExt;
        loop {
            match codec::decode(&self.0.next().await?.payload) {
                Ok(notice) => return Some(notice),
                Err(error) => tracing::warn!(error = %chain(&error), "notice ignored"),
            }
        }
    }
}
