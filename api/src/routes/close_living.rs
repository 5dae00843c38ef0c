//! `/living/closeLiving`: the anchor closes the room.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::command::CloseRoom;

use super::parameters::room_id;
use crate::{
    caller::LoggedIn,
    context::ApiContext,
    params::{Params, RequestedId},
    response::{ApiError, Nothing, ResponseBody, SuccessWithoutData},
    texts,
};

/// Closes the caller's room. All refusals have the same text.
#[utoipa::path(post, path = "/living/closeLiving", summary = "Whoever may not, and whatever room it is, hears the same words.", tag = "living", security(("login" = [])), params(
    ("roomId" = u64, Query, description = "The room"),
), responses(
    (status = 200, description = "code 200, or 400, 401, 501 (not the anchor, unknown, closed)", body = ResponseBody<Nothing>),
))]
pub(crate) async fn close_living(
    State(context): State<Arc<ApiContext>>,
    LoggedIn(identity): LoggedIn,
    params: Params,
) -> Result<SuccessWithoutData, ApiError> {
    match room_id(&params)? {
        RequestedId::Valid(room) => {
            context
                .command_living(&CloseRoom { app: context.app, room, by: identity.user })
                .await?;
            Ok(SuccessWithoutData)
        }
        RequestedId::Impossible => Err(ApiError::new(501, texts::ROOM_NOT_CLOSED)),
    }
}
