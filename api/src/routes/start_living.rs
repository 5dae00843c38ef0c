//! `/living/startingLiving`: an anchor opens a room, or gets the one that is open.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::{RoomId, command::OpenRoom};
use serde::Serialize;
use utoipa::ToSchema;

use super::parameters::room_type;
use crate::{
    caller::LoggedIn,
    context::ApiContext,
    params::Params,
    profile::is_avatar,
    response::{ApiError, ResponseBody, Success},
    texts,
};

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Started)]
pub(crate) struct StartedRoom {
    #[schema(value_type = u64)]
    room_id: RoomId,
}

/// Needs the vip flag.
#[utoipa::path(post, path = "/living/startingLiving", tag = "living", security(("login" = [])), params(
    ("type" = u8, Query, description = "1 or 2"),
    ("roomName" = Option<String>, Query, description = "Absent: made from the id of the anchor"),
    ("covertImg" = Option<String>, Query, description = "Absent: the picture of the anchor"),
), responses(
    (status = 200, description = "The room, a new one or the one that is open; code 401, 403 without vip, 400", body = ResponseBody<StartedRoom>),
))]
pub(crate) async fn start_living(
    State(context): State<Arc<ApiContext>>,
    LoggedIn(identity): LoggedIn,
    params: Params,
) -> Result<Success<StartedRoom>, ApiError> {
    if !identity.vip {
        return Err(ApiError::forbidden());
    }
    let room_type = room_type(&params)?;
    let cover = params.text("covertImg").unwrap_or_default().to_owned();
    if !is_avatar(&cover) {
        return Err(ApiError::bad_parameter(texts::BAD_COVER));
    }
    let name = params.text("roomName").map(str::to_owned);
    let profile = context.profile(&identity).await;
    let cover = if cover.is_empty() { profile.avatar } else { cover };
    let open = OpenRoom { app: context.app, anchor: identity.user, room_type, name, cover };
    let room_id = context.command_living(&open).await?;
    Ok(Success(StartedRoom { room_id }))
}
