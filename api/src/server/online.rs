//! `/server/online`: whether users have a connection.

use std::sync::Arc;

use axum::{Json, extract::State};
use futures_util::{StreamExt, TryStreamExt, stream};
use qiyu_nats::chain;
use qiyu_schema::{AppId, UserId};
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::ToSchema;

use super::{
    call::{Authorized, ServerCall},
    error::{ServerError, ServerErrorBody},
    ids::{ids, maybe_id},
};
use crate::{context::ApiContext, texts};

/// Users in one request.
const USERS_MAX: usize = 1000;
/// Sessions of users that are read concurrently.
const CONCURRENT_READS: usize = 16;

/// The users in question: one, or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = AskOnline, description = "About whom: one, or several.")]
pub(crate) struct OnlineRequest {
    /// Absent: the first of QIYU_APPS.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u32>)]
    app_id: Option<AppId>,
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    user_id: Option<UserId>,
    /// At most 1000.
    #[serde(default, deserialize_with = "ids")]
    #[schema(value_type = Vec<u64>)]
    user_ids: Vec<UserId>,
}

/// The users' state, in the order of the request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Online, description = "Who is there.")]
pub(crate) struct OnlineResponse {
    /// The one asked about with userId; absent without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<bool>,
    /// Everybody asked about, in that order.
    list: Vec<UserOnline>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserOnline {
    #[schema(value_type = u64)]
    user_id: UserId,
    online: bool,
}

/// Returns whether users have a connection.
#[utoipa::path(post, path = "/server/online", summary = "Says who has a connection.", tag = "server", security(("apiKey" = [])), request_body = OnlineRequest, responses(
    (status = 200, description = "Who is there", body = OnlineResponse),
    (status = 400, description = "The body is wrong, or names over 1000 users", body = ServerErrorBody),
    (status = 401, description = "The key is wrong", body = ServerErrorBody),
))]
pub(super) async fn online(
    State(context): State<Arc<ApiContext>>,
    call: Authorized<OnlineRequest>,
) -> Result<Json<OnlineResponse>, ServerError> {
    call.respond(&context).await
}

impl ServerCall for OnlineRequest {
    type Response = OnlineResponse;

    async fn handle(self, context: &ApiContext) -> Result<OnlineResponse, ServerError> {
        let app = context.app_or_default(self.app_id).map_err(ServerError::bad_request)?;
        let users: Vec<UserId> = self.user_id.into_iter().chain(self.user_ids).collect();
        if users.is_empty() || users.len() > USERS_MAX {
            return Err(ServerError::bad_request(texts::server::BAD_USERS));
        }
        let read = |user_id| async move {
            let online = context.sessions.is_online(app, user_id).await;
            online.map(|online| UserOnline { user_id, online })
        };
        let list =
            stream::iter(users).map(read).buffered(CONCURRENT_READS).try_collect::<Vec<_>>().await;
        let list = list.map_err(|error| {
            warn!(error = %chain(&error), "sessions not read");
            ServerError::system()
        })?;
        let online = self.user_id.and_then(|_| list.first()).map(|first| first.online);
        Ok(OnlineResponse { online, list })
    }
}
