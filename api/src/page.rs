//! The page, served from the binary.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::LazyLock,
};

use axum::{
    Router,
    extract::{Path, Request},
    http::{HeaderMap, HeaderName, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{response::ApiError, security_headers::security_headers};

/// One file of the page.
struct PageFile {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    /// The ETag: a hash of the text.
    tag: String,
}

static INDEX: LazyLock<PageFile> = LazyLock::new(|| {
    file("index.html", "text/html; charset=utf-8", include_str!("../page/index.html"))
});

static ASSETS: LazyLock<[PageFile; 4]> = LazyLock::new(|| {
    [
        file("page.js", "text/javascript; charset=utf-8", include_str!("../page/page.js")),
        file("page.css", "text/css; charset=utf-8", include_str!("../page/page.css")),
        file("avatar.svg", "image/svg+xml", include_str!("../page/avatar.svg")),
        file("background.svg", "image/svg+xml", include_str!("../page/background.svg")),
    ]
});

/// Makes a router of the page alone, `/` and its files, for a program that answers its requests in
/// another way.
pub fn page_router() -> Router {
    Router::new()
        .route("/", get(index))
        .route("/assets/{name}", get(asset))
        .layer(middleware::from_fn(add_security_headers))
}

async fn add_security_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().extend(security_headers());
    response
}

/// Serves the page.
pub(crate) async fn index(headers: HeaderMap) -> Response {
    serve(&INDEX, &headers)
}

/// Serves a file of the page.
pub(crate) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|file| file.name == name) {
        Some(file) => serve(file, &headers),
        None => ApiError::unknown_path().into_response(),
    }
}

fn serve(file: &PageFile, headers: &HeaderMap) -> Response {
    // The browser revalidates each time: a new version of the server must not meet an old page.
    let common: [(HeaderName, String); 2] =
        [(header::CACHE_CONTROL, "no-cache".into()), (header::ETAG, file.tag.clone())];
    let cached = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    if cached.is_some_and(|tags| tags.contains(&file.tag)) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(header::CONTENT_TYPE, file.kind)], file.text).into_response()
}

fn file(name: &'static str, kind: &'static str, text: &'static str) -> PageFile {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    PageFile { name, kind, text, tag: format!("\"{:016x}\"", hasher.finish()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_file_is_not_sent_again() {
        let mut headers = HeaderMap::new();
        let first = serve(&INDEX, &headers);
        assert_eq!(first.status(), StatusCode::OK);
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        assert_eq!(serve(&INDEX, &headers).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(serve(&ASSETS[0], &headers).status(), StatusCode::OK);
    }

    #[test]
    fn the_page_has_no_inline_code_and_inserts_no_markup() {
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
