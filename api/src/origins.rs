//! The origins of other sites: pages of those in `QIYU_ORIGINS` may use the routes. Such pages
//! may also open connections.

use std::time::Duration;

use axum::http::{HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may cache that an origin is allowed; Chromium's limit.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(2 * 3600);

/// The allowed origins of other sites.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Origins {
    #[default]
    None,
    /// As browsers name them, `https://live.example.com`.
    Named(Vec<HeaderValue>),
    /// All origins, but without cookies: they would let any page act as its visitor.
    Any,
}

impl Origins {
    /// Parses the setting. `*` allows all origins.
    pub(crate) fn new(origins: &[String]) -> Self {
        if origins.iter().any(|origin| origin == "*") {
            return Self::Any;
        }
        let named = origins.iter().map(|origin| origin.to_ascii_lowercase().parse());
        match named.filter_map(Result::ok).collect::<Vec<_>>() {
            none if none.is_empty() => Self::None,
            named => Self::Named(named),
        }
    }

    /// Returns whether pages of the origin may send their visitors' cookies.
    pub(crate) fn trusts(&self, origin: &HeaderValue) -> bool {
        matches!(self, Self::Named(named) if named.contains(origin))
    }

    /// Returns the layer that adds CORS headers. `None`: browsers allow no other origin by default.
    pub(crate) fn layer(&self) -> Option<CorsLayer> {
        let layer = CorsLayer::new()
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
            .max_age(PREFLIGHT_MAX_AGE);
        match self {
            Self::None => None,
            Self::Named(named) => {
                let named = AllowOrigin::list(named.clone());
                Some(layer.allow_origin(named).allow_credentials(true))
            }
            Self::Any => Some(layer.allow_origin(AllowOrigin::any())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_named_origin_is_trusted() {
        let origins = |texts: &[&str]| {
            Origins::new(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
        };
        let page = HeaderValue::from_static("https://live.example");
        assert_eq!(origins(&[]), Origins::None);
        assert!(origins(&["http://a.example:3000", "https://LIVE.example"]).trusts(&page));
        for others in [&["http://live.example"][..], &["https://live.example:8443"], &["*"], &[]] {
            assert!(!origins(others).trusts(&page), "{others:?}");
        }
        assert_eq!(origins(&["https://a.example", "*"]), Origins::Any);
    }
}
