//! The routes for users, one file each. All take POST.
//!
//! Each route has its description for `/openapi.json` beside its code.

mod anchor_config;
mod close_living;
mod history;
mod im_config;
mod init_page;
mod is_online;
mod list_rooms;
mod login;
mod offline_pull;
mod parameters;
mod sanctions;
mod start_living;

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{context::ApiContext, describe::Description, server};

/// The longest body. No route outside [`server`] needs a tenth of it.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// The route that sets the cookie.
pub(crate) const LOGIN: &str = "/user/login";

/// Makes every described route, those for integrators included, and the description.
pub(crate) fn described() -> (Router<Arc<ApiContext>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(login::login))
        .routes(routes!(init_page::init_page))
        .routes(routes!(start_living::start_living))
        .routes(routes!(close_living::close_living))
        .routes(routes!(anchor_config::anchor_config))
        .routes(routes!(list_rooms::list_rooms))
        .routes(routes!(sanctions::kick))
        .routes(routes!(sanctions::mute))
        .routes(routes!(sanctions::unmute))
        .routes(routes!(sanctions::ban))
        .routes(routes!(sanctions::unban))
        .routes(routes!(sanctions::measures))
        .routes(routes!(im_config::im_config))
        .routes(routes!(history::history))
        .routes(routes!(offline_pull::offline_pull))
        .routes(routes!(is_online::is_online))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .merge(server::router())
        .split_for_parts()
}

/// Returns the paths of all described routes.
pub(crate) fn paths() -> Vec<String> {
    described().1.paths.paths.into_keys().collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn every_route_is_described_with_its_parameters_and_responses() {
        let description = serde_json::to_value(described().1).unwrap();
        let paths = description["paths"].as_object().unwrap();
        let (posts, gets): (Vec<_>, Vec<_>) =
            paths.iter().partition(|(_, item)| item["post"].is_object());
        let gets: Vec<_> = gets.into_iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(gets, ["/healthz", "/metrics", "/openapi.json", "/readyz"]);
        assert_eq!(posts.len(), 16 + 11);
        let schemas = description["components"]["schemas"].as_object().unwrap();
        for (path, item) in posts {
            let post = &item["post"];
            assert!(post["summary"].as_str().is_some_and(|text| !text.is_empty()), "{path}");
            let responses = post["responses"].as_object().unwrap();
            let reference = &responses["200"]["content"]["application/json"]["schema"]["$ref"];
            let name = reference.as_str().and_then(|name| name.rsplit('/').next());
            assert!(name.is_some_and(|name| schemas.contains_key(name)), "{path} {reference}");
            if path.starts_with("/server/") {
                assert!(responses.contains_key("401"), "{path}");
                assert!(post["requestBody"].is_object(), "{path}");
                assert_eq!(post["security"][0], serde_json::json!({ "apiKey": [] }), "{path}");
            }
        }
        let list = paths["/living/list"]["post"]["parameters"].as_array().unwrap();
        let names: Vec<_> = list.iter().map(|parameter| &parameter["name"]).collect();
        assert_eq!(names, ["type", "page", "pageSize"]);
    }

    #[test]
    fn exactly_the_parameters_that_are_read_are_described() {
        let described = serde_json::to_value(described().1).unwrap();
        let described: BTreeSet<String> = described["paths"]
            .as_object()
            .unwrap()
            .values()
            .filter_map(|item| item["post"]["parameters"].as_array())
            .flatten()
            .filter(|parameter| parameter["in"] == "query")
            .map(|parameter| parameter["name"].as_str().unwrap().to_owned())
            .collect();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let routes = fs::read_dir(sources.join("routes")).unwrap();
        let files = routes.map(|route| route.unwrap().path());
        let read: BTreeSet<String> = files.flat_map(|file| names_read(&file)).collect();
        assert_eq!(described, read, "left: described, right: read");
    }

    /// Returns the names of the parameters that a source file reads.
    fn names_read(file: &Path) -> Vec<String> {
        let text = fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let name = |rest: &str| {
            let rest = rest.split_once('(')?.1.strip_prefix('"')?;
            rest.split('"').next().map(str::to_owned)
        };
        ["params.text", "params.parsed", "params.id"]
            .iter()
            .flat_map(|way| code.split(way).skip(1).filter_map(name))
            .collect()
    }
}
