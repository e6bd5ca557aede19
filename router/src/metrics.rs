//! What the router counts. The registry is passed in; every module gets the few metrics that it moves.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::decide::Explain;

/// The endpoint label of requests that never reached one.
pub const NO_ENDPOINT: &str = "none";

/// Of the gateway.
#[derive(Clone, Debug)]
pub struct GatewayMetrics {
    requests: Family<RequestLabels, Counter>,
    decide: Histogram,
    tokenize: Histogram,
    match_tokens: Family<SourceLabels, Counter>,
    unmatched: Family<ReasonLabels, Counter>,
    retries: Family<ReasonLabels, Counter>,
    inflight: Family<EndpointLabels, Gauge>,
    up: Family<EndpointLabels, Gauge>,
}

/// Of the feed.
#[derive(Clone, Debug)]
pub struct FeedMetrics {
    connected: Gauge,
    rejoins: Family<ReasonLabels, Counter>,
    /// Messages applied.
    pub messages: Counter,
}

/// Of the index; set when somebody asks.
#[derive(Clone, Debug)]
pub struct IndexMetrics {
    /// Blocks in the index.
    pub blocks: Gauge,
    /// Bytes that it takes.
    pub bytes: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    code: u16,
    endpoint: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl GatewayMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(1e-6, 4.0, 12));
        let metrics = Self {
            requests: Family::default(),
            decide: seconds(),
            tokenize: seconds(),
            match_tokens: Family::default(),
            unmatched: Family::default(),
            retries: Family::default(),
            inflight: Family::default(),
            up: Family::default(),
        };
        registry.register(
            "hearth_router_requests",
            "Requests by status code (499: the client left first) and endpoint",
            metrics.requests.clone(),
        );
        registry.register(
            "hearth_router_decide_seconds",
            "Time to look a prompt up in the index and to pick an endpoint",
            metrics.decide.clone(),
        );
        registry.register(
            "hearth_router_tokenize_seconds",
            "Time to parse a request, tokenize its prompt and compute its block keys",
            metrics.tokenize.clone(),
        );
        registry.register(
            "hearth_router_prompt_tokens",
            "Tokens of looked-up prompts by where the picked endpoint gets their KV: engine (its own pages), pinned \
             or nvme (the store), none (computed)",
            metrics.match_tokens.clone(),
        );
        registry.register(
            "hearth_router_unmatched_requests",
            "Requests that were routed by load alone, by reason",
            metrics.unmatched.clone(),
        );
        registry.register(
            "hearth_router_retries",
            "Requests sent to another endpoint, by what the first one did",
            metrics.retries.clone(),
        );
        registry.register(
            "hearth_router_inflight_requests",
            "Requests that an endpoint has and has not finished",
            metrics.inflight.clone(),
        );
        registry.register(
            "hearth_router_engine_up",
            "Whether an endpoint takes requests",
            metrics.up.clone(),
        );
        metrics
    }

    /// A request has ended.
    pub fn request(&self, code: u16, endpoint: &str) {
        self.requests.get_or_create(&RequestLabels { code, endpoint: endpoint.to_owned() }).inc();
    }

    /// A request's prompt was read in this time.
    pub fn tokenized(&self, took: Duration) {
        self.tokenize.observe(took.as_secs_f64());
    }

    /// An endpoint was picked in this time.
    pub fn decided(&self, took: Duration) {
        self.decide.observe(took.as_secs_f64());
    }

    /// A request goes where this says.
    pub fn routed(&self, explain: &Explain) {
        let cost = explain.cost;
        match explain.ignorance {
            Some(why) => {
                self.unmatched.get_or_create(&ReasonLabels { reason: why.label() }).inc();
            }
            None => {
                for (source, tokens) in [
                    ("engine", cost.engine),
                    ("pinned", cost.pinned),
                    ("nvme", cost.nvme),
                    ("none", cost.computed),
                ] {
                    self.match_tokens.get_or_create(&SourceLabels { source }).inc_by(tokens);
                }
            }
        }
    }

    /// A request is sent to another endpoint.
    pub fn retried(&self, reason: &'static str) {
        self.retries.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Load and state of an endpoint.
    pub fn endpoint(&self, endpoint: &str, requests: u64, up: bool) {
        let labels = EndpointLabels { endpoint: endpoint.to_owned() };
        self.inflight.get_or_create(&labels).set(i64::try_from(requests).unwrap_or(i64::MAX));
        self.up.get_or_create(&labels).set(up.into());
    }
}

impl FeedMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics =
            Self { connected: Gauge::default(), rejoins: Family::default(), messages: Counter::default() };
        registry.register(
            "hearth_router_feed_connected",
            "Whether the index follows the store (1) or requests are routed by load alone (0)",
            metrics.connected.clone(),
        );
        registry.register(
            "hearth_router_feed_rejoins",
            "Times that the copy was dropped, by reason",
            metrics.rejoins.clone(),
        );
        registry.register("hearth_router_feed_messages", "Messages applied", metrics.messages.clone());
        metrics
    }

    /// The snapshot is complete.
    pub fn joined(&self) {
        self.connected.set(1);
    }

    /// The feed ended.
    pub fn left(&self, reason: &'static str) {
        self.connected.set(0);
        self.rejoins.get_or_create(&ReasonLabels { reason }).inc();
    }
}

impl IndexMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { blocks: Gauge::default(), bytes: Gauge::default() };
        registry.register("hearth_router_index_blocks", "Blocks in the index", metrics.blocks.clone());
        registry.register("hearth_router_index_bytes", "Bytes that the index takes", metrics.bytes.clone());
        metrics
    }
}
