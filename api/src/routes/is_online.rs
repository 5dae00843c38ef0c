//! `/im/isOnline`: has a user a connection?

use std::sync::Arc;

use axum::extract::State;
use tracing::warn;

use crate::{
    answer::{Answer, Body, Refused},
    edge::Edge,
    identity::LoggedIn,
    params::Params,
};

/// Answers whoever is logged in.
#[utoipa::path(post, path = "/im/isOnline", tag = "im", security(("login" = [])), params(
    ("userId" = u64, Query, description = "About whom"),
), responses(
    (status = 200, description = "Whether the user has a connection", body = Body<bool>),
))]
pub(crate) async fn is_online(
    State(edge): State<Arc<Edge>>,
    LoggedIn(_): LoggedIn,
    params: Params,
) -> Result<Answer<bool>, Refused> {
    let missing = || Refused::parameter("需要给定用户id");
    let user = params.parsed("userId").map_err(|_| missing())?.ok_or_else(missing)?;
    let online = edge.sessions.is_online(edge.app, user).await.map_err(|error| {
        warn!(%user, error = &error as &dyn std::error::Error, "sessions not read");
        Refused::system()
    })?;
    Ok(Answer(online))
}
