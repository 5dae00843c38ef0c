//! The steps of every request before its route, and of every response after it.
//!
//! Before: the rate limit of its address, and the check that no page of another site sent it.
//! After: security headers, metrics, and an error response instead of a panic.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Instant,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use qiyu_runtime::limiter::ip_prefix;
use tracing::error;

use crate::{
    context::ApiContext,
    identity::cookie,
    origins::Origins,
    response::ApiError,
    route_label::RouteLabel,
    routes::LOGIN,
    security_headers::security_headers,
    server::{PREFIX, ServerError, has_api_key},
    texts,
};

/// Runs a request through all steps.
pub(crate) async fn guard(
    State(context): State<Arc<ApiContext>>,
    request: Request,
    next: Next,
) -> Response {
    let (route, started) = (RouteLabel::for_path(request.uri().path()), Instant::now());
    let is_server_call = request.uri().path().starts_with(PREFIX);
    // Integrators read the status, all other callers the code in the body.
    let refuse = |error: ApiError| match is_server_call {
        true => ServerError::from(error).into_response(),
        false => error.into_response(),
    };
    let mut response = match admit(&context, &request, started) {
        Ok(()) => {
            let response = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            response.unwrap_or_else(|_| {
                error!(route = route.as_str(), "a route panicked");
                refuse(ApiError::system())
            })
        }
        Err(error) => refuse(error),
    };
    response.headers_mut().extend(security_headers());
    context.metrics.record_response(route.as_str(), &response, started.elapsed());
    response
}

/// Checks the rate and the origin of a request.
fn admit(context: &ApiContext, request: &Request, now: Instant) -> Result<(), ApiError> {
    // Without connection addresses all callers share one limit.
    let address = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| address.ip());
    // An integrator sends for many users from one address, and has shown its key.
    let has_key = request.uri().path().starts_with(PREFIX)
        && has_api_key(request.headers(), context.api_key.as_ref());
    if !has_key && !context.address_limiter.admits(ip_prefix(address), now) {
        return Err(ApiError::rate_limited());
    }
    let is_login = request.uri().path() == LOGIN; // its response sets the cookie
    let uses_cookie = is_login || cookie(request.headers()).is_some();
    if request.method() == Method::POST
        && uses_cookie
        && is_cross_site(request.headers(), &context.origins)
    {
        return Err(ApiError::new(403, texts::CROSS_SITE));
    }
    Ok(())
}

/// Returns whether a browser says that the request comes from a page that is neither of this site
/// nor of an allowed origin. A request without such headers comes from another program, which sends
/// the cookie on purpose.
fn is_cross_site(headers: &HeaderMap, allowed: &Origins) -> bool {
    if headers.get(header::ORIGIN).is_some_and(|origin| allowed.trusts(origin)) {
        return false;
    }
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    if text(HeaderName::from_static("sec-fetch-site")) == Some("cross-site") {
        return true;
    }
    let Some(origin) = text(header::ORIGIN) else { return false };
    let origin = origin.split_once("://").map(|(_, authority)| host(authority));
    origin.is_none() || origin != text(header::HOST).map(host)
}

/// Returns the name in `name:port`. The port does not tell sites apart: cookies ignore it too.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_request_of_another_sites_page_is_recognised() {
        let table: [(&[(&'static str, &'static str)], bool); 11] = [
            (&[("host", "a:8080")], false),
            (&[("host", "a:8080"), ("origin", "http://a:8080")], false),
            (&[("host", "a"), ("origin", "https://a:8443")], false),
            (&[("host", "[::1]:8080"), ("origin", "http://[::1]:8080")], false),
            (&[("host", "[::1]:8080"), ("origin", "http://[::2]:8080")], true),
            (&[("host", "a"), ("origin", "http://b")], true),
            (&[("host", "a"), ("origin", "http://a.b")], true),
            (&[("host", "a"), ("origin", "null")], true),
            (&[("origin", "http://a")], true),
            (&[("host", "a"), ("sec-fetch-site", "cross-site")], true),
            (&[("host", "a"), ("sec-fetch-site", "same-origin"), ("origin", "http://a")], false),
        ];
        for (headers, cross_site) in table {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| {
                    (HeaderName::from_static(name), HeaderValue::from_static(value))
                })
                .collect();
            assert_eq!(is_cross_site(&headers, &Origins::None), cross_site, "{headers:?}");
        }
    }
}
