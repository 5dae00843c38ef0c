//! The page, out of the binary.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::LazyLock,
};

use axum::{
    Router,
    extract::{Path, Request},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{answer::Refused, edge::PROTECTION};

/// One file of the page.
struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    /// Changes with the text; the browser asks with it whether it has the newest.
    tag: String,
}

static INDEX: LazyLock<File> = LazyLock::new(|| {
    file("index.html", "text/html; charset=utf-8", include_str!("../page/index.html"))
});

static ASSETS: LazyLock<[File; 4]> = LazyLock::new(|| {
    [
        file("page.js", "text/javascript; charset=utf-8", include_str!("../page/page.js")),
        file("page.css", "text/css; charset=utf-8", include_str!("../page/page.css")),
        file("avatar.svg", "image/svg+xml", include_str!("../page/avatar.svg")),
        file("background.svg", "image/svg+xml", include_str!("../page/background.svg")),
    ]
});

/// The page alone, for whoever answers its questions in another way: `/` and
/// what it loads.
pub fn page_router() -> Router {
    Router::new()
        .route("/", get(index))
        .route("/assets/{name}", get(asset))
        .layer(middleware::from_fn(protected))
}

async fn protected(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = PROTECTION.map(|(name, value)| (name, HeaderValue::from_static(value)));
    response.headers_mut().extend(headers);
    response
}

/// The page itself.
pub(crate) async fn index(headers: HeaderMap) -> Response {
    served(&INDEX, &headers)
}

/// What the page loads.
pub(crate) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|file| file.name == name) {
        Some(file) => served(file, &headers),
        None => Refused::unknown_path().into_response(),
    }
}

fn served(file: &File, headers: &HeaderMap) -> Response {
    // Asked for every time, sent when it has changed: a new version of the
    // server must not talk to an old page.
    let common: [(HeaderName, String); 2] =
        [(header::CACHE_CONTROL, "no-cache".into()), (header::ETAG, file.tag.clone())];
    let asked = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    if asked.is_some_and(|tags| tags.contains(&file.tag)) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(header::CONTENT_TYPE, file.kind)], file.text).into_response()
}

fn file(name: &'static str, kind: &'static str, text: &'static str) -> File {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    File { name, kind, text, tag: format!("\"{:016x}\"", hasher.finish()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_that_has_it_gets_nothing_again() {
        let mut headers = HeaderMap::new();
        let first = served(&INDEX, &headers);
        assert_eq!(first.status(), StatusCode::OK);
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(served(&INDEX, &headers).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(served(&ASSETS[0], &headers).status(), StatusCode::OK);
    }

    #[test]
    fn the_page_keeps_its_own_rules() {
        // The policy forbids inline code; the rest would let a message become markup.
        let html = INDEX.text;
        for tag in html.split("<script").skip(1) {
            assert!(tag.starts_with(" src="), "no inline script");
        }
        assert!(!html.contains("<style") && !html.contains("style=") && !html.contains(" on"));
        let script = ASSETS[0].text;
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!script.contains(way), "{way}");
        }
    }
}
