//! Parameters that several routes have.

use qiyu_schema::{RoomId, UserId};

use crate::{
    params::{Params, RequestedId},
    response::ApiError,
    texts,
};

/// Messages on a page without a limit in the request.
const PAGE_DEFAULT: usize = 50;
/// Messages on a page.
const PAGE_MAX: usize = 100;

/// Reads the room.
pub(super) fn room_id(params: &Params) -> Result<RequestedId<RoomId>, ApiError> {
    let missing = || ApiError::bad_parameter(texts::ROOM_ID_MISSING);
    params.id("roomId").map_err(|_| missing())?.ok_or_else(missing)
}

/// Reads the type of a room: 1 ordinary, 2 pk.
pub(super) fn room_type(params: &Params) -> Result<u8, ApiError> {
    match params.parsed("type") {
        Ok(Some(room_type @ (1 | 2))) => Ok(room_type),
        _ => Err(ApiError::bad_parameter(texts::ROOM_TYPE_MISSING)),
    }
}

/// Reads the user that the request is about.
pub(super) fn user_id(params: &Params) -> Result<UserId, ApiError> {
    let missing = || ApiError::bad_parameter(texts::USER_ID_MISSING);
    params.parsed("userId").map_err(|_| missing())?.ok_or_else(missing)
}

/// Reads the number of messages on a page.
pub(super) fn message_limit(params: &Params) -> Result<usize, ApiError> {
    let bad = || ApiError::bad_parameter(texts::BAD_PAGE);
    match params.parsed::<usize>("limit").map_err(|_| bad())? {
        None => Ok(PAGE_DEFAULT),
        Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
        Some(_) => Err(bad()),
    }
}

/// Returns the error of a parameter that cannot be read.
pub(super) fn malformed() -> ApiError {
    ApiError::bad_parameter(texts::MALFORMED)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, extract::FromRequest, http::Request};

    use super::*;

    #[tokio::test]
    async fn a_room_has_one_of_two_types() {
        let params = async |query: &str| {
            let request = Request::builder().uri(format!("/?{query}")).body(Body::empty()).unwrap();
            Params::from_request(request, &()).await.unwrap()
        };
        assert_eq!(room_type(&params("type=2").await), Ok(2));
        for bad in ["", "type=", "type=0", "type=3", "type=x", "type=257"] {
            let refused = room_type(&params(bad).await).unwrap_err();
            assert_eq!(refused, ApiError::bad_parameter("需要给定直播间类型"), "{bad}");
        }
    }
}
