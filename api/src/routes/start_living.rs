//! `/living/startingLiving`: an anchor opens a room, or gets the one that is open.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::{RoomId, command::OpenRoom};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    answer::{Answer, Body, Refused},
    edge::Edge,
    identity::LoggedIn,
    params::Params,
    profile::is_avatar,
};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Started {
    #[schema(value_type = u64)]
    room_id: RoomId,
}

/// Needs the vip flag.
#[utoipa::path(post, path = "/living/startingLiving", tag = "living", security(("login" = [])), params(
    ("type" = u8, Query, description = "1 or 2"),
    ("roomName" = Option<String>, Query, description = "Absent: made from the id of the anchor"),
    ("covertImg" = Option<String>, Query, description = "Absent: the picture of the anchor"),
), responses(
    (status = 200, description = "The room, a new one or the one that is open; code 401, 403 without vip, 400", body = Body<Started>),
))]
pub(crate) async fn start_living(
    State(edge): State<Arc<Edge>>,
    LoggedIn(who): LoggedIn,
    params: Params,
) -> Result<Answer<Started>, Refused> {
    if !who.vip {
        return Err(Refused::forbidden());
    }
    let room_type = super::list_rooms::room_type(&params)?;
    let cover = params.text("covertImg").unwrap_or_default().to_owned();
    if !is_avatar(&cover) {
        return Err(Refused::parameter("封面地址不正确"));
    }
    let name = params.text("roomName").map(str::to_owned);
    let profile = edge.profile(&who).await;
    let cover = if cover.is_empty() { profile.avatar } else { cover }; // as the seed has it
    let open = OpenRoom { app: edge.app, anchor: who.user, room_type, name, cover };
    let room_id = edge.living(&open).await?;
    Ok(Answer(Started { room_id }))
}
