//! Names, units and labels of the connector's metrics.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::error::Miss;
use crate::store::Tier;

/// The metrics of one client; a cheap handle.
///
/// The blocks asked are counted by the engine, because it alone knows the prompt: each full block of each prompt
/// once, as a hit by tier or a miss by reason. So the sum over all labels is the number of blocks asked.
#[derive(Clone, Debug)]
pub struct Metrics {
    families: Arc<Families>,
}

#[derive(Debug)]
struct Families {
    asked: Family<AskedLabels, Counter<u64, AtomicU64>>,
    load_bytes: Family<TierLabels, Counter<u64, AtomicU64>>,
    load_seconds: Family<TierLabels, Histogram, fn() -> Histogram>,
    connected: Gauge,
    corrupt: Counter<u64, AtomicU64>,
}

/// What became of a block that a prompt asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// Served from this tier.
    Hit(Tier),
    /// Computed, for this reason.
    Miss(Miss),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AskedLabels {
    result: &'static str,
    tier: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabels {
    tier: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let load_seconds: fn() -> Histogram = load_histogram;
        Self {
            families: Arc::new(Families {
                asked: Family::default(),
                load_bytes: Family::default(),
                load_seconds: Family::new_with_constructor(load_seconds),
                connected: Gauge::default(),
                corrupt: Counter::default(),
            }),
        }
    }
}

/// From 16 µs, a small block from memory, to about 4 s.
fn load_histogram() -> Histogram {
    Histogram::new(exponential_buckets(16e-6, 2.0, 19))
}

impl Metrics {
    /// Adds the metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let f = &self.families;
        registry.register(
            "hearth_blocks_asked",
            "Full blocks of prompts, each once: hit by tier or miss by reason",
            f.asked.clone(),
        );
        registry.register(
            "hearth_load_bytes",
            "Bytes read from the store and verified, by the tier they were found in",
            f.load_bytes.clone(),
        );
        registry.register(
            "hearth_load_seconds",
            "Time of one verified read of a block or a part of it, by the tier it was found in",
            f.load_seconds.clone(),
        );
        registry.register(
            "hearth_store_connected",
            "1 while there is a session with the store node, else 0",
            f.connected.clone(),
        );
        registry.register(
            "hearth_blocks_corrupt",
            "Blocks whose bytes or header did not check when they were read",
            f.corrupt.clone(),
        );
    }

    /// Counts blocks that prompts asked for. To be called by the engine, once per full block of each prompt.
    pub fn asked(&self, outcome: Asked, blocks: u64) {
        let labels = match outcome {
            Asked::Hit(tier) => AskedLabels { result: "hit", tier: tier.label(), reason: "" },
            Asked::Miss(miss) => AskedLabels { result: "miss", tier: "", reason: miss.label() },
        };
        self.families.asked.get_or_create(&labels).inc_by(blocks);
    }

    /// Blocks counted with [`Metrics::asked`] for this outcome.
    pub fn asked_so_far(&self, outcome: Asked) -> u64 {
        let labels = match outcome {
            Asked::Hit(tier) => AskedLabels { result: "hit", tier: tier.label(), reason: "" },
            Asked::Miss(miss) => AskedLabels { result: "miss", tier: "", reason: miss.label() },
        };
        self.families.asked.get_or_create(&labels).get()
    }

    /// Blocks that did not check so far.
    pub fn corrupt_so_far(&self) -> u64 {
        self.families.corrupt.get()
    }

    pub(crate) fn loaded(&self, tier: Tier, bytes: usize, took: Duration) {
        let labels = TierLabels { tier: tier.label() };
        self.families.load_bytes.get_or_create(&labels).inc_by(bytes as u64);
        self.families.load_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn connected(&self, connected: bool) {
        self.families.connected.set(i64::from(connected));
    }

    pub(crate) fn corrupt(&self) {
        self.families.corrupt.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_counter_holds_hits_and_misses() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.asked(Asked::Hit(Tier::Pinned), 3);
        metrics.asked(Asked::Miss(Miss::StoreDown), 2);
        metrics.loaded(Tier::Nvme, 10, Duration::from_millis(1));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"hearth_blocks_asked_total{result="hit",tier="pinned",reason=""} 3"#,
            r#"hearth_blocks_asked_total{result="miss",tier="",reason="store_down"} 2"#,
            r#"hearth_load_bytes_total{tier="nvme"} 10"#,
            "hearth_store_connected 0",
            "hearth_blocks_corrupt_total 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
