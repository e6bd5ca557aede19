//! Moves between the pinned tier and NVMe.

use hearth_proto::header::{BlockHeader, Generation, Location};
use hearth_proto::key::BlockKey;
use hearth_proto::v1::{MissReason, Tier};

use super::Shard;
use crate::slots::Slot;
use crate::store::block::{BlockId, OnNvme, Pinned};
use crate::store::message::{Effect, GrantId, Link, PinnedSpan, SessionId, TenantIndex};
use crate::tier::nvme::{Ack, BlockName, Done, ReadError, SegmentError, WriteError};

/// An operation that the NVMe tier works on.
#[derive(Debug)]
pub(super) enum NvmeOp {
    Write { tenant: TenantIndex, block: BlockId },
    Read { tenant: TenantIndex, block: BlockId },
    Erase { slot: Slot },
}

impl<R> Shard<R> {
    /// Writes to NVMe that are queued or under way.
    pub(super) fn writes_pending(&self) -> u64 {
        (self.write_queue.len() + self.writes_inflight) as u64
    }

    /// Starts queued reads, then queued writes, as far as their bounds allow.
    pub(super) fn start_nvme(&mut self) {
        while self.reads_inflight < self.config.nvme_reads_max
            && let Some((tenant, key)) = self.read_queue.pop_front()
        {
            self.start_read(tenant, &key);
        }
        while self.writes_inflight < self.config.nvme_writes_max
            && let Some((tenant, key)) = self.write_queue.pop_front()
        {
            self.start_write(tenant, &key);
        }
    }

    fn start_read(&mut self, tenant: TenantIndex, key: &BlockKey) {
        let owner = self.tenant(tenant);
        let Some(id) = owner.blocks.find(key) else { return };
        let block = owner.blocks.at(id);
        let (Pinned::Filling { slot: into, .. }, OnNvme::Ready { slot, generation }) =
            (&block.pinned, &block.nvme)
        else {
            return;
        };
        let slot = *slot;
        let expect = BlockName {
            key: *key,
            fingerprint: block.shape.fingerprint,
            tenant: owner.id,
            generation: *generation,
            payload_bytes: block.shape.payload_bytes,
        };
        let into = PinnedSpan { tenant, offset: owner.slots.offset(*into), class: block.shape.class() };
        let tag = self.next_tag();
        self.ops.insert(tag, NvmeOp::Read { tenant, block: id });
        self.reads_inflight += 1;
        self.effects.push(Effect::NvmeRead { tag, slot, into, expect: Box::new(expect) });
    }

    /// Starts the write of a block that is still queued; a block that was evicted meanwhile is passed over.
    fn start_write(&mut self, tenant: TenantIndex, key: &BlockKey) {
        let owner = self.tenant(tenant);
        let Some(id) = owner.blocks.find(key) else { return };
        let block = owner.blocks.at(id);
        let (Pinned::Ready { slot: from, .. }, OnNvme::Queued { .. }) = (&block.pinned, &block.nvme) else {
            return;
        };
        let class = block.shape.class();
        let from = PinnedSpan { tenant, offset: owner.slots.offset(*from), class };
        let taken = self.take_nvme(class);
        let generation = self.next_generation();
        let (header, durable) = self.begin_write(tenant, id, taken.map(|taken| (taken.slot, generation)));
        let Some(taken) = taken else {
            self.metrics.nvme_write("skipped");
            return self.written(durable, false);
        };
        if taken.segment_is_new {
            let tag = self.next_tag();
            self.effects.push(Effect::NvmeCreate { tag, segment: taken.slot.segment, class });
        }
        let header = Box::new(BlockHeader { generation, ..*header });
        let tag = self.next_tag();
        self.ops.insert(tag, NvmeOp::Write { tenant, block: id });
        self.writes_inflight += 1;
        let ack = if durable.is_empty() { Ack::Written } else { Ack::Durable };
        self.effects.push(Effect::NvmeWrite { tag, slot: taken.slot, from, header, ack });
    }

    /// Takes the header of a queued block, which is then being written to `to`, or no longer meant for NVMe.
    fn begin_write(
        &mut self,
        tenant: TenantIndex,
        id: BlockId,
        to: Option<(Slot, Generation)>,
    ) -> (Box<BlockHeader>, Vec<GrantId>) {
        self.tenant(tenant).blocks.change(id, |block| {
            let OnNvme::Queued { header, durable } = std::mem::replace(&mut block.nvme, OnNvme::None) else {
                unreachable!("the caller saw that the block is queued");
            };
            if let Some((slot, generation)) = to {
                block.nvme = OnNvme::Writing { slot, generation, durable: durable.clone() };
            }
            (header, durable)
        })
    }

    /// An operation ended. Each has one completion.
    pub(super) fn nvme_done(&mut self, done: Done) {
        match done {
            Done::Written { tag, result } => {
                let Some(NvmeOp::Write { tenant, block }) = self.ops.remove(&tag) else { return };
                self.writes_inflight -= 1;
                if let Err(error) = result {
                    self.write_failed(error);
                }
                self.write_done(tenant, block, result.is_ok());
            }
            Done::Read { tag, result } => {
                let Some(NvmeOp::Read { tenant, block }) = self.ops.remove(&tag) else { return };
                self.reads_inflight -= 1;
                match result {
                    Ok(header) => self.read_done(tenant, block, header.range_bytes, header.range_crcs),
                    Err(error) => self.read_failed(tenant, block, error),
                }
            }
            Done::SegmentCreated { segment, result: Err(error), .. } => self.no_segment(segment, error),
            Done::Erased { tag, .. } => {
                if let Some(NvmeOp::Erase { slot }) = self.ops.remove(&tag) {
                    self.free_nvme(slot);
                }
            }
            Done::SegmentCreated { .. } | Done::SegmentDeleted { .. } => {}
        }
    }

