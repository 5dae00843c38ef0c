//! `/openapi.json`: what the routes themselves say about them.

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderValue, header},
    response::IntoResponse,
    routing::get,
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        HttpMethod, ResponseBuilder, ResponsesBuilder,
        path::OperationBuilder,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::{edge::Edge, identity::COOKIE};

/// What is true of all of them.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "qiyu",
        description = "Live rooms, and the way into them.\n\n\
            Outside /server/, every route takes its parameters from the query, from form fields \
            or from a JSON object in the body, whichever the caller likes (the body wins), \
            answers with HTTP status 200, and says in `code` how it went: 200, 400 a parameter, \
            401 not logged in, 403 not allowed, 404 unknown, 429 too fast, 500 our fault, \
            501 refused by the business. Under /server/ it is JSON and the status itself. \
            Ids have up to 64 bits: do not read them into floats."
    ),
    tags(
        (name = "user", description = "Logging in, where that is not another system's business"),
        (name = "living", description = "Live rooms"),
        (name = "im", description = "The way to a gateway, and what was said"),
        (name = "server", description = "For integrators; off without QIYU_API_KEY"),
        (name = "operators", description = "How it is, on the same port"),
    ),
    modifiers(&Doors, &Operators),
)]
pub(crate) struct Description;

/// How callers say who they are.
struct Doors;

impl Modify for Doors {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = |what: &str| {
            let http = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(what));
            SecurityScheme::Http(http.build())
        };
        components.add_security_scheme(
            "login",
            bearer("A JWT with sub (the user's id) and exp; it may also come in the cookie qytk"),
        );
        let cookie = ApiKey::Cookie(ApiKeyValue::new(COOKIE));
        components.add_security_scheme("loginCookie", SecurityScheme::ApiKey(cookie));
        components.add_security_scheme("apiKey", bearer("QIYU_API_KEY"));
    }
}

/// What the program answers beside this crate, and the description itself.
struct Operators;

impl Modify for Operators {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for (path, summary, statuses) in [
            ("/healthz", "Whether the process lives", &["200"][..]),
            ("/readyz", "Whether every part of it does its work, and if not, why", &["200", "503"]),
            ("/metrics", "Everything it counts, as OpenMetrics text", &["200"]),
            ("/openapi.json", "This description", &["200"]),
        ] {
            let answers = statuses.iter().map(|status| {
                let said = if *status == "200" { "Yes" } else { "No" };
                (*status, ResponseBuilder::new().description(said).build())
            });
            let operation = OperationBuilder::new()
                .tag("operators")
                .summary(Some(summary))
                .responses(ResponsesBuilder::new().responses_from_iter(answers).build());
            openapi.paths.add_path_operation(path, vec![HttpMethod::Get], operation.build());
        }
    }
}

/// Serves the description, encoded once.
pub(crate) fn described(
    router: Router<Arc<Edge>>,
    api: &utoipa::openapi::OpenApi,
) -> Router<Arc<Edge>> {
    let json = api.to_json().expect("a description encodes");
    let json: Arc<str> = json.into();
    router.route(
        "/openapi.json",
        get(move || async move {
            let kind = HeaderValue::from_static("application/json");
            ([(header::CONTENT_TYPE, kind)], json.to_string()).into_response()
        }),
    )
}
