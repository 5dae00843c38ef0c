//! `/openapi.json`: the description, which the routes carry themselves.

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

use crate::identity::COOKIE;

/// The description of the API as a whole.
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
    modifiers(&SecuritySchemes, &OperatorEndpoints),
)]
pub(crate) struct Description;

/// Adds the ways in which a caller is identified.
struct SecuritySchemes;

impl Modify for SecuritySchemes {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let bearer = |description: &str| {
            let http = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
            let http = http.description(Some(description));
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

/// Adds the endpoints that the program serves beside this crate, and the description itself.
struct OperatorEndpoints;

impl Modify for OperatorEndpoints {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for (path, summary, statuses) in [
            ("/healthz", "Whether the process lives", &["200"][..]),
            ("/readyz", "Whether every part of it does its work, and if not, why", &["200", "503"]),
            ("/metrics", "Everything it counts, as OpenMetrics text", &["200"]),
            ("/openapi.json", "This description", &["200"]),
        ] {
            let responses = statuses.iter().map(|status| {
                let description = if *status == "200" { "Yes" } else { "No" };
                (*status, ResponseBuilder::new().description(description).build())
            });
            let operation = OperationBuilder::new()
                .tag("operators")
                .summary(Some(summary))
                .responses(ResponsesBuilder::new().responses_from_iter(responses).build());
            openapi.paths.add_path_operation(path, vec![HttpMethod::Get], operation.build());
        }
    }
}

/// Adds the route of the description, which is encoded once.
pub(crate) fn serve_description<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    api: &utoipa::openapi::OpenApi,
) -> Router<S> {
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
