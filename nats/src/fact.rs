//! Facts the fold derives: for consumers that ask "who came online?", without
//! folding sessions themselves. Each exactly once, because its key is the
//! position of the event it follows from.

use serde::{Deserialize, Serialize};

use crate::{
    bus::Bus,
    log::{APPEND_DEADLINE, AppendCondition, AppendError, encoded},
};
use qiyu_schema::{
    id::{AppId, MsgId, Partition, UserId},
    subject,
};

/// A user came online or went offline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserFact {
    /// Where.
    pub app: AppId,
    /// Who.
    pub user: UserId,
    /// The event it follows from.
    pub position: MsgId,
    /// When it was derived, ms since 1970.
    pub at_ms: u64,
}

impl Bus {
    /// Records that `fact` ("online", "offline") became true of `user` at `position`.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`].
    pub async fn record_fact(
        &self,
        partition: Partition,
        app: AppId,
        user: UserId,
        fact: &'static str,
        position: MsgId,
    ) -> Result<(), AppendError> {
        let subject = subject::user_fact(partition, app, fact);
        let record = UserFact { app, user, position, at_ms: crate::now_ms() };
        let payload = encoded(&subject, &record)?;
        let key = format!("{fact}:{position}:{app}.{user}");
        self.publish_stored(subject, payload, &key, AppendCondition::Any, APPEND_DEADLINE)
            .await
            .map(drop)
    }
}
