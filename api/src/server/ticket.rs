//! `/server/token`: a ticket for one gateway connection of a user, for the user's backend.
//!
//! A *ticket* is called `token` on the wire.

use std::sync::Arc;

use axum::{Json, extract::State};
use qiyu_schema::{AppId, UserId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    call::{Authorized, ServerCall},
    error::{ServerError, ServerErrorBody},
    ids::{id, maybe_id},
};
use crate::{
    context::ApiContext,
    identity::Identity,
    profile::{is_avatar, shown_name},
    texts,
    ticket::{ImConfig, issue_ticket},
};

/// The user, and the values to store in its profile.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = AskToken, description = "For whom.")]
pub(crate) struct TicketRequest {
    /// Absent: the first of QIYU_APPS.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u32>)]
    app_id: Option<AppId>,
    #[serde(deserialize_with = "id")]
    #[schema(value_type = u64)]
    user_id: UserId,
    /// Kept as the user's name. Absent: the name they have.
    #[serde(default)]
    nick_name: Option<String>,
    /// Kept as the user's picture. Absent: the picture they have.
    #[serde(default)]
    avatar: Option<String>,
}

/// Gives out a ticket for one connection of a user.
#[utoipa::path(post, path = "/server/token", tag = "server", security(("apiKey" = [])), request_body = TicketRequest, responses(
    (status = 200, description = "As /im/getImConfig", body = ImConfig),
    (status = 400, description = "The body is wrong", body = ServerErrorBody),
    (status = 401, description = "The key is wrong", body = ServerErrorBody),
    (status = 503, description = "No gateway lives", body = ServerErrorBody),
))]
pub(super) async fn token(
    State(context): State<Arc<ApiContext>>,
    call: Authorized<TicketRequest>,
) -> Result<Json<ImConfig>, ServerError> {
    call.respond(&context).await
}

impl ServerCall for TicketRequest {
    type Response = ImConfig;

    async fn handle(self, context: &ApiContext) -> Result<ImConfig, ServerError> {
        let app = context.app_or_default(self.app_id).map_err(ServerError::bad_request)?;
        if self.avatar.as_deref().is_some_and(|avatar| !is_avatar(avatar)) {
            return Err(ServerError::bad_request(texts::server::BAD_AVATAR));
        }
        let nick_name = self.nick_name.as_deref().and_then(shown_name);
        let identity = Identity { user: self.user_id, nick_name, avatar: self.avatar, vip: false };
        Ok(issue_ticket(context, app, &identity).await?)
    }
}
