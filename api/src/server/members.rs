//! `/server/rooms/{id}/members`: the users inside a room.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use qiyu_nats::chain;
use qiyu_schema::{AppId, Partition, RoomId, UserId, command::ListMembers};
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::ToSchema;

use super::{
    call::{Authorized, ServerCall},
    error::{ServerError, ServerErrorBody},
    ids::{id, maybe_id},
};
use crate::{context::ApiContext, texts};

/// Members on a page, also without a limit in the request.
const PAGE_MAX: u32 = 1000;

/// The page to return.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AskMembers, description = "Which page.")]
pub(crate) struct MembersRequest {
    /// Absent: the first of QIYU_APPS.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u32>)]
    app_id: Option<AppId>,
    /// Only users above this one: the last of the page before.
    #[serde(default, deserialize_with = "maybe_id")]
    #[schema(value_type = Option<u64>)]
    after: Option<UserId>,
    /// 1 to 1000; absent: 1000.
    #[serde(default)]
    limit: Option<u32>,
}

/// The request over NATS, where no path names the room.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoomMembersRequest {
    #[serde(deserialize_with = "id")]
    room_id: RoomId,
    #[serde(flatten)]
    page: MembersRequest,
}

/// Users inside a room, each once, by their ids.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Members)]
pub(crate) struct MemberPage {
    #[schema(value_type = Vec<u64>)]
    list: Vec<UserId>,
    /// How many there are in all.
    total: u64,
    has_next: bool,
}

/// Lists the users inside a room.
#[utoipa::path(post, path = "/server/rooms/{id}/members", summary = "Lists who is inside a room.", tag = "server", security(("apiKey" = [])),
    params(("id" = u64, Path, description = "The room")), request_body = MembersRequest, responses(
    (status = 200, description = "A page of them; none of a room that is closed or was never open", body = MemberPage),
    (status = 400, description = "The body is wrong", body = ServerErrorBody),
    (status = 401, description = "The key is wrong", body = ServerErrorBody),
    (status = 503, description = "Nobody can tell at the moment", body = ServerErrorBody),
))]
pub(super) async fn members(
    State(context): State<Arc<ApiContext>>,
    Path(room): Path<String>,
    Authorized(page): Authorized<MembersRequest>,
) -> Result<Json<MemberPage>, ServerError> {
    let room_id =
        room.parse().map_err(|error| ServerError::bad_request(format!("room: {error}")))?;
    RoomMembersRequest { room_id, page }.handle(&context).await.map(Json)
}

impl ServerCall for MembersRequest {
    type Response = MemberPage;

    async fn handle(self, _: &ApiContext) -> Result<MemberPage, ServerError> {
        Err(ServerError::bad_request(texts::server::ROOM_ID_MISSING))
    }
}

impl ServerCall for RoomMembersRequest {
    type Response = MemberPage;

    async fn handle(self, context: &ApiContext) -> Result<MemberPage, ServerError> {
        let RoomMembersRequest { room_id: room, page: MembersRequest { app_id, after, limit } } =
            self;
        let app = context.app_or_default(app_id).map_err(ServerError::bad_request)?;
        let limit = limit.unwrap_or(PAGE_MAX);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(ServerError::bad_request(texts::server::BAD_LIMIT));
        }
        let partition = Partition::of_room(app, room);
        match context.bus.request_owner(partition, &ListMembers { app, room, after, limit }).await {
            Ok(found) => {
                Ok(MemberPage { list: found.users, total: found.total, has_next: found.has_next })
            }
            Err(error) => {
                warn!(%room, error = %chain(&error), "members not listed");
                Err(ServerError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    texts::server::MEMBERS_UNAVAILABLE,
                ))
            }
        }
    }
}
