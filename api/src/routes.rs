//! The routes of the contract, one file each. All take POST, and each says
//! beside its code what it takes and gives: that is the description served.

mod anchor_config;
mod close_living;
mod history;
pub(crate) mod im_config;
mod init_page;
mod is_online;
mod list_rooms;
mod login;
mod moderate;
mod offline_pull;
mod start_living;

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit, middleware, routing::get};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    answer::Refused,
    describe::{Description, described},
    edge::{Edge, guard},
    page, server,
};

/// The longest body: no route outside [`server`] needs a tenth of it.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// The route that sets the cookie.
pub(crate) const LOGIN: &str = "/user/login";

/// Every route that is described, and its description.
fn contract() -> (Router<Arc<Edge>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(login::login))
        .routes(routes!(init_page::init_page))
        .routes(routes!(start_living::start_living))
        .routes(routes!(close_living::close_living))
        .routes(routes!(anchor_config::anchor_config))
        .routes(routes!(list_rooms::list_rooms))
        .routes(routes!(moderate::kick))
        .routes(routes!(moderate::mute))
        .routes(routes!(moderate::unmute))
        .routes(routes!(moderate::ban))
        .routes(routes!(moderate::unban))
        .routes(routes!(moderate::measures))
        .routes(routes!(im_config::im_config))
        .routes(routes!(history::history))
        .routes(routes!(offline_pull::offline_pull))
        .routes(routes!(is_online::is_online))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .merge(server::router())
        .split_for_parts()
}

/// The paths that are described.
pub(crate) fn paths() -> Vec<String> {
    contract().1.paths.paths.into_keys().collect()
}

/// All of them, with what every request passes.
pub(crate) fn router(edge: Arc<Edge>) -> Router {
    let (contract, description) = contract();
    let router = described(contract, &description)
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .fallback(async || Refused::unknown_path())
        .method_not_allowed_fallback(async || Refused::wrong_method())
        .layer(middleware::from_fn_with_state(Arc::clone(&edge), guard));
    // Around the guard: what it refuses, a page may read too.
    let router = match edge.origins.layer() {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router.with_state(edge)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn every_route_is_described_with_its_parameters_and_answers() {
        let description = serde_json::to_value(contract().1).unwrap();
        let paths = description["paths"].as_object().unwrap();
        let (asked, told): (Vec<_>, Vec<_>) =
            paths.iter().partition(|(_, item)| item["post"].is_object());
        let told: Vec<_> = told.into_iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(told, ["/healthz", "/metrics", "/openapi.json", "/readyz"]);
        assert_eq!(asked.len(), 16 + 11);
        let schemas = description["components"]["schemas"].as_object().unwrap();
        for (path, item) in asked {
            let post = &item["post"];
            assert!(post["summary"].as_str().is_some_and(|text| !text.is_empty()), "{path}");
            let answers = post["responses"].as_object().unwrap();
            let reference = &answers["200"]["content"]["application/json"]["schema"]["$ref"];
            let name = reference.as_str().and_then(|name| name.rsplit('/').next());
            assert!(name.is_some_and(|name| schemas.contains_key(name)), "{path} {reference}");
            if path.starts_with("/server/") {
                assert!(answers.contains_key("401"), "{path}");
                assert!(post["requestBody"].is_object(), "{path}");
                assert_eq!(post["security"][0], serde_json::json!({ "apiKey": [] }), "{path}");
            }
        }
        let list = paths["/living/list"]["post"]["parameters"].as_array().unwrap();
        let names: Vec<_> = list.iter().map(|parameter| &parameter["name"]).collect();
        assert_eq!(names, ["type", "page", "pageSize"]);
    }

    #[test]
    fn every_parameter_that_is_read_is_described_and_none_beside() {
        let described = serde_json::to_value(contract().1).unwrap();
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
        let files = routes.map(|route| route.unwrap().path()).chain([sources.join("messages.rs")]);
        let read: BTreeSet<String> = files.flat_map(|file| names_read(&file)).collect();
        assert_eq!(described, read, "left: described, right: read");
    }

    /// The names of the parameters a source asks for.
    fn names_read(file: &Path) -> Vec<String> {
        let text = fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let asked = |rest: &str| {
            let rest = rest.split_once('(')?.1.strip_prefix('"')?;
            rest.split('"').next().map(str::to_owned)
        };
        ["params.text", "params.parsed", "params.asked"]
            .iter()
            .flat_map(|way| code.split(way).skip(1).filter_map(asked))
            .collect()
    }
}
