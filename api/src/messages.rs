//! Messages as HTTP hands them out: the bodies a socket would have delivered.

use qiyu_schema::{AppId, MsgId, UserId};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{answer::Refused, params::Params};

/// Chat in a living room.
pub(crate) const CHAT: i32 = 5555;
/// Messages on a page, if nobody says how many.
const PAGE_DEFAULT: usize = 50;
/// Messages on a page at most.
const PAGE_MAX: usize = 100;

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

/// How many messages the caller wants.
pub(crate) fn page_size(params: &Params) -> Result<usize, Refused> {
    let refused = || Refused::parameter("分页查询参数错误");
    match params.parsed::<usize>("limit").map_err(|_| refused())? {
        None => Ok(PAGE_DEFAULT),
        Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
        Some(_) => Err(refused()),
    }
}
