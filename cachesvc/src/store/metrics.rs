//! What a shard counts.

use hearth_proto::v1::{MissReason, Tier};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters and gauges that all shards of a node share.
#[derive(Clone, Debug, Default)]
pub struct StoreMetrics {
    asked: Family<AskedLabels, Counter>,
    evicted: Family<TierLabel, Counter>,
    sealed: Counter,
    reserve_refused: Counter,
    nvme_writes: Family<OutcomeLabel, Counter>,
    /// Blocks by tier, over all shards.
    pub blocks: Family<TierLabel, Gauge>,
    /// Bytes of slots taken by tier, over all shards.
    pub bytes_used: Family<TierLabel, Gauge>,
}

/// Labels of the one counter of blocks that were asked for: a hit has a tier, a miss has a reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AskedLabels {
    result: &'static str,
    tier: &'static str,
    reason: &'static str,
}

/// The tier that something happened in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TierLabel {
    /// `pinned` or `nvme`.
    pub tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Value of a tier label.
pub fn tier_label(tier: Tier) -> &'static str {
    match tier {
        Tier::Unspecified => "",
        Tier::Engine => "engine",
        Tier::Pinned => "pinned",
        Tier::Nvme => "nvme",
    }
}

/// Value of a reason label.
pub fn reason_label(reason: MissReason) -> &'static str {
    match reason {
        MissReason::MissNone => "",
        MissReason::MissAbsent => "absent",
        MissReason::MissCorrupt => "corrupt",
        MissReason::MissDeadline => "deadline",
        MissReason::MissFull => "full",
        MissReason::MissIo => "io",
        MissReason::MissStale => "stale",
        MissReason::MissStoreDown => "store_down",
    }
}

impl StoreMetrics {
    /// Adds the metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "hearth_blocks_asked",
            "Blocks that clients asked to load, each once: a hit by tier or a miss by reason",
            self.asked.clone(),
        );
        registry.register("hearth_store_blocks_evicted", "Blocks evicted from a tier", self.evicted.clone());
        registry.register(
            "hearth_store_blocks_sealed",
            "Blocks written and made visible",
            self.sealed.clone(),
        );
        registry.register(
            "hearth_store_reservations_refused_blocks",
            "Blocks that clients wanted to write and for which there was no room",
            self.reserve_refused.clone(),
        );
        registry.register(
            "hearth_store_nvme_writes",
            "Writes of blocks to NVMe by outcome: written, failed, skipped",
            self.nvme_writes.clone(),
        );
        registry.register("hearth_store_blocks", "Blocks that a tier holds", self.blocks.clone());
        registry.register(
            "hearth_store_used_bytes",
            "Bytes of slots taken in a tier",
            self.bytes_used.clone(),
        );
    }

    pub(crate) fn hit(&self, tier: Tier) {
        self.asked(AskedLabels { result: "hit", tier: tier_label(tier), reason: "" }, 1);
    }

    pub(crate) fn miss(&self, reason: MissReason, blocks: u64) {
        self.asked(AskedLabels { result: "miss", tier: "", reason: reason_label(reason) }, blocks);
    }

    fn asked(&self, labels: AskedLabels, blocks: u64) {
        if blocks > 0 {
            self.asked.get_or_create(&labels).inc_by(blocks);
        }
    }

    pub(crate) fn evicted(&self, tier: Tier) {
        self.evicted.get_or_create(&TierLabel { tier: tier_label(tier) }).inc();
    }

    pub(crate) fn sealed(&self) {
        self.sealed.inc();
    }

    pub(crate) fn reserve_refused(&self, blocks: u32) {
        self.reserve_refused.inc_by(u64::from(blocks));
    }

    pub(crate) fn nvme_write(&self, outcome: &'static str) {
        self.nvme_writes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Moves the gauges of `tier` by what changed in one shard since it last reported.
    pub(crate) fn tier_changed(&self, tier: Tier, blocks: i64, bytes: i64) {
        let label = TierLabel { tier: tier_label(tier) };
        self.blocks.get_or_create(&label).inc_by(blocks);
        self.bytes_used.get_or_create(&label).inc_by(bytes);
    }
}
