//! The routes of the contract, one file each. All take POST.

mod anchor_config;
mod close_living;
mod history;
mod im_config;
mod init_page;
mod is_online;
mod list_rooms;
mod login;
mod offline_pull;
mod start_living;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post},
};

use crate::{
    answer::Refused,
    edge::{Edge, guard},
    page,
};

/// The longest body: no route needs a tenth of it.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Every path that is answered with a body of the contract.
#[cfg(test)]
pub(crate) const PATHS: [&str; 10] = [
    "/user/login",
    "/home/initPage",
    "/living/startingLiving",
    "/living/closeLiving",
    "/living/anchorConfig",
    "/living/list",
    "/im/getImConfig",
    "/im/history",
    "/im/offline/pull",
    "/im/isOnline",
];

/// All of them, with what every request passes.
pub(crate) fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/user/login", post(login::login))
        .route("/home/initPage", post(init_page::init_page))
        .route("/living/startingLiving", post(start_living::start_living))
        .route("/living/closeLiving", post(close_living::close_living))
        .route("/living/anchorConfig", post(anchor_config::anchor_config))
        .route("/living/list", post(list_rooms::list_rooms))
        .route("/im/getImConfig", post(im_config::im_config))
        .route("/im/history", post(history::history))
        .route("/im/offline/pull", post(offline_pull::offline_pull))
        .route("/im/isOnline", post(is_online::is_online))
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .fallback(async || Refused::unknown_path())
        .method_not_allowed_fallback(async || Refused::wrong_method())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&edge), guard))
        .with_state(edge)
}
