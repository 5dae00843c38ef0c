//! Extractors of the request's sender.

use std::{sync::Arc, time::Instant};

use axum::{extract::FromRequestParts, http::request::Parts};

use crate::{context::ApiContext, identity::Identity, response::ApiError};

/// The sender of a request; `None` without a valid login.
#[derive(Debug)]
pub(crate) struct Caller(pub(crate) Option<Identity>);

impl FromRequestParts<Arc<ApiContext>> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        context: &Arc<ApiContext>,
    ) -> Result<Self, Self::Rejection> {
        Ok(Self(context.keys.identify(&parts.headers)))
    }
}

/// The logged-in sender of a request, within the rate limit of the user.
#[derive(Debug)]
pub(crate) struct LoggedIn(pub(crate) Identity);

impl FromRequestParts<Arc<ApiContext>> for LoggedIn {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        context: &Arc<ApiContext>,
    ) -> Result<Self, ApiError> {
        let identity = context.keys.identify(&parts.headers).ok_or_else(ApiError::not_logged_in)?;
        match context.user_limiter.admits(identity.user, Instant::now()) {
            true => Ok(Self(identity)),
            false => Err(ApiError::rate_limited()),
        }
    }
}
