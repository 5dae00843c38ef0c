//! `/home/initPage`: who am I, and may I open a room?

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;

use utoipa::ToSchema;

use crate::{
    answer::{Answer, Body},
    edge::Edge,
    identity::Caller,
};

/// Somebody who is not logged in is user 0 without a name, as the seed has it.
#[derive(Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HomePage {
    login_status: bool,
    user_id: u64,
    nick_name: String,
    avatar: String,
    show_start_living_btn: bool,
}

/// Answers anybody.
#[utoipa::path(post, path = "/home/initPage", tag = "user", responses(
    (status = 200, description = "Who one is; anybody may ask", body = Body<HomePage>),
))]
pub(crate) async fn init_page(
    State(edge): State<Arc<Edge>>,
    Caller(caller): Caller,
) -> Answer<HomePage> {
    let Some(who) = caller else { return Answer(HomePage::default()) };
    let profile = edge.profile(&who).await;
    Answer(HomePage {
        login_status: true,
        user_id: who.user.get(),
        avatar: profile.avatar_or_default().to_owned(),
        nick_name: profile.nick_name,
        show_start_living_btn: who.vip,
    })
}
