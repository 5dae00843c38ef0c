//! Messages in HTTP responses, with the body that a gateway sends.

use qiyu_schema::{AppId, MsgId, UserId};
use serde::Serialize;
use utoipa::ToSchema;

/// The business code of chat in a room.
pub(crate) const CHAT: i32 = 5555;

/// A body of the contract's 1003.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Message {
    #[schema(value_type = u32)]
    app_id: AppId,
    /// The caller.
    #[schema(value_type = u64)]
    user_id: UserId,
    biz_code: i32,
    data: String,
    msg_id: String,
}

impl Message {
    pub(crate) fn new(
        app_id: AppId,
        recipient: UserId,
        biz_code: i32,
        data: String,
        msg_id: MsgId,
    ) -> Self {
        Self { app_id, user_id: recipient, biz_code, data, msg_id: msg_id.to_string() }
    }
}

/// One page of them, oldest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessagePage {
    pub(crate) list: Vec<Message>,
    pub(crate) has_next: bool,
}
