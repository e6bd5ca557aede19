//! What the face measures. Block counts and engine internals are measured where they happen.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::request::LoadedTokens;

/// From a hit of a short prompt to a long prompt on a slow machine, in seconds.
const SECONDS_BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0];

/// Counts of requests and tokens, and how long they took.
#[derive(Debug)]
pub struct Metrics {
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) in_flight: Gauge,
    pub(super) ttft_seconds: Histogram,
    pub(super) duration_seconds: Histogram,
    pub(super) prompt_tokens: Counter,
    pub(super) computed_tokens: Counter,
    loaded_tokens: Family<TierLabel, Counter>,
    pub(super) generation_tokens: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) endpoint: &'static str,
    pub(super) status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabel {
    tier: &'static str,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(SECONDS_BUCKETS);
        let metrics = Self {
            requests: Family::default(),
            in_flight: Gauge::default(),
            ttft_seconds: seconds(),
            duration_seconds: seconds(),
            prompt_tokens: Counter::default(),
            computed_tokens: Counter::default(),
            loaded_tokens: Family::default(),
            generation_tokens: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("hearth_engine");
        let named = |name, help, metric: &Counter, registry: &mut Registry| {
            registry.register(name, help, metric.clone());
        };
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
        named("prompt_tokens", "Tokens of prompts", &metrics.prompt_tokens, registry);
        named(
            "prompt_tokens_computed",
            "Prompt tokens whose KV was computed",
            &metrics.computed_tokens,
            registry,
        );
        registry.register(
            "prompt_tokens_loaded",
            "Prompt tokens whose KV was found, by tier",
            metrics.loaded_tokens.clone(),
        );
        named("generation_tokens", "Tokens generated", &metrics.generation_tokens, registry);
        metrics
    }

    pub(super) fn count_loaded(&self, loaded: &LoadedTokens) {
        for (tier, tokens) in [("engine", loaded.engine), ("pinned", loaded.pinned), ("nvme", loaded.nvme)] {
            self.loaded_tokens.get_or_create(&TierLabel { tier }).inc_by(tokens as u64);
        }
    }
}
