//! The trail of one message through the processes, for traces by OpenTelemetry.
//!
//! It travels in the header `traceparent` (W3C Trace Context) beside the bytes,
//! never in them. With traces off, or for a message that is not sampled, there
//! is no trail: nothing is made, sent or told.

use std::sync::Arc;

use async_nats::HeaderMap;
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

/// Where a message's trace stood when it was handed on.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceContext(SpanContext);

impl TraceContext {
    /// As the header says it; `None`: it does not, or the message is not sampled.
    pub(crate) fn of(headers: Option<&HeaderMap>) -> Option<Self> {
        Self::read(headers?.get(HEADER)?.as_str())
    }

    fn read(text: &str) -> Option<Self> {
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

    /// The header and its value.
    pub(crate) fn header(&self) -> (&'static str, String) {
        (HEADER, self.text())
    }
}

/// A stretch of a message's way, told when it is dropped. Nothing where there is no trail.
#[derive(Default)]
pub struct Span(Option<Box<Open>>);

struct Open {
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
        Self(sampled.then(|| Box::new(Open { span, tracer: Arc::clone(tracer) })))
    }

    /// Says something about this stretch; `value` is only made where it is told.
    pub fn set_attribute(&mut self, key: &'static str, value: impl FnOnce() -> String) {
        if let Some(open) = &mut self.0 {
            open.span.set_attribute(KeyValue::new(key, value()));
        }
    }

    /// What a message takes along from here.
    pub fn trace_context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|open| TraceContext(open.span.span_context().clone()))
    }

    /// Ends this stretch and begins the next one.
    pub fn next_span(self, name: &'static str) -> Self {
        let (Some(trace_context), Some(open)) = (self.trace_context(), &self.0) else {
            return Self::default();
        };
        let parent = Context::new().with_remote_span_context(trace_context.0);
        Self::open(&open.tracer, name, SpanKind::Internal, &parent)
    }
}

impl Bus {
    /// The same bus, whose messages leave trails.
    #[must_use]
    pub fn with_tracing(mut self) -> Self {
        self.tracer = Some(Arc::new(global::tracer("qiyu")));
        self
    }

    /// A message has come in: the first stretch of its way. Whether there is a
    /// trail at all is decided here.
    pub fn start_trace(&self, name: &'static str) -> Span {
        self.tracer.as_ref().map_or_else(Span::default, |tracer| {
            Span::open(tracer, name, SpanKind::Producer, &Context::new())
        })
    }

    /// A message has come from another process.
    pub fn start_span(&self, name: &'static str, trace_context: Option<&TraceContext>) -> Span {
        let (Some(tracer), Some(trace_context)) = (&self.tracer, trace_context) else {
            return Span::default();
        };
        let parent = Context::new().with_remote_span_context(trace_context.0.clone());
        Span::open(tracer, name, SpanKind::Consumer, &parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_is_what_was_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(
            TraceContext::read(text).map(|trace_context| trace_context.text()),
            Some(text.to_owned())
        );
        for nothing in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", // not sampled
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-x-y-01",
        ] {
            assert_eq!(TraceContext::read(nothing), None, "{nothing}");
        }
    }
}
