//! The metrics of this crate.

use std::time::Duration;

use axum::response::Response;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use qiyu_runtime::metrics::{Latency, LatencyBounds};

use crate::response::ResponseCode;

qiyu_runtime::metrics! {
    prefix = "qiyu_api";
    /// The metrics of this crate.
    #[derive(Clone, Debug)]
    pub(crate) struct Metrics {
        requests: Family<RequestLabels, Counter> =
            "Requests answered, by route and by the code in the answer";
        request_duration_seconds: Latency<RequestBounds> = "Time from a request to its answer";
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    code: &'static str,
}

/// From a page out of memory (1 ms) to a room opened during an election (12 s).
#[derive(Debug)]
struct RequestBounds;

impl LatencyBounds for RequestBounds {
    const SECONDS: &'static [f64] = &[0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 12.0];
}

impl Metrics {
    /// Counts a response and its duration.
    pub(crate) fn record_response(
        &self,
        route: &'static str,
        response: &Response,
        duration: Duration,
    ) {
        let code = response.extensions().get::<ResponseCode>();
        let code = code.map_or(response.status().as_u16(), |code| code.0);
        let labels = RequestLabels { route, code: code_label(code) };
        self.requests.get_or_create(&labels).inc();
        self.request_duration_seconds.observe(duration);
    }
}

/// Returns the label of a code, from a fixed set.
fn code_label(code: u16) -> &'static str {
    match code {
        200 => "200",
        304 => "304",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        413 => "413",
        429 => "429",
        500 => "500",
        501 => "501",
        503 => "503",
        _ => "other",
    }
}
