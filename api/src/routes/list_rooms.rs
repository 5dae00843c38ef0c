//! `/living/list`: the rooms that are open, newest first.

use std::sync::Arc;

use axum::extract::State;
use qiyu_schema::{
    RoomId, UserId,
    command::{ListRooms, RoomView},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    answer::{Answer, Body, Refused},
    edge::Edge,
    params::Params,
};

/// Rows on one page.
const PAGE_SIZE_MAX: u32 = 100;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page {
    list: Vec<Row>,
    has_next: bool,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    #[schema(value_type = u64)]
    id: RoomId,
    room_name: String,
    #[schema(value_type = u64)]
    anchor_id: UserId,
    watch_num: u64,
    good_num: u64,
    covert_img: String,
}

impl From<RoomView> for Row {
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

/// Answers anybody.
#[utoipa::path(post, path = "/living/list", tag = "living", params(
    ("type" = u8, Query, description = "1 or 2"),
    ("page" = u32, Query, description = "From 1"),
    ("pageSize" = u32, Query, description = "1 to 100"),
), responses(
    (status = 200, description = "Open rooms, newest first; anybody may ask", body = Body<Page>),
))]
pub(crate) async fn list_rooms(
    State(edge): State<Arc<Edge>>,
    params: Params,
) -> Result<Answer<Page>, Refused> {
    let room_type = room_type(&params)?;
    let (page, page_size) = range(&params)?;
    let asked = ListRooms { app: edge.app, room_type, page, page_size };
    let found = edge.living(&asked).await?;
    let list = found.rooms.into_iter().map(Row::from).collect();
    Ok(Answer(Page { list, has_next: found.has_next }))
}

/// 1 ordinary, 2 pk.
pub(super) fn room_type(params: &Params) -> Result<u8, Refused> {
    match params.parsed("type") {
        Ok(Some(room_type @ (1 | 2))) => Ok(room_type),
        _ => Err(Refused::parameter("需要给定直播间类型")),
    }
}

fn range(params: &Params) -> Result<(u32, u32), Refused> {
    match (params.parsed("page"), params.parsed("pageSize")) {
        (Ok(Some(page @ 1..)), Ok(Some(size @ 1..=PAGE_SIZE_MAX))) => Ok((page, size)),
        _ => Err(Refused::parameter("分页查询参数错误")),
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
    async fn ranges_are_what_the_contract_says() {
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
            assert_eq!(refused, Refused::parameter("分页查询参数错误"), "{bad}");
        }
    }

    #[tokio::test]
    async fn there_are_two_types() {
        assert_eq!(room_type(&params("type=2").await), Ok(2));
        for bad in ["", "type=", "type=0", "type=3", "type=x", "type=257"] {
            let refused = room_type(&params(bad).await).unwrap_err();
            assert_eq!(refused, Refused::parameter("需要给定直播间类型"), "{bad}");
        }
    }
}
