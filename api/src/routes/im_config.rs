//! `/im/getImConfig`: a ticket for one connection, and the gateway to use it at.

use std::sync::Arc;

use axum::extract::State;

use crate::{
    caller::LoggedIn,
    context::ApiContext,
    response::{ApiError, ResponseBody, Success},
    ticket::{ImConfig, issue_ticket},
};

/// Issues a ticket to a logged-in user, if there is a gateway.
#[utoipa::path(post, path = "/im/getImConfig", summary = "Answers whoever is logged in, while a gateway lives.", tag = "im", security(("login" = [])), responses(
    (status = 200, description = "code 200, or 401, or 501 when no gateway lives", body = ResponseBody<ImConfig>),
))]
pub(crate) async fn im_config(
    State(context): State<Arc<ApiContext>>,
    LoggedIn(identity): LoggedIn,
) -> Result<Success<ImConfig>, ApiError> {
    issue_ticket(&context, context.app, &identity).await.map(Success)
}
