//! Facts that the fold derives, for consumers that need to know when users come
//! online without folding sessions themselves.
//!
//! Each fact is stored exactly once, because its key is the position of the
//! event it follows from.

use serde::{Deserialize, Serialize};

use crate::{
    bus::Bus,
    log::{APPEND_DEADLINE, AppendCondition, AppendError, encode_for},
};
use qiyu_schema::{
    id::{AppId, MsgId, Partition, UserId},
    subject,
};

/// A user came online or went offline; the subject tells which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserFact {
    pub app: AppId,
    pub user: UserId,
    /// The event it follows from.
    pub position: MsgId,
    /// Time of the derivation, ms since 1970.
    pub at_ms: u64,
}

impl Bus {
    /// Stores that `fact` (`online` or `offline`) became true of `user` at `position`.
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
        let payload = encode_for(&subject, &record)?;
        let (key, any) = (format!("{fact}:{position}:{app}.{user}"), AppendCondition::Any);
        self.publish_confirmed(subject, payload, &key, any, APPEND_DEADLINE).await.map(drop)
    }
}
