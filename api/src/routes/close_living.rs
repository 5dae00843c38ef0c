//! `/living/closeLiving`: the anchor ends the room.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::command::CloseRoom;

use crate::{
    answer::{Body, Done, Nothing, Refused},
    edge::Edge,
    identity::LoggedIn,
    params::{Asked, Params},
};

/// Whoever may not, and whatever room it is, hears the same words.
#[utoipa::path(post, path = "/living/closeLiving", tag = "living", security(("login" = [])), params(
    ("roomId" = u64, Query, description = "The room"),
), responses(
    (status = 200, description = "code 200, or 400, 401, 501 (not the anchor, unknown, closed)", body = Body<Nothing>),
))]
pub(crate) async fn close_living(
    State(edge): State<Arc<Edge>>,
    LoggedIn(who): LoggedIn,
    params: Params,
) -> Result<Done, Refused> {
    match super::anchor_config::room(&params)? {
        Asked::Id(room) => {
            edge.living(&CloseRoom { app: edge.app, room, by: who.user }).await?;
            Ok(Done)
        }
        Asked::Nothing => Err(Refused::new(501, "关播异常，请稍后再试")),
    }
}
