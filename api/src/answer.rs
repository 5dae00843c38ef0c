//! What every route of the contract answers with: HTTP 200, and the truth in `code`.

use axum::{
    Json,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// The code in the body, kept beside the response for whoever counts answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u16);

/// The body of every answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct Body<T> {
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

/// Answers are about one person at one moment.
const NOT_STORED: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];

/// A success that holds `data`.
#[derive(Debug)]
pub(crate) struct Answer<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        written(StatusCode::OK, 200, "success".into(), Some(self.0))
    }
}

/// A success without data.
#[derive(Debug)]
pub(crate) struct Done;

impl IntoResponse for Done {
    fn into_response(self) -> Response {
        written::<()>(StatusCode::OK, 200, "success".into(), None)
    }
}

/// A refusal, in words a person may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    status: StatusCode,
    code: u16,
    msg: String,
}

impl Refused {
    /// Of a route of the contract.
    pub(crate) fn new(code: u16, msg: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, code, msg: msg.into() }
    }

    /// A parameter that is missing or wrong.
    pub(crate) fn parameter(msg: impl Into<String>) -> Self {
        Self::new(400, msg)
    }

    /// Nobody is logged in.
    pub(crate) fn anonymous() -> Self {
        Self::new(401, "未登录")
    }

    /// Logged in, but may not.
    pub(crate) fn forbidden() -> Self {
        Self::new(403, "没有权限")
    }

    /// Too many requests.
    pub(crate) fn too_fast() -> Self {
        Self::new(429, "请求过于频繁")
    }

    /// Our fault. What went wrong is in the log and nowhere else.
    pub(crate) fn system() -> Self {
        Self::new(500, "系统异常")
    }

    /// The code in the body.
    pub(crate) fn code(&self) -> u16 {
        self.code
    }

    /// The words in the body.
    pub(crate) fn msg(&self) -> &str {
        &self.msg
    }

    /// No route of the contract, so the status says it too.
    pub(crate) fn unknown_path() -> Self {
        Self { status: StatusCode::NOT_FOUND, code: 404, msg: "接口不存在".into() }
    }

    /// A route, but not this way.
    pub(crate) fn wrong_method() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED, code: 405, msg: "请求方式不支持".into()
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        written::<()>(self.status, self.code, self.msg, None)
    }
}

fn written<T: Serialize>(status: StatusCode, code: u16, msg: String, data: Option<T>) -> Response {
    let mut response = (status, NOT_STORED, Json(Body { code, msg, data })).into_response();
    response.extensions_mut().insert(Code(code));
    response
}
