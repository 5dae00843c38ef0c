//! The error response of a call: `{"code":404,"msg":"…"}` under the same HTTP status.

use axum::{
    Json,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use qiyu_nats::service::CommandRefusal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    response::{ApiError, ResponseCode},
    texts,
};

/// The error response of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerError {
    status: StatusCode,
    msg: String,
}

/// The body of an error response.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Failure, description = "What a refused call is answered with.")]
pub(crate) struct ServerErrorBody {
    /// The status once more.
    code: u16,
    /// For people.
    msg: String,
}

impl ServerError {
    pub(super) fn new(status: StatusCode, msg: impl Into<String>) -> Self {
        Self { status, msg: msg.into() }
    }

    /// The request is malformed.
    pub(super) fn bad_request(msg: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, msg)
    }

    /// An internal error, whose details are in the log only.
    pub(super) fn system() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, texts::SYSTEM_ERROR)
    }

    /// Makes the error of a refused command. A code that is no HTTP status becomes 500.
    pub(super) fn from_refusal(refusal: CommandRefusal) -> Self {
        let status = StatusCode::from_u16(refusal.code);
        Self::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), refusal.message)
    }

    /// Returns the body, for a response or for one message of a batch.
    pub(super) fn body(&self) -> ServerErrorBody {
        ServerErrorBody { code: self.status.as_u16(), msg: self.msg.clone() }
    }
}

impl From<ServerError> for CommandRefusal {
    fn from(error: ServerError) -> Self {
        Self { code: error.status.as_u16(), message: error.msg }
    }
}

impl From<ApiError> for ServerError {
    fn from(error: ApiError) -> Self {
        let status = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::BAD_GATEWAY);
        // Code 501 of the contract is an error of the service, not HTTP's "not implemented".
        let status = if status == StatusCode::NOT_IMPLEMENTED {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            status
        };
        Self::new(status, error.msg())
    }
}

impl IntoResponse for ServerError {
    fn into_response(self) -> Response {
        const NO_HINT: HeaderName = HeaderName::from_static("x-content-type-options");
        let hint = match self.status {
            StatusCode::UNAUTHORIZED => (header::WWW_AUTHENTICATE, "Bearer"),
            StatusCode::TOO_MANY_REQUESTS => (header::RETRY_AFTER, "1"),
            _ => (NO_HINT, "nosniff"), // every response has it anyway
        };
        let mut response = (self.status, [hint], Json(self.body())).into_response();
        response.extensions_mut().insert(ResponseCode(self.status.as_u16()));
        response
    }
}