    /// The tier keeps what it has; a segment that failed takes no more.
    fn write_failed(&mut self, error: WriteError) {
        if let WriteError::Poisoned(segment) = error
            && let Some(slots) = self.nvme_slots.as_mut()
        {
            slots.close(segment);
        }
        self.degraded(error.to_string());
    }

    /// The device has no room for another segment: the tier goes on with those it has. The blocks that were to go
    /// there fail one by one, and the last one frees the number.
    fn no_segment(&mut self, segment: u32, error: SegmentError) {
        if let Some(slots) = self.nvme_slots.as_mut() {
            slots.close(segment);
            slots.limit_assigned(slots.assigned().saturating_sub(1));
        }
        self.degraded(error.to_string());
    }

    fn degraded(&mut self, reason: String) {
        if self.nvme_degraded != reason {
            tracing::error!(shard = self.config.shard, %reason, "the NVMe tier is degraded; other tiers serve on");
            self.nvme_degraded = reason;
        }
    }

    fn write_done(&mut self, tenant: TenantIndex, id: BlockId, well: bool) {
        let (slot, durable, link) = self.tenant(tenant).blocks.change(id, |block| {
            let OnNvme::Writing { slot, generation, durable } =
                std::mem::replace(&mut block.nvme, OnNvme::None)
            else {
                unreachable!("a block that is being written stays so until the write ends");
            };
            if well {
                block.nvme = OnNvme::Ready { slot, generation };
            }
            (slot, durable, Link { index: block.depth, key: block.key, parent: block.parent })
        });
        self.metrics.nvme_write(if well { "written" } else { "failed" });
        if self
            .tenant(tenant)
            .blocks
            .find(&link.key)
            .is_some_and(|id| self.tenants[usize::from(tenant.0)].blocks.at(id).must_go())
        {
            self.drop_pinned(tenant, id);
        }
        if well {
            self.stored(tenant, Tier::Nvme, &[link]);
        } else {
            self.free_nvme(slot);
        }
        self.written(durable, well);
    }

    fn read_done(&mut self, tenant: TenantIndex, id: BlockId, range_bytes: u32, range_crcs: Vec<u32>) {
        let owner = self.tenant(tenant);
        let tenant_id = owner.id;
        let (slot, waiting, header) = owner.blocks.change(id, |block| {
            let Pinned::Filling { slot, generation, waiting } =
                std::mem::replace(&mut block.pinned, Pinned::None)
            else {
                unreachable!("a block that is being read stays so until the read ends");
            };
            block.pinned = Pinned::Ready { slot, generation };
            let header = BlockHeader {
                key: block.key,
                fingerprint: block.shape.fingerprint,
                tenant: tenant_id,
                parent: block.parent,
                depth: block.depth,
                generation,
                location: Location::MEMORY,
                payload_bytes: block.shape.payload_bytes,
                range_bytes,
                range_crcs,
            };
            (slot, waiting, header)
        });
        let link = Link { index: header.depth, key: header.key, parent: header.parent };
        let offset = owner.slots.offset(slot);
        self.effects.push(Effect::SealSlot { tenant, offset, header: Box::new(header) });
        self.stored(tenant, Tier::Pinned, &[link]);
        self.filled(waiting, id, None);
    }

    /// The block cannot be had from NVMe: both copies are dropped. One that is damaged is made unreadable, so that it
    /// is not found again after a restart.
    fn read_failed(&mut self, tenant: TenantIndex, id: BlockId, error: ReadError) {
        let reason = match error {
            ReadError::Corrupt(_) => MissReason::MissCorrupt,
            ReadError::Io(_) | ReadError::NoSegment(_) | ReadError::Misuse(_) => MissReason::MissIo,
        };
        // A lease of our own keeps the entry while its copies go.
        let (slot, waiting, key) = self.tenant(tenant).blocks.change(id, |block| {
            block.leases += 1;
            let Pinned::Filling { slot, waiting, .. } = std::mem::replace(&mut block.pinned, Pinned::None)
            else {
                unreachable!("a block that is being read stays so until the read ends");
            };
            (slot, waiting, block.key)
        });
        self.free_pinned(tenant, slot);
        tracing::warn!(key = %key.short(), %error, "a block on NVMe could not be read; it is dropped");
        if let Some(slot) = self.detach_nvme(tenant, id) {
            if reason == MissReason::MissCorrupt {
                let tag = self.next_tag();
                self.ops.insert(tag, NvmeOp::Erase { slot });
                self.effects.push(Effect::NvmeErase { tag, slot });
            } else {
                self.free_nvme(slot);
            }
        }
        self.filled(waiting, id, Some(reason));
        self.tenant(tenant).blocks.change(id, |block| block.leases -= 1);
    }

    pub(super) fn close_session(&mut self, session: SessionId) {
        self.release_session(session);
        self.abort_session(session);
        self.withdraw_session(session);
    }
}
