//! Every number this crate counts.

use std::{sync::LazyLock, time::Duration};

use axum::response::Response;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use crate::{answer::Code, routes};

/// A route, so that no path a stranger invents becomes a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Route(&'static str);

impl Route {
    /// The page and its files.
    const PAGE: Self = Self("/");
    /// No route at all.
    const OTHER: Self = Self("other");

    /// The route a path belongs to.
    pub(crate) fn of(path: &str) -> Self {
        static PATHS: LazyLock<Vec<&'static str>> =
            LazyLock::new(|| routes::paths().into_iter().map(|path| &*path.leak()).collect());
        if path == "/" || path.starts_with("/assets/") {
            return Self::PAGE;
        }
        let found = PATHS.iter().find(|pattern| matches(pattern, path));
        found.map_or(Self::OTHER, |pattern| Self(pattern))
    }

    /// Its path; the page and its files are one.
    pub(crate) fn as_str(self) -> &'static str {
        self.0
    }
}

/// Whether a path is one of a pattern such as `/server/rooms/{id}/members`.
fn matches(pattern: &str, path: &str) -> bool {
    let mut parts = path.split('/');
    let same = |pattern: &str| {
        parts.next().is_some_and(|part| pattern.starts_with('{') || pattern == part)
    };
    pattern.split('/').all(same) && parts.next().is_none()
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    code: &'static str,
}

/// The counters. A doc comment is the help text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Requests answered, by route and by the code in the answer.
    requests: Family<Answered, Counter>,
    /// Time from a request to its answer.
    took: Took,
}

#[derive(Clone, Debug)]
struct Took(Histogram);

impl Default for Took {
    fn default() -> Self {
        // From a page out of memory (1 ms) to a room opened during an election (12 s).
        Self(Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 12.0]))
    }
}

impl Metrics {
    pub(crate) fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let api = registry.sub_registry_with_prefix("qiyu_api");
        api.register(
            "requests",
            "Requests answered, by route and by the code in the answer",
            metrics.requests.clone(),
        );
        api.register(
            "request_duration_seconds",
            "Time from a request to its answer",
            metrics.took.0.clone(),
        );
        metrics
    }

    pub(crate) fn answered(&self, route: Route, response: &Response, took: Duration) {
        let code = response.extensions().get::<Code>().map_or(response.status().as_u16(), |c| c.0);
        let labels = Answered { route: route.as_str(), code: closed(code) };
        self.requests.get_or_create(&labels).inc();
        self.took.0.observe(took.as_secs_f64());
    }
}

/// The codes there are.
fn closed(code: u16) -> &'static str {
    match code {
        200 => "200",
        304 => "304",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        413 => "413",
        429 => "429",
        500 => "500",
        501 => "501",
        503 => "503",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_its_own_path() {
        for path in routes::paths() {
            assert_eq!(Route::of(&path).as_str(), path);
        }
        assert_eq!(Route::of("/server/rooms/7/members").as_str(), "/server/rooms/{id}/members");
        assert_eq!(Route::of("/assets/page.js"), Route::PAGE);
        for strange in ["/wp-login.php", "/server", "/server/rooms/7/members/", "/im"] {
            assert_eq!(Route::of(strange), Route::OTHER, "{strange}");
        }
    }
}
