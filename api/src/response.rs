//! The response of every route for users: HTTP status 200, and the result in `code`.

use axum::{
    Json,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::texts;

/// The code in the body, attached to the response for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseCode(pub(crate) u16);

/// The body of every answer.
#[derive(Serialize, ToSchema)]
#[schema(as = Body)]
pub(crate) struct ResponseBody<T> {
    /// 200, or why not.
    code: u16,
    /// For people.
    msg: String,
    /// None where there is nothing to say.
    data: Option<T>,
}

/// The data of a success that has none.
#[derive(Serialize, ToSchema)]
pub(crate) struct Nothing;

/// A response is about one user at one moment.
const NOT_STORED: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];

/// A success with data.
#[derive(Debug)]
pub(crate) struct Success<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Success<T> {
    fn into_response(self) -> Response {
        response(StatusCode::OK, 200, texts::SUCCESS.into(), Some(self.0))
    }
}

/// A success without data.
#[derive(Debug)]
pub(crate) struct SuccessWithoutData;

impl IntoResponse for SuccessWithoutData {
    fn into_response(self) -> Response {
        response::<()>(StatusCode::OK, 200, texts::SUCCESS.into(), None)
    }
}

/// An error response. Its text is shown to users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: u16,
    msg: String,
}

impl ApiError {
    /// Makes the error of a route for users.
    pub(crate) fn new(code: u16, msg: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, code, msg: msg.into() }
    }

    /// A parameter is missing or wrong.
    pub(crate) fn bad_parameter(msg: impl Into<String>) -> Self {
        Self::new(400, msg)
    }

    /// The request carries no valid login.
    pub(crate) fn not_logged_in() -> Self {
        Self::new(401, texts::NOT_LOGGED_IN)
    }

    /// The user lacks a right.
    pub(crate) fn forbidden() -> Self {
        Self::new(403, texts::FORBIDDEN)
    }

    /// The address or the user has sent too many requests.
    pub(crate) fn rate_limited() -> Self {
        Self::new(429, texts::RATE_LIMITED)
    }

    /// An internal error, whose details are in the log only.
    pub(crate) fn system() -> Self {
        Self::new(500, texts::SYSTEM_ERROR)
    }

    /// No route has this path, so the HTTP status is an error too.
    pub(crate) fn unknown_path() -> Self {
        Self { status: StatusCode::NOT_FOUND, code: 404, msg: texts::UNKNOWN_PATH.into() }
    }

    /// The route exists for another method.
    pub(crate) fn wrong_method() -> Self {
        let msg = texts::WRONG_METHOD.into();
        Self { status: StatusCode::METHOD_NOT_ALLOWED, code: 405, msg }
    }

    /// Returns the code in the body.
    pub(crate) fn code(&self) -> u16 {
        self.code
    }

    /// Returns the text in the body.
    pub(crate) fn msg(&self) -> &str {
        &self.msg
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        response::<()>(self.status, self.code, self.msg, None)
    }
}

fn response<T: Serialize>(status: StatusCode, code: u16, msg: String, data: Option<T>) -> Response {
    let body = ResponseBody { code, msg, data };
    let mut response = (status, NOT_STORED, Json(body)).into_response();
    response.extensions_mut().insert(ResponseCode(code));
    response
}
