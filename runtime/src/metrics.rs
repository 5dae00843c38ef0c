//! The declaration of metrics: one line holds a metric's field, type and help
//! text, and creates and registers it.

use std::{marker::PhantomData, time::Duration};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, histogram::Histogram},
};

/// Declares a struct of metrics and its constructor
/// `register(&mut Registry) -> Self`.
///
/// A field is named like its metric; where the two differ, the metric's name
/// follows behind `as`. A type must be a metric that has a default.
///
/// ```
/// use prometheus_client::{metrics::counter::Counter, registry::Registry};
///
/// qiyu_runtime::metrics! {
///     prefix = "example";
///     /// The metrics of an example.
///     #[derive(Clone, Debug)]
///     pub struct ExampleMetrics {
///         pub logins: Counter = "Logins that succeeded";
///         pub skipped: Counter as "envelopes_skipped" = "Envelopes not sent";
///     }
/// }
///
/// let metrics = ExampleMetrics::register(&mut Registry::default());
/// metrics.logins.inc();
/// ```
#[macro_export]
macro_rules! metrics {
    (
        prefix = $prefix:literal;
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $(
                $(#[$field_attribute:meta])*
                $field_visibility:vis $field:ident: $type:ty $(as $metric:literal)? = $help:literal;
            )*
        }
    ) => {
        $(#[$attribute])*
        $visibility struct $name {
            $($(#[$field_attribute])* $field_visibility $field: $type,)*
        }

        impl $name {
            /// Creates every metric at its initial value and registers it.
            $visibility fn register(
                registry: &mut ::prometheus_client::registry::Registry,
            ) -> Self {
                let registry = registry.sub_registry_with_prefix($prefix);
                Self {
                    $($field: {
                        let metric = <$type as ::std::default::Default>::default();
                        let name = $crate::metric_name!($field $($metric)?);
                        registry.register(name, $help, ::std::clone::Clone::clone(&metric));
                        metric
                    },)*
                }
            }
        }
    };
}

/// The name of a metric: the given one, or the field's.
#[doc(hidden)]
#[macro_export]
macro_rules! metric_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $metric:literal) => {
        $metric
    };
}

/// The bucket bounds of a [`Latency`], in seconds.
pub trait LatencyBounds {
    const SECONDS: &'static [f64];
}

/// A histogram of durations in seconds, with the bounds of `B`.
#[derive(Debug)]
pub struct Latency<B> {
    histogram: Histogram,
    bounds: PhantomData<fn() -> B>,
}

impl<B: LatencyBounds> Default for Latency<B> {
    fn default() -> Self {
        let histogram = Histogram::new(B::SECONDS.iter().copied());
        Self { histogram, bounds: PhantomData }
    }
}

impl<B> Clone for Latency<B> {
    fn clone(&self) -> Self {
        Self { histogram: self.histogram.clone(), bounds: PhantomData }
    }
}

impl<B> Latency<B> {
    /// Records one duration.
    pub fn observe(&self, duration: Duration) {
        self.histogram.observe(duration.as_secs_f64());
    }

    /// Records the time from `start_ms` to `now_ms`, both in ms since 1970. If
    /// the clocks of two machines differ the wrong way, that is 0.
    pub fn observe_since(&self, start_ms: u64, now_ms: u64) {
        self.observe(Duration::from_millis(now_ms.saturating_sub(start_ms)));
    }
}

impl<B> EncodeMetric for Latency<B> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.histogram.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Histogram::TYPE
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prometheus_client::{
        encoding::text::encode, metrics::counter::Counter, registry::Registry,
    };

    use super::*;

    #[derive(Debug)]
    struct Bounds;

    impl LatencyBounds for Bounds {
        const SECONDS: &'static [f64] = &[0.1, 1.0];
    }

    metrics! {
        prefix = "qiyu_example";
        #[derive(Clone, Debug)]
        struct ExampleMetrics {
            logins: Counter = "Logins that succeeded";
            skipped: Counter as "envelopes_skipped" = "Envelopes not sent";
            append_duration_seconds: Latency<Bounds> = "Time until the log confirmed";
        }
    }

    #[test]
    fn a_declared_metric_is_registered_under_its_name_and_counts() {
        let mut registry = Registry::default();
        let metrics = ExampleMetrics::register(&mut registry);
        metrics.logins.inc();
        metrics.skipped.inc_by(2);
        metrics.append_duration_seconds.observe(Duration::from_millis(500));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "# HELP qiyu_example_logins Logins that succeeded.",
            "qiyu_example_logins_total 1",
            "qiyu_example_envelopes_skipped_total 2",
            "qiyu_example_append_duration_seconds_bucket{le=\"0.1\"} 0",
            "qiyu_example_append_duration_seconds_bucket{le=\"1.0\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }
}
