//! 1:1 messages of users who are away: a copy that outlives the log.

use std::time::Duration;

use crate::{
    bus::{Bus, PUBLISH_TIMEOUT},
    log::{APPEND_DEADLINE, AppendCondition, AppendError, Extent, ReadError, ReadFrom, encoded},
    pull::Pulling,
    stream,
};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use qiyu_schema::{
    codec,
    id::{AppId, MsgId, UserId},
    subject,
};

pub use qiyu_schema::command::InboxMessage;

/// An open reading of all inboxes.
pub struct InboxReader(Extent);

impl InboxReader {
    /// For whom the next copy is, and of which message; `None` at what was the
    /// end when the reading was opened.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: this reader is finished, open another one.
    pub async fn next(&mut self) -> Result<Option<(AppId, UserId, MsgId)>, ReadError> {
        while let Some(entry) = self.0.next().await? {
            let kept = codec::decode::<InboxMessage>(&entry.payload).ok();
            if let Some((kept, (app, user))) = kept.zip(subject::parse_inbox(&entry.subject)) {
                return Ok(Some((app, user, kept.msg_id)));
            }
        }
        Ok(None)
    }

    /// Ends the reading.
    pub async fn close(self) {
        self.0.close().await;
    }
}

impl Bus {
    /// Copies a message to its recipient's inbox; a second copy changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Bus::append`].
    pub async fn copy_to_inbox(
        &self,
        app: AppId,
        user: UserId,
        msg_id: MsgId,
        biz_code: i32,
        data: &str,
    ) -> Result<(), AppendError> {
        let subject = subject::inbox(app, user);
        let kept = InboxMessage { msg_id, biz_code, data: data.to_owned() };
        let payload = encoded(&subject, &kept)?;
        let key = format!("inbox:{msg_id}");
        self.publish_stored(subject, payload, &key, AppendCondition::Any, APPEND_DEADLINE)
            .await
            .map(drop)
    }

    /// Everything in a user's inbox, oldest first.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when it does not answer.
    pub async fn read_inbox(
        &self,
        app: AppId,
        user: UserId,
    ) -> Result<Vec<InboxMessage>, ReadError> {
        let entries = self.inbox_entries(app, user).await?;
        Ok(entries.into_iter().map(|(_, kept)| kept).collect())
    }

    /// What all inboxes hold now, for whoever compares them with the log.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`].
    pub async fn read_inboxes(&self) -> Result<InboxReader, ReadError> {
        let reader = self.open_history(stream::INBOX, Vec::new(), ReadFrom::After(0)).await?;
        Ok(InboxReader(Extent::of(reader)))
    }

    /// With their places in the stream.
    async fn inbox_entries(
        &self,
        app: AppId,
        user: UserId,
    ) -> Result<Vec<(u64, InboxMessage)>, ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let inbox = self.control.get_stream_no_info(stream::INBOX).await;
        let inbox = inbox.map_err(|error| open(error.into()))?;
        let consumer = inbox
            .create_consumer(pull::Config {
                deliver_policy: DeliverPolicy::All,
                ack_policy: AckPolicy::None,
                filter_subject: subject::inbox(app, user),
                inactive_threshold: Duration::from_secs(30),
                memory_storage: true,
                num_replicas: 1,
                ..Default::default()
            })
            .await
            .map_err(|error| open(error.into()))?;
        let mut left = consumer.cached_info().num_pending;
        let mut messages = Pulling::from(consumer).await.map_err(open)?;
        let mut found = Vec::new();
        while 0 < left {
            let message = tokio::time::timeout(PUBLISH_TIMEOUT, messages.next())
                .await
                .map_err(|elapsed| open(elapsed.into()))?
                .map_err(open)?;
            let info = message.info().map_err(open)?;
            left = info.pending;
            let kept = codec::decode::<InboxMessage>(&message.payload).ok();
            found.extend(kept.map(|kept| (info.stream_sequence, kept)));
        }
        Ok(found)
    }

    /// Removes from a user's inbox what lies before `position` in the log: what
    /// was copied there later, by whoever else folds the same, stays.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when it does not answer.
    pub async fn purge_inbox(
        &self,
        app: AppId,
        user: UserId,
        position: MsgId,
    ) -> Result<(), ReadError> {
        let open = |source| ReadError::Unavailable { source };
        let inbox = self.control.get_stream_no_info(stream::INBOX).await;
        let inbox = inbox.map_err(|error| open(error.into()))?;
        for (seq, kept) in self.inbox_entries(app, user).await? {
            if kept.msg_id < position {
                inbox.delete_message(seq).await.map_err(|error| open(error.into()))?;
            }
        }
        Ok(())
    }
}
