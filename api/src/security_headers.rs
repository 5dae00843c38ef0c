//! The security headers of every response.

use axum::http::{HeaderName, HeaderValue, header};

/// The headers. The page loads nothing from other sites but users' pictures, and connects to
/// gateways on other hosts and ports.
const SECURITY_HEADERS: [(HeaderName, &str); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' http: https: data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
];

/// Returns the headers as axum adds them.
pub(crate) fn security_headers() -> [(HeaderName, HeaderValue); 3] {
    SECURITY_HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value)))
}
