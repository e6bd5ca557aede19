//! Making room: which block leaves a tier, and what leaving means.

use hearth_proto::v1::Tier;

use super::Shard;
use crate::slots::{Slot, SlotBytes, Taken};
use crate::store::block::{BlockId, OnNvme, Pinned};
use crate::store::message::TenantIndex;

impl<R> Shard<R> {
    /// A pinned slot of this class, by eviction if need be. Ends, because each round drops a block or gives up.
    pub(super) fn take_pinned(&mut self, tenant: TenantIndex, class: SlotBytes) -> Option<Slot> {
        loop {
            let owner = self.tenant(tenant);
            if let Some(taken) = owner.slots.take(class) {
                return Some(taken.slot);
            }
            if let Some(oldest) = owner.blocks.pinned_order.oldest(class) {
                self.evict_pinned(tenant, oldest);
                continue;
            }
            let segment = owner.slots.emptiest_segment_of_other_class(class)?.segment;
            let in_segment = |slot: Slot| slot.segment == segment;
            let blocks = &owner.blocks;
            let leaving: Vec<BlockId> = blocks
                .pinned_order
                .all()
                .filter(|&id| matches!(blocks.at(id).pinned, Pinned::Ready { slot, .. } if in_segment(slot)))
                .collect();
            if leaving.is_empty() {
                return None;
            }
            for id in leaving {
                self.evict_pinned(tenant, id);
            }
        }
    }

    /// A slot of this class on NVMe, by eviction if need be: of the oldest block of any tenant.
    pub(super) fn take_nvme(&mut self, class: SlotBytes) -> Option<Taken> {
        loop {
            if let Some(taken) = self.nvme_slots.as_mut()?.take(class) {
                return Some(taken);
            }
            if let Some((tenant, oldest)) = self.oldest_on_nvme(class) {
                self.evict_nvme(tenant, oldest);
                continue;
            }
            let segment = self.nvme_slots.as_ref()?.emptiest_segment_of_other_class(class)?.segment;
            let leaving = self.nvme_segment_blocks(segment);
            if leaving.is_empty() {
                return None;
            }
            for (tenant, id) in leaving {
                self.evict_nvme(tenant, id);
            }
        }
    }

    /// Oldest by the generation of its slot, which compares between tenants.
    fn oldest_on_nvme(&self, class: SlotBytes) -> Option<(TenantIndex, BlockId)> {
        let candidates = self.tenants.iter().enumerate().filter_map(|(at, tenant)| {
            let id = tenant.blocks.nvme_order.oldest(class)?;
            let OnNvme::Ready { generation, .. } = tenant.blocks.at(id).nvme else { return None };
            Some((generation, index(at), id))
        });
        candidates.min_by_key(|&(generation, ..)| generation).map(|(_, tenant, id)| (tenant, id))
    }

    fn nvme_segment_blocks(&self, segment: u32) -> Vec<(TenantIndex, BlockId)> {
        let mut leaving = Vec::new();
        for (at, tenant) in self.tenants.iter().enumerate() {
            for id in tenant.blocks.nvme_order.all() {
                if matches!(tenant.blocks.at(id).nvme, OnNvme::Ready { slot, .. } if slot.segment == segment)
                {
                    leaving.push((index(at), id));
                }
            }
        }
        leaving
    }

    fn evict_pinned(&mut self, tenant: TenantIndex, id: BlockId) {
        self.metrics.evicted(Tier::Pinned);
        self.drop_pinned(tenant, id);
    }

    fn evict_nvme(&mut self, tenant: TenantIndex, id: BlockId) {
        self.metrics.evicted(Tier::Nvme);
        if let Some(slot) = self.detach_nvme(tenant, id) {
            self.free_nvme(slot);
        }
    }

    /// Drops the pinned copy. A write to NVMe that has not begun is given up with it, as its source is gone.
    pub(super) fn drop_pinned(&mut self, tenant: TenantIndex, id: BlockId) {
        let owner = self.tenant(tenant);
        let key = owner.blocks.at(id).key;
        let (pinned, skipped) = owner.blocks.change(id, |block| {
            let pinned = std::mem::replace(&mut block.pinned, Pinned::None);
            block.doomed = false;
            let skipped = match std::mem::replace(&mut block.nvme, OnNvme::None) {
                OnNvme::Queued { durable, .. } => Some(durable),
                other => {
                    block.nvme = other;
                    None
                }
            };
            (pinned, skipped)
        });
        let Pinned::Ready { slot, .. } = pinned else { return };
        self.free_pinned(tenant, slot);
        self.removed(tenant, Tier::Pinned, &key);
        if let Some(durable) = skipped {
            self.metrics.nvme_write("skipped");
            self.written(durable, false);
        }
    }

    /// Takes the copy on NVMe out of the index and the feed. The slot stays taken, its bytes stay as they are.
    pub(super) fn detach_nvme(&mut self, tenant: TenantIndex, id: BlockId) -> Option<Slot> {
        let owner = self.tenant(tenant);
        let key = owner.blocks.at(id).key;
        let OnNvme::Ready { slot, .. } =
            owner.blocks.change(id, |block| std::mem::replace(&mut block.nvme, OnNvme::None))
        else {
            return None;
        };
        self.removed(tenant, Tier::Nvme, &key);
        Some(slot)
    }

    pub(super) fn free_pinned(&mut self, tenant: TenantIndex, slot: Slot) {
        self.tenant(tenant).slots.give(slot);
    }

    pub(super) fn free_nvme(&mut self, slot: Slot) {
        if let Some(slots) = self.nvme_slots.as_mut() {
            slots.give(slot);
        }
    }
}

fn index(at: usize) -> TenantIndex {
    TenantIndex(u16::try_from(at).expect("tenants are fixed at start and few"))
}
