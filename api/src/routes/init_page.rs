//! `/home/initPage`: the caller's identity, and whether the caller may open a room.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    caller::Caller,
    context::ApiContext,
    response::{ResponseBody, Success},
};

/// The caller's identity. A caller without a login is user 0 without a name.
#[derive(Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(
    description = "Somebody who is not logged in is user 0 without a name, as the seed has it."
)]
pub(crate) struct HomePage {
    login_status: bool,
    user_id: u64,
    nick_name: String,
    avatar: String,
    show_start_living_btn: bool,
}

/// Answers any caller.
#[utoipa::path(post, path = "/home/initPage", summary = "Answers anybody.", tag = "user", responses(
    (status = 200, description = "Who one is; anybody may ask", body = ResponseBody<HomePage>),
))]
pub(crate) async fn init_page(
    State(context): State<Arc<ApiContext>>,
    Caller(caller): Caller,
) -> Success<HomePage> {
    let Some(identity) = caller else { return Success(HomePage::default()) };
    let profile = context.profile(&identity).await;
    Success(HomePage {
        login_status: true,
        user_id: identity.user.get(),
        avatar: profile.avatar_or_default().to_owned(),
        nick_name: profile.nick_name,
        show_start_living_btn: identity.vip,
    })
}
