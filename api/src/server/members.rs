//! Who is inside a room.

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

use super::{Asked, Call, Failed, Failure, id, maybe_id};
use crate::edge::Edge;

/// Members on a page, if nobody says how many, and at most.
const PAGE_MAX: u32 = 1000;

/// Which page.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AskMembers {
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

/// The same over NATS, where no path names the room.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AskMembersOf {
    #[serde(deserialize_with = "id")]
    room_id: RoomId,
    #[serde(flatten)]
    page: AskMembers,
}

/// Users inside a room, each once, by their ids.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Members {
    #[schema(value_type = Vec<u64>)]
    list: Vec<UserId>,
    /// How many there are in all.
    total: u64,
    has_next: bool,
}

/// Lists who is inside a room.
#[utoipa::path(post, path = "/server/rooms/{id}/members", tag = "server", security(("apiKey" = [])),
    params(("id" = u64, Path, description = "The room")), request_body = AskMembers, responses(
    (status = 200, description = "A page of them; none of a room that is closed or was never open", body = Members),
    (status = 400, description = "The body is wrong", body = Failure),
    (status = 401, description = "The key is wrong", body = Failure),
    (status = 503, description = "Nobody can tell at the moment", body = Failure),
))]
pub(super) async fn members(
    State(edge): State<Arc<Edge>>,
    Path(room): Path<String>,
    Asked(page): Asked<AskMembers>,
) -> Result<Json<Members>, Failed> {
    let room_id = room.parse().map_err(|error| Failed::asked(format!("room: {error}")))?;
    AskMembersOf { room_id, page }.answer(&edge).await.map(Json)
}

impl Call for AskMembers {
    type Answer = Members;

    async fn answer(self, _: &Edge) -> Result<Members, Failed> {
        Err(Failed::asked("roomId is missing"))
    }
}

impl Call for AskMembersOf {
    type Answer = Members;

    async fn answer(self, edge: &Edge) -> Result<Members, Failed> {
        let AskMembersOf { room_id: room, page: AskMembers { app_id, after, limit } } = self;
        let app = edge.app_of(app_id).map_err(Failed::asked)?;
        let limit = limit.unwrap_or(PAGE_MAX);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Failed::asked("limit is 1 to 1000"));
        }
        let partition = Partition::of_room(app, room);
        match edge.bus.ask_owner(partition, &ListMembers { app, room, after, limit }).await {
            Ok(found) => {
                Ok(Members { list: found.users, total: found.total, has_next: found.has_next })
            }
            Err(error) => {
                warn!(%room, error = %chain(&error), "members not listed");
                Err(Failed::new(StatusCode::SERVICE_UNAVAILABLE, "nobody can tell at the moment"))
            }
        }
    }
}
