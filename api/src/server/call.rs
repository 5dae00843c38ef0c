//! A call of an integrator, over HTTP with the API key, or over NATS.

use std::{future::Future, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, StatusCode, request::Parts},
};
use qiyu_nats::{chain, service::CommandError};
use qiyu_schema::{
    Secret,
    command::{Command, LIVING_GROUP},
};
use serde::{Serialize, de::DeserializeOwned};
use subtle::ConstantTimeEq;
use tracing::warn;

use super::error::ServerError;
use crate::{context::ApiContext, identity::bearer, texts};

/// The request of a call and its handler, the same over HTTP and NATS.
pub(super) trait ServerCall: DeserializeOwned + Send + 'static {
    type Response: Serialize + Send;

    /// Carries out the call.
    fn handle(
        self,
        context: &ApiContext,
    ) -> impl Future<Output = Result<Self::Response, ServerError>> + Send;
}

/// Decodes the body of a call. An empty body is read as an empty object.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ServerError> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    // The text of serde describes the caller's own input, and holds nothing internal.
    serde_json::from_slice(body).map_err(|error| ServerError::bad_request(format!("body: {error}")))
}

/// Sends a command to `living`, and turns its refusal into an HTTP status.
pub(super) async fn command_living<C: Command>(
    context: &ApiContext,
    command: &C,
) -> Result<C::Reply, ServerError> {
    match context.bus.request(LIVING_GROUP, command).await {
        Ok(reply) => Ok(reply),
        Err(CommandError::Refused(refusal)) => Err(ServerError::from_refusal(refusal)),
        Err(error) => {
            warn!(error = %chain(&error), "command to living failed");
            Err(ServerError::system())
        }
    }
}

/// Extracts a call from an HTTP request that carries the API key.
pub(super) struct Authorized<C>(pub(super) C);

impl<C: ServerCall> FromRequest<Arc<ApiContext>> for Authorized<C> {
    type Rejection = ServerError;

    async fn from_request(
        request: Request,
        context: &Arc<ApiContext>,
    ) -> Result<Self, ServerError> {
        let (mut parts, body) = request.into_parts();
        ApiKeyHolder::from_request_parts(&mut parts, context).await?;
        let request = Request::from_parts(parts, body);
        let body = Bytes::from_request(request, context).await.map_err(|_| {
            ServerError::new(StatusCode::PAYLOAD_TOO_LARGE, texts::server::BODY_TOO_LONG)
        })?;
        Ok(Self(decode(&body)?))
    }
}

impl<C: ServerCall> Authorized<C> {
    /// Carries out the call.
    pub(super) async fn respond(
        self,
        context: &ApiContext,
    ) -> Result<Json<C::Response>, ServerError> {
        self.0.handle(context).await.map(Json)
    }
}

/// Proof that a request carries the API key.
struct ApiKeyHolder;

impl FromRequestParts<Arc<ApiContext>> for ApiKeyHolder {
    type Rejection = ServerError;

    async fn from_request_parts(
        parts: &mut Parts,
        context: &Arc<ApiContext>,
    ) -> Result<Self, ServerError> {
        match &context.api_key {
            None => Err(ServerError::new(StatusCode::NOT_FOUND, texts::server::NO_API_KEY)),
            Some(_) if has_api_key(&parts.headers, context.api_key.as_ref()) => Ok(Self),
            Some(_) => {
                Err(ServerError::new(StatusCode::UNAUTHORIZED, texts::server::WRONG_API_KEY))
            }
        }
    }
}

/// Returns whether a request carries the key. A wrong key takes as long as the right one.
pub(crate) fn has_api_key(headers: &HeaderMap, key: Option<&Secret>) -> bool {
    let (Some(key), Some(given)) = (key, bearer(headers)) else { return false };
    key.expose().as_bytes().ct_eq(given.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderValue, header};

    use super::*;

    #[test]
    fn only_the_api_key_is_accepted() {
        let key = Secret::new("a-key-0123456789");
        let carries = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            has_api_key(&headers, Some(&key))
        };
        assert!(carries("Bearer a-key-0123456789") && carries("bearer a-key-0123456789"));
        for wrong in [
            "Bearer a-key-012345678",
            "Bearer ",
            "Basic a-key-0123456789",
            "Bearer a-key-01234567890",
        ] {
            assert!(!carries(wrong), "{wrong}");
        }
        assert!(
            !has_api_key(&HeaderMap::new(), Some(&key)) && !has_api_key(&HeaderMap::new(), None)
        );
    }
}
