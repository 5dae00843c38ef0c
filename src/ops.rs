//! What operators ask over HTTP: `/healthz`, `/readyz`, `/metrics`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde::Serialize;

use crate::run::Services;

/// What the answers are made of.
#[derive(Debug)]
pub(crate) struct Ops {
    /// As `/readyz` names it: `durable`, or `declared: durable` when the
    /// server is not ours to inspect.
    pub(crate) profile: String,
    pub(crate) services: Arc<Services>,
    pub(crate) registry: Registry,
}

/// The body of `/readyz`.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    profile: String,
    /// `ok`, or why not.
    checks: BTreeMap<&'static str, String>,
}

/// The routes, to be merged with the api's where that runs.
pub(crate) fn router(ops: Arc<Ops>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(ops)
}

async fn readyz(State(ops): State<Arc<Ops>>) -> impl IntoResponse {
    let checks = ops.services.checks();
    let ready = checks.values().all(Result::is_ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let told = |check: Result<(), String>| check.err().unwrap_or_else(|| "ok".to_owned());
    let checks = checks.into_iter().map(|(name, check)| (name, told(check))).collect();
    (status, Json(Readiness { ready, profile: ops.profile.clone(), checks }))
}

async fn metrics(State(ops): State<Arc<Ops>>) -> impl IntoResponse {
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &ops.registry) {
        tracing::error!(%error, "metrics cannot be encoded");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], text).into_response()
}
