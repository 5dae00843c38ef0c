//! Who has a connection.

use std::sync::Arc;

use axum::{Json, extract::State};
use futures_util::{StreamExt, TryStreamExt, stream};
use qiyu_schema::{AppId, UserId};
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::ToSchema;

use super::{Asked, Call, Failed, Failure, ids, maybe_id};
use crate::edge::Edge;

/// Users asked about at once.
const USERS_MAX: usize = 1000;
/// Sessions read at once.
const READS: usize = 16;

/// About whom: one, or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AskOnline {
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

/// Who is there.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Online {
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

/// Says who has a connection.
#[utoipa::path(post, path = "/server/online", tag = "server", security(("apiKey" = [])), request_body = AskOnline, responses(
    (status = 200, description = "Who is there", body = Online),
    (status = 400, description = "The body is wrong, or names over 1000 users", body = Failure),
    (status = 401, description = "The key is wrong", body = Failure),
))]
pub(super) async fn online(
    State(edge): State<Arc<Edge>>,
    asked: Asked<AskOnline>,
) -> Result<Json<Online>, Failed> {
    asked.answered(&edge).await
}

impl Call for AskOnline {
    type Answer = Online;

    async fn answer(self, edge: &Edge) -> Result<Online, Failed> {
        let app = edge.app_of(self.app_id).map_err(Failed::asked)?;
        let users: Vec<UserId> = self.user_id.into_iter().chain(self.user_ids).collect();
        if users.is_empty() || USERS_MAX < users.len() {
            return Err(Failed::asked("give a userId, or userIds of 1 to 1000 users"));
        }
        let look = |user_id| async move {
            let online = edge.sessions.is_online(app, user_id).await;
            online.map(|online| UserOnline { user_id, online })
        };
        let list = stream::iter(users).map(look).buffered(READS).try_collect::<Vec<_>>().await;
        let list = list.map_err(|error| {
            warn!(error = &error as &dyn std::error::Error, "sessions not read");
            Failed::system()
        })?;
        let online = self.user_id.and_then(|_| list.first()).map(|first| first.online);
        Ok(Online { online, list })
    }
}
