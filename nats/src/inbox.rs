//! The inbox `IM_INBOX`: pending direct messages of absent users. It holds them
//! for longer than the log does.

use crate::{
    bus::Bus,
    connection::PUBLISH_TIMEOUT,
    log::{
        APPEND_DEADLINE, AppendCondition, AppendError, BoundedReader, ReadError, ReadFrom,
        encode_for,
    },
    pull::PullStream,
    stream,
};
use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use qiyu_schema::{
    codec,
    id::{AppId, MsgId, UserId},
    subject,
};
use std::time::Duration;

pub use qiyu_schema::command::InboxMessage;

/// The server removes a reader's consumer after this time of inactivity.
const CONSUMER_INACTIVE_MAX: Duration = Duration::from_secs(30);

/// An open reader of all inboxes.
pub struct InboxReader(BoundedReader);

impl InboxReader {
    /// Returns the recipient and the message of the next copy; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: this reader is finished, and another one must be opened.
    pub async fn next(&mut self) -> Result<Option<(AppId, UserId, MsgId)>, ReadError> {
        while let Some(entry) = self.0.next().await? {
            let message = codec::decode::<InboxMessage>(&entry.payload).ok();
            if let (Some(message), Some((app, user))) =
                (message, subject::parse_inbox(&entry.subject))
            {
                return Ok(Some((app, user, message.msg_id)));
            }
        }
        Ok(None)
    }

    /// Ends the reading and removes its consumer.
    pub async fn close(self) {
        self.0.close().await;
    }
}

impl Bus {
    /// Copies a message to its recipient's inbox. A second copy changes nothing.
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
        let message = InboxMessage { msg_id, biz_code, data: data.to_owned() };
        let payload = encode_for(&subject, &message)?;
        let (key, any) = (format!("inbox:{msg_id}"), AppendCondition::Any);
        self.publish_confirmed(subject, payload, &key, any, APPEND_DEADLINE).await.map(drop)
    }

    /// Returns all messages in a user's inbox, oldest first.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the stream does not respond.
    pub async fn read_inbox(
        &self,
        app: AppId,
        user: UserId,
    ) -> Result<Vec<InboxMessage>, ReadError> {
        let stream = self.inbox_stream().await?;
        let entries = inbox_entries(&stream, app, user).await?;
        Ok(entries.into_iter().map(|(_, message)| message).collect())
    }

    /// Reads all inboxes up to their present end, for a comparison with the log.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`].
    pub async fn read_inboxes(&self) -> Result<InboxReader, ReadError> {
        let reader = self.open_history(stream::INBOX, Vec::new(), ReadFrom::After(0)).await?;
        Ok(InboxReader(reader.to_end_at_opening().with_entry_timeout()))
    }

    /// Removes the messages before `position` from a user's inbox. Later ones,
    /// which another owner of the same partition may have copied, stay.
    ///
    /// # Errors
    ///
    /// [`ReadError::Unavailable`] when the stream does not respond.
    pub async fn purge_inbox(
        &self,
        app: AppId,
        user: UserId,
        position: MsgId,
    ) -> Result<(), ReadError> {
        let stream = self.inbox_stream().await?;
        for (seq, message) in inbox_entries(&stream, app, user).await? {
            if message.msg_id < position {
                stream.delete_message(seq).await.map_err(ReadError::unavailable)?;
            }
        }
        Ok(())
    }

    async fn inbox_stream(&self) -> Result<Stream<()>, ReadError> {
        self.control.get_stream_no_info(stream::INBOX).await.map_err(ReadError::unavailable)
    }
}

/// Returns the messages in a user's inbox with their sequences in the stream.
async fn inbox_entries(
    stream: &Stream<()>,
    app: AppId,
    user: UserId,
) -> Result<Vec<(u64, InboxMessage)>, ReadError> {
    let consumer = stream
        .create_consumer(pull::Config {
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            filter_subject: subject::inbox(app, user),
            inactive_threshold: CONSUMER_INACTIVE_MAX,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        })
        .await
        .map_err(ReadError::unavailable)?;
    let mut left = consumer.cached_info().num_pending;
    let mut messages = PullStream::open(consumer).await.map_err(ReadError::unavailable)?;
    let mut found = Vec::new();
    while left > 0 {
        let message = tokio::time::timeout(PUBLISH_TIMEOUT, messages.next())
            .await
            .map_err(ReadError::unavailable)?
            .map_err(ReadError::unavailable)?;
        let info = message.info().map_err(ReadError::unavailable)?;
        left = info.pending;
        let message = codec::decode::<InboxMessage>(&message.payload).ok();
        found.extend(message.map(|message| (info.stream_sequence, message)));
    }
    Ok(found)
}
