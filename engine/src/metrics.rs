//! What the step loop counts. The blocks that prompts ask for are counted with the connector's metrics.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::kv::pool::PoolCounts;

/// The metrics of one step loop; a cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct StepMetrics {
    tokens: Family<KindLabel, Counter<u64, AtomicU64>>,
    requests: Family<StateLabel, Gauge>,
    ended: Family<OutcomeLabel, Counter<u64, AtomicU64>>,
    pages: Family<StateLabel, Gauge>,
    written: Family<ResultLabel, Counter<u64, AtomicU64>>,
    preemptions: Counter<u64, AtomicU64>,
    step_seconds: Histogram,
    first_token_seconds: Histogram,
    load_wait_seconds: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// What became of a full page that could be written back.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WriteResult {
    /// Sealed in the store.
    Sealed,
    /// The store had it, had no room for it, or could not be asked.
    NotSealed,
    /// Not queued, because too many pages were on their way.
    Skipped,
}

/// Requests in the step loop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestCounts {
    pub(crate) waiting: usize,
    pub(crate) loading: usize,
    pub(crate) running: usize,
}

impl StepMetrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        // From 1 ms to about 130 s.
        let seconds = || Histogram::new(exponential_buckets(1e-3, 2.0, 18));
        let metrics = Self {
            tokens: Family::default(),
            requests: Family::default(),
            ended: Family::default(),
            pages: Family::default(),
            written: Family::default(),
            preemptions: Counter::default(),
            step_seconds: seconds(),
            first_token_seconds: seconds(),
            load_wait_seconds: seconds(),
        };
        let m = &metrics;
        registry.register(
            "hearth_engine_tokens",
            "Tokens of prompts computed, of prompts loaded, and generated",
            m.tokens.clone(),
        );
        registry.register("hearth_engine_requests", "Requests in the step loop by state", m.requests.clone());
        registry.register("hearth_engine_requests_ended", "Requests by how they ended", m.ended.clone());
        registry.register("hearth_engine_pages", "KV pages by use", m.pages.clone());
        registry.register(
            "hearth_engine_blocks_written",
            "Full pages by what became of writing them back",
            m.written.clone(),
        );
        registry.register(
            "hearth_engine_preemptions",
            "Requests that gave their pages to older ones and were computed again",
            m.preemptions.clone(),
        );
        registry.register("hearth_engine_step_seconds", "Time of one step", m.step_seconds.clone());
        registry.register(
            "hearth_engine_first_token_seconds",
            "Time from submission to the first token",
            m.first_token_seconds.clone(),
        );
        registry.register(
            "hearth_engine_load_wait_seconds",
            "Time that a request waited for its blocks from the store",
            m.load_wait_seconds.clone(),
        );
        metrics
    }

    pub(crate) fn tokens(&self, kind: &'static str, count: usize) {
        self.tokens.get_or_create(&KindLabel { kind }).inc_by(count as u64);
    }

    pub(crate) fn ended(&self, outcome: &'static str) {
        self.ended.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn written(&self, result: WriteResult, blocks: usize) {
        let result = match result {
            WriteResult::Sealed => "sealed",
            WriteResult::NotSealed => "not_sealed",
            WriteResult::Skipped => "skipped",
        };
        self.written.get_or_create(&ResultLabel { result }).inc_by(blocks as u64);
    }

    pub(crate) fn preempted(&self) {
        self.preemptions.inc();
    }

    pub(crate) fn step(&self, took: Duration) {
        self.step_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token_seconds.observe(after.as_secs_f64());
    }

    pub(crate) fn load_wait(&self, took: Duration) {
        self.load_wait_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn gauges(&self, requests: RequestCounts, pages: PoolCounts) {
        let RequestCounts { waiting, loading, running } = requests;
        for (state, count) in [("waiting", waiting), ("loading", loading), ("running", running)] {
            self.requests.get_or_create(&StateLabel { state }).set(count as i64);
        }
        let PoolCounts { free, idle, held } = pages;
        for (state, count) in [("free", free), ("idle", idle), ("held", held)] {
            self.pages.get_or_create(&StateLabel { state }).set(count as i64);
        }
    }
}
