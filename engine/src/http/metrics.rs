//! What the face measures: requests as their clients see them. Tokens, blocks and steps are counted where
//! they happen.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// From a hit of a short prompt to a long prompt on a slow machine, in seconds.
const SECONDS_BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0];

/// Counts of requests, and how long they took.
#[derive(Debug)]
pub struct Metrics {
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) in_flight: Gauge,
    pub(super) ttft_seconds: Histogram,
    pub(super) duration_seconds: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) endpoint: &'static str,
    pub(super) status: u16,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(SECONDS_BUCKETS);
        let metrics = Self {
            requests: Family::default(),
            in_flight: Gauge::default(),
            ttft_seconds: seconds(),
            duration_seconds: seconds(),
        };
        let registry = registry.sub_registry_with_prefix("hearth_engine_http");
        registry.register(
            "requests",
            "Generation requests by endpoint and HTTP status; 499 is a client that left",
            metrics.requests.clone(),
        );
        registry.register(
            "requests_in_flight",
            "Generation requests from the first byte read to the last byte written",
            metrics.in_flight.clone(),
        );
        registry.register_with_unit(
            "time_to_first_token",
            "From the arrival of a request to its first token",
            Unit::Seconds,
            metrics.ttft_seconds.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From the arrival of a request to its end, whatever its end",
            Unit::Seconds,
            metrics.duration_seconds.clone(),
        );
        metrics
    }
}
