//! `/living/list`: the rooms that are open, newest first.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::{
    RoomId, UserId,
    command::{ListRooms, RoomView},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::parameters::room_type;
use crate::{
    context::ApiContext,
    params::Params,
    response::{ApiError, ResponseBody, Success},
    texts,
};

/// Rows on one page.
const PAGE_SIZE_MAX: u32 = 100;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Page)]
pub(crate) struct RoomListPage {
    list: Vec<RoomRow>,
    has_next: bool,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Row)]
pub(crate) struct RoomRow {
    #[schema(value_type = u64)]
    id: RoomId,
    room_name: String,
    #[schema(value_type = u64)]
    anchor_id: UserId,
    watch_num: u64,
    good_num: u64,
    covert_img: String,
}

impl From<RoomView> for RoomRow {
    fn from(room: RoomView) -> Self {
        Self {
            id: room.room,
            room_name: room.name,
            anchor_id: room.anchor,
            watch_num: room.watch_num,
            good_num: room.good_num,
            covert_img: room.cover,
        }
    }
}

/// Answers any caller.
#[utoipa::path(post, path = "/living/list", summary = "Answers anybody.", tag = "living", params(
    ("type" = u8, Query, description = "1 or 2"),
    ("page" = u32, Query, description = "From 1"),
    ("pageSize" = u32, Query, description = "1 to 100"),
), responses(
    (status = 200, description = "Open rooms, newest first; anybody may ask", body = ResponseBody<RoomListPage>),
))]
pub(crate) async fn list_rooms(
    State(context): State<Arc<ApiContext>>,
    params: Params,
) -> Result<Success<RoomListPage>, ApiError> {
    let room_type = room_type(&params)?;
    let (page, page_size) = range(&params)?;
    let command = ListRooms { app: context.app, room_type, page, page_size };
    let found = context.command_living(&command).await?;
    let list = found.rooms.into_iter().map(RoomRow::from).collect();
    Ok(Success(RoomListPage { list, has_next: found.has_next }))
}

/// Reads the page and its size.
fn range(params: &Params) -> Result<(u32, u32), ApiError> {
    match (params.parsed("page"), params.parsed("pageSize")) {
        (Ok(Some(page @ 1..)), Ok(Some(size @ 1..=PAGE_SIZE_MAX))) => Ok((page, size)),
        _ => Err(ApiError::bad_parameter(texts::BAD_PAGE)),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, extract::FromRequest, http::Request};

    use super::*;

    async fn params(query: &str) -> Params {
        let request = Request::builder().uri(format!("/?{query}")).body(Body::empty()).unwrap();
        Params::from_request(request, &()).await.unwrap()
    }

    #[tokio::test]
    async fn pages_are_numbered_from_1_and_hold_1_to_100_rows() {
        for good in ["page=1&pageSize=1", "page=4294967295&pageSize=100"] {
            assert!(range(&params(good).await).is_ok(), "{good}");
        }
        for bad in [
            "",
            "page=1",
            "pageSize=10",
            "page=0&pageSize=10",
            "page=-1&pageSize=10",
            "page=1&pageSize=0",
            "page=1&pageSize=101",
            "page=1.0&pageSize=10",
            "page=4294967296&pageSize=10",
        ] {
            let refused = range(&params(bad).await).unwrap_err();
            assert_eq!(refused, ApiError::bad_parameter("分页查询参数错误"), "{bad}");
        }
    }
}
