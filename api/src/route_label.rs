//! The metric label of a route.

use std::sync::LazyLock;

use crate::routes;

/// A route as a metric label. An unknown path never becomes a label of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RouteLabel(&'static str);

impl RouteLabel {
    /// The page and its files.
    const PAGE: Self = Self("/");
    const UNKNOWN: Self = Self("other");

    /// Returns the label of the route that a path belongs to.
    pub(crate) fn for_path(path: &str) -> Self {
        static PATHS: LazyLock<Vec<&'static str>> =
            LazyLock::new(|| routes::paths().into_iter().map(|path| &*path.leak()).collect());
        if path == "/" || path.starts_with("/assets/") {
            return Self::PAGE;
        }
        let found = PATHS.iter().find(|pattern| matches(pattern, path));
        found.map_or(Self::UNKNOWN, |pattern| Self(pattern))
    }

    /// Returns the path of the route.
    pub(crate) fn as_str(self) -> &'static str {
        self.0
    }
}

/// Returns whether a path matches a pattern such as `/server/rooms/{id}/members`.
fn matches(pattern: &str, path: &str) -> bool {
    let mut parts = path.split('/');
    let same = |pattern: &str| {
        parts.next().is_some_and(|part| pattern.starts_with('{') || pattern == part)
    };
    pattern.split('/').all(same) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_of_a_route_is_its_path() {
        for path in routes::paths() {
            assert_eq!(RouteLabel::for_path(&path).as_str(), path);
        }
        let members = RouteLabel::for_path("/server/rooms/7/members");
        assert_eq!(members.as_str(), "/server/rooms/{id}/members");
        assert_eq!(RouteLabel::for_path("/assets/page.js"), RouteLabel::PAGE);
        for unknown in ["/wp-login.php", "/server", "/server/rooms/7/members/", "/im"] {
            assert_eq!(RouteLabel::for_path(unknown), RouteLabel::UNKNOWN, "{unknown}");
        }
    }
}
