//! `/living/closeLiving`: the anchor ends the room.

use std::sync::Arc;

use axum::extract::State;
use qiyu_nats::command::CloseRoom;

use crate::{
    answer::{Done, Refused},
    edge::Edge,
    identity::LoggedIn,
    params::{Asked, Params},
};

/// Whoever may not, and whatever room it is, hears the same words.
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
