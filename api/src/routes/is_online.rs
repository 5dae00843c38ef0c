//! `/im/isOnline`: whether a user has a connection.

use std::sync::Arc;

use axum::extract::State;
use qiyu_nats::chain;
use tracing::warn;

use super::parameters::user_id;
use crate::{
    caller::LoggedIn,
    context::ApiContext,
    params::Params,
    response::{ApiError, ResponseBody, Success},
};

/// Returns to a logged-in user whether a user has a connection.
#[utoipa::path(post, path = "/im/isOnline", summary = "Answers whoever is logged in.", tag = "im", security(("login" = [])), params(
    ("userId" = u64, Query, description = "About whom"),
), responses(
    (status = 200, description = "Whether the user has a connection", body = ResponseBody<bool>),
))]
pub(crate) async fn is_online(
    State(context): State<Arc<ApiContext>>,
    LoggedIn(_): LoggedIn,
    params: Params,
) -> Result<Success<bool>, ApiError> {
    let user = user_id(&params)?;
    let online = context.sessions.is_online(context.app, user).await.map_err(|error| {
        warn!(%user, error = %chain(&error), "sessions not read");
        ApiError::system()
    })?;
    Ok(Success(online))
}
