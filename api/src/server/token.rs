//! A ticket for somebody's IM connection, asked for by their own backend.

use std::sync::Arc;

use axum::{Json, extract::State};
use qiyu_schema::{AppId, UserId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Asked, Call, Failed, Failure, id, maybe_id};
use crate::{
    edge::Edge,
    identity::Identity,
    profile::{is_avatar, shown_name},
    routes::im_config::{ImConfig, ticket_for},
};

/// For whom.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AskToken {
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
#[utoipa::path(post, path = "/server/token", tag = "server", security(("apiKey" = [])), request_body = AskToken, responses(
    (status = 200, description = "As /im/getImConfig", body = ImConfig),
    (status = 400, description = "The body is wrong", body = Failure),
    (status = 401, description = "The key is wrong", body = Failure),
    (status = 503, description = "No gateway lives", body = Failure),
))]
pub(super) async fn token(
    State(edge): State<Arc<Edge>>,
    asked: Asked<AskToken>,
) -> Result<Json<ImConfig>, Failed> {
    asked.answered(&edge).await
}

impl Call for AskToken {
    type Answer = ImConfig;

    async fn answer(self, edge: &Edge) -> Result<ImConfig, Failed> {
        let app = edge.app_of(self.app_id).map_err(Failed::asked)?;
        if self.avatar.as_deref().is_some_and(|avatar| !is_avatar(avatar)) {
            return Err(Failed::asked("avatar is neither an http(s) URL nor a path"));
        }
        let nick_name = self.nick_name.as_deref().and_then(shown_name);
        let who = Identity { user: self.user_id, nick_name, avatar: self.avatar, vip: false };
        Ok(ticket_for(edge, app, &who).await?)
    }
}
