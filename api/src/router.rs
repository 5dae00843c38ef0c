//! The HTTP router: the routes, their description, the page, and the steps of every request.

use std::sync::Arc;

use axum::{Router, middleware, routing::get};

use crate::{
    context::ApiContext, describe::serve_description, guard::guard, page, response::ApiError,
    routes,
};

/// Makes the router.
pub(crate) fn router(context: Arc<ApiContext>) -> Router {
    let (described, description) = routes::described();
    let router = serve_description(described, &description)
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .fallback(async || ApiError::unknown_path())
        .method_not_allowed_fallback(async || ApiError::wrong_method())
        .layer(middleware::from_fn_with_state(Arc::clone(&context), guard));
    // Around the guard: a page of an allowed origin may read its refusals too.
    let router = match context.origins.layer() {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router.with_state(context)
}
