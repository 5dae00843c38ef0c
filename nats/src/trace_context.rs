//! The trace context of a message between processes, for OpenTelemetry.
//!
//! It travels in the header `traceparent` (W3C Trace Context) beside the bytes,
//! never in them. With tracing off, or for a message that is not sampled, there
//! is no context and no span is created or sent.

use std::sync::Arc;

use async_nats::{HeaderMap, jetstream::message::PublishMessage};
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId, global,
    global::{BoxedSpan, BoxedTracer},
    trace::{
        Span as _, SpanBuilder, SpanContext, SpanKind, TraceContextExt as _, TraceState,
        Tracer as _,
    },
};

use crate::bus::Bus;

const HEADER: &str = "traceparent";

/// The position of a message in its trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceContext(SpanContext);

impl TraceContext {
    /// Reads the header. `None`: it is missing, or the message is not sampled.
    pub(crate) fn of(headers: Option<&HeaderMap>) -> Option<Self> {
        Self::parse(headers?.get(HEADER)?.as_str())
    }

    /// Adds the header to a message, if there is a context.
    pub(crate) fn add_to(message: PublishMessage, context: Option<&Self>) -> PublishMessage {
        match context {
            Some(context) => message.header(HEADER, context.text().as_str()),
            None => message,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let ("00", trace, span, "01", None) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next())
        else {
            return None;
        };
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let context =
            SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default());
        context.is_valid().then_some(Self(context))
    }

    fn text(&self) -> String {
        format!("00-{}-{}-01", self.0.trace_id(), self.0.span_id())
    }
}

/// A span of a message's trace. It is sent when it is dropped. The default span
/// records nothing.
#[derive(Default)]
pub struct Span(Option<Box<OpenSpan>>);

struct OpenSpan {
    span: BoxedSpan,
    tracer: Arc<BoxedTracer>,
}

impl Span {
    fn open(
        tracer: &Arc<BoxedTracer>,
        name: &'static str,
        kind: SpanKind,
        parent: &Context,
    ) -> Self {
        let span = tracer.build_with_context(SpanBuilder::from_name(name).with_kind(kind), parent);
        let sampled = span.span_context().is_sampled();
        Self(sampled.then(|| Box::new(OpenSpan { span, tracer: Arc::clone(tracer) })))
    }

    /// Sets an attribute. `value` is only called when the span is recorded.
    pub fn set_attribute(&mut self, key: &'static str, value: impl FnOnce() -> String) {
        if let Some(open) = &mut self.0 {
            open.span.set_attribute(KeyValue::new(key, value()));
        }
    }

    /// Returns the context that a message carries on from this span.
    pub fn trace_context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|open| TraceContext(open.span.span_context().clone()))
    }

    /// Ends this span and starts its child.
    pub fn next_span(self, name: &'static str) -> Self {
        let (Some(context), Some(open)) = (self.trace_context(), &self.0) else {
            return Self::default();
        };
        let parent = Context::new().with_remote_span_context(context.0);
        Self::open(&open.tracer, name, SpanKind::Internal, &parent)
    }
}

impl Bus {
    /// Returns the same bus with tracing on.
    #[must_use]
    pub fn with_tracing(mut self) -> Self {
        self.tracer = Some(Arc::new(global::tracer("qiyu")));
        self
    }

    /// Starts the trace of an incoming message. The sampling of the whole trace
    /// is decided here.
    pub fn start_trace(&self, name: &'static str) -> Span {
        self.tracer.as_ref().map_or_else(Span::default, |tracer| {
            Span::open(tracer, name, SpanKind::Producer, &Context::new())
        })
    }

    /// Starts a span for a message from another process.
    pub fn start_span(&self, name: &'static str, context: Option<&TraceContext>) -> Span {
        let (Some(tracer), Some(context)) = (&self.tracer, context) else {
            return Span::default();
        };
        let parent = Context::new().with_remote_span_context(context.0.clone());
        Span::open(tracer, name, SpanKind::Consumer, &parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_parsed_back_from_its_text() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parsed = TraceContext::parse(text).map(|context| context.text());
        assert_eq!(parsed, Some(text.to_owned()));
        for none in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", // not sampled
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-x-y-01",
        ] {
            assert_eq!(TraceContext::parse(none), None, "{none}");
        }
    }
}
