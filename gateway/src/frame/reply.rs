//! The body of a frame that is for one client alone.

use qiyu_schema::{AppId, ClientMsgId, MsgId, UserId};
use serde::Serialize;

use super::codes::RefusalCode;

/// The body of a frame that is for one client alone.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reply {
    app_id: u64,
    biz_code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_msg_id: Option<ClientMsgId>,
    data: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    msg_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
    user_id: u64,
}

impl Reply {
    /// Builds a reply that holds `data` only. The ids are plain numbers: a refused
    /// login returns the ids that the client gave, valid or not.
    pub(crate) fn plain(app_id: u64, user_id: u64, data: &'static str) -> Self {
        let (client_msg_id, msg_id, recovered) = (None, None, None);
        Self { app_id, biz_code: 0, client_msg_id, data, msg_id, recovered, user_id }
    }

    /// Builds [`Reply::plain`] for a logged-in client.
    pub(crate) fn to(app: AppId, user: UserId, data: &'static str) -> Self {
        Self::plain(u64::from(app.get()), user.get(), data)
    }

    /// Builds the reply to a login. `position` is the position of the join, if the
    /// client entered a room.
    pub(crate) fn welcome(
        app: AppId,
        user: UserId,
        position: Option<MsgId>,
        recovered: Option<bool>,
    ) -> Self {
        Self {
            msg_id: position.map(|position| position.to_string()),
            recovered,
            ..Self::to(app, user, "true")
        }
    }

    /// Builds the receipt of a business frame.
    pub(crate) fn receipt(
        app: AppId,
        user: UserId,
        client_msg_id: Option<ClientMsgId>,
        outcome: Result<MsgId, RefusalCode>,
    ) -> Self {
        let (data, biz_code, msg_id) = match outcome {
            Ok(msg_id) => ("true", 0, Some(msg_id.to_string())),
            Err(reason) => ("false", reason.code(), None),
        };
        Self { client_msg_id, biz_code, msg_id, ..Self::to(app, user, data) }
    }
}
