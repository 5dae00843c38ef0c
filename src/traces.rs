//! Traces by OpenTelemetry: where they go, and how many.

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::global;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::debug;

use crate::settings::Settings;

/// How long a collector may take; meanwhile spans wait, then the oldest are dropped.
const EXPORT_PATIENCE: Duration = Duration::from_secs(5);
/// How long the last spans may take to get out.
const FLUSH_PATIENCE: Duration = Duration::from_secs(3);

/// Traces that go to a collector until this is closed.
pub(crate) struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Begins, if there is a `QIYU_OTLP_URL`. Not inside a runtime: the client
    /// that exports blocks, on a thread of its own.
    pub(crate) fn begin(settings: &Settings, name: &str) -> anyhow::Result<Self> {
        let Some(url) = &settings.otlp_url else { return Ok(Self(None)) };
        rustls::crypto::ring::default_provider().install_default().ok(); // whoever is first
        let client = reqwest::blocking::Client::builder().timeout(EXPORT_PATIENCE).build();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client.context("make the client of the traces")?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url.expose())
            .build()
            .context("send traces to QIYU_OTLP_URL")?;
        let sampler = Sampler::TraceIdRatioBased(settings.trace_ratio);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_resource(Resource::builder().with_service_name(name.to_owned()).build())
            .with_batch_exporter(exporter)
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Self(Some(provider)))
    }

    /// Sends what is left.
    pub(crate) fn close(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_PATIENCE)
        {
            debug!(%error, "the last traces did not get out");
        }
    }
}
