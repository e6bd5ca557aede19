//! Match, lease, release: the reading side.

use std::time::Instant;

use hearth_proto::key::BlockKey;
use hearth_proto::v1::{MissReason, Tier};

use super::Shard;
use crate::store::block::{BlockId, OnNvme, Pinned};
use crate::store::message::{Acquired, Answer, Caller, GrantId, Leased, Link, SessionId, Shape, TenantIndex};

/// Blocks that a session may read.
#[derive(Debug)]
pub(super) struct Lease {
    session: SessionId,
    tenant: TenantIndex,
    blocks: Vec<BlockId>,
}

#[cfg(test)]
impl Lease {
    pub(super) fn session(&self) -> SessionId {
        self.session
    }
}

/// An acquire that waits for blocks to come from NVMe.
#[derive(Debug)]
pub(super) struct PendingAcquire<R> {
    session: SessionId,
    tenant: TenantIndex,
    deadline: Instant,
    wanted: Vec<Wanted>,
    waiting: usize,
    /// Why the blocks after the last wanted one are not.
    miss: Option<(u32, MissReason)>,
    /// How many blocks were asked for.
    asked: usize,
    reply: R,
}

#[derive(Debug)]
struct Wanted {
    index: u32,
    block: BlockId,
    tier: Tier,
    failed: Option<MissReason>,
}

impl<R> Shard<R> {
    pub(super) fn match_run(&mut self, caller: &Caller, links: &[Link], reply: R) {
        let blocks = &self.tenant(caller.tenant).blocks;
        let mut tiers = Vec::new();
        for link in links {
            let Some(block) = blocks.find(&link.key).map(|id| blocks.at(id)) else { break };
            let tier = match (&block.pinned, &block.nvme) {
                _ if block.shape != caller.shape || block.doomed => break,
                (Pinned::Ready { .. }, _) => Tier::Pinned,
                (_, OnNvme::Ready { .. }) => Tier::Nvme,
                _ => break,
            };
            tiers.push((link.index, tier));
        }
        self.reply(reply, Ok(Answer::Matched(tiers)));
    }

    /// Leases what is there and starts bringing in what is on NVMe; answers when all of it came, or at the deadline.
    pub(super) fn acquire(
        &mut self,
        caller: &Caller,
        links: &[Link],
        (deadline, now): (Instant, Instant),
        reply: R,
    ) {
        let grant = self.next_grant();
        let mut acquire = PendingAcquire {
            session: caller.session,
            tenant: caller.tenant,
            deadline,
            wanted: Vec::with_capacity(links.len()),
            waiting: 0,
            miss: None,
            asked: links.len(),
            reply,
        };
        for link in links {
            match self.want(caller.tenant, &caller.shape, &link.key, grant) {
                Ok((block, tier, waits)) => {
                    acquire.waiting += usize::from(waits);
                    acquire.wanted.push(Wanted { index: link.index, block, tier, failed: None });
                }
                Err(reason) => {
                    acquire.miss = Some((link.index, reason));
                    break;
                }
            }
        }
        let run: Vec<BlockId> = acquire.wanted.iter().map(|wanted| wanted.block).collect();
        self.tenant(caller.tenant).blocks.touch(&run);
        if acquire.waiting == 0 || deadline <= now {
            self.finish_acquire(grant, acquire);
        } else {
            self.acquires.insert(grant, acquire);
        }
    }

    /// Leases one block. The flag says that it has still to come from NVMe.
    fn want(
        &mut self,
        tenant: TenantIndex,
        shape: &Shape,
        key: &BlockKey,
        grant: GrantId,
    ) -> Result<(BlockId, Tier, bool), MissReason> {
        let blocks = &mut self.tenant(tenant).blocks;
        let id = blocks.find(key).ok_or(MissReason::MissAbsent)?;
        let block = blocks.at(id);
        if block.shape != *shape {
            return Err(MissReason::MissAbsent);
        }
        match (&block.pinned, &block.nvme) {
            (Pinned::Ready { .. }, _) if block.doomed => Err(MissReason::MissCorrupt),
            (Pinned::Ready { .. }, _) => {
                blocks.change(id, |block| block.leases += 1);
                Ok((id, Tier::Pinned, false))
            }
            (Pinned::Filling { .. }, _) => {
                blocks.change(id, |block| {
                    block.leases += 1;
                    if let Pinned::Filling { waiting, .. } = &mut block.pinned {
                        waiting.push(grant);
                    }
                });
                Ok((id, Tier::Nvme, true))
            }
            (Pinned::None, OnNvme::Ready { .. }) => {
                // Leased before room is made, so that making room cannot drop the block itself.
                blocks.change(id, |block| block.leases += 1);
                if self.start_fill(tenant, id, grant) {
                    return Ok((id, Tier::Nvme, true));
                }
                self.tenant(tenant).blocks.change(id, |block| block.leases -= 1);
                Err(MissReason::MissFull)
            }
            (Pinned::None, _) => Err(MissReason::MissAbsent),
        }
    }

    /// Gives a block a pinned slot to be read into, and queues the read.
    fn start_fill(&mut self, tenant: TenantIndex, id: BlockId, grant: GrantId) -> bool {
        let block = self.tenant(tenant).blocks.at(id);
        let (key, class) = (block.key, block.shape.class());
        let Some(slot) = self.take_pinned(tenant, class) else { return false };
        let generation = self.next_generation();
        let filling = Pinned::Filling { slot, generation, waiting: vec![grant] };
        self.tenant(tenant).blocks.change(id, |block| block.pinned = filling);
        self.read_queue.push_back((tenant, key));
        true
    }

    /// A block that acquires waited for came, or did not.
    pub(super) fn filled(&mut self, waiting: Vec<GrantId>, block: BlockId, failed: Option<MissReason>) {
        for grant in waiting {
            let Some(acquire) = self.acquires.get_mut(&grant) else { continue };
            acquire.waiting -= 1;
            if let Some(wanted) = acquire.wanted.iter_mut().find(|wanted| wanted.block == block) {
                wanted.failed = failed;
            }
            if acquire.waiting == 0
                && let Some(acquire) = self.acquires.remove(&grant)
            {
                self.finish_acquire(grant, acquire);
            }
        }
    }

    pub(super) fn expire_acquires(&mut self, now: Instant) {
        let due: Vec<GrantId> = self
            .acquires
            .iter()
            .filter(|(_, acquire)| acquire.deadline <= now)
            .map(|(&grant, _)| grant)
            .collect();
        for grant in due {
            if let Some(acquire) = self.acquires.remove(&grant) {
                self.finish_acquire(grant, acquire);
            }
        }
    }

    /// Answers with the blocks that can be read, up to the first that cannot; lets go of the others.
    fn finish_acquire(&mut self, grant: GrantId, acquire: PendingAcquire<R>) {
        let PendingAcquire { session, tenant, wanted, mut miss, asked, reply, .. } = acquire;
        let mut leased = Vec::new();
        let mut held = Vec::new();
        for wanted in &wanted {
            let ready = match self.tenant(tenant).blocks.at(wanted.block).pinned {
                Pinned::Ready { slot, generation } if wanted.failed.is_none() => Ok((slot, generation)),
                _ => Err(wanted.failed.unwrap_or(MissReason::MissDeadline)),
            };
            match ready {
                Ok((slot, generation)) => {
                    let offset = self.tenant(tenant).slots.offset(slot);
                    leased.push(Leased { index: wanted.index, offset, generation, tier: wanted.tier });
                    held.push(wanted.block);
                    self.metrics.hit(wanted.tier);
                }
                Err(reason) => {
                    miss = Some((wanted.index, reason));
                    break;
                }
            }
        }
        for wanted in &wanted[leased.len()..] {
            self.unlease(tenant, wanted.block);
        }
        if let Some((_, reason)) = miss {
            self.metrics.miss(reason, (asked - leased.len()) as u64);
        }
        let lease = (!held.is_empty()).then_some(grant);
        if lease.is_some() {
            self.leases.insert(grant, Lease { session, tenant, blocks: held });
        }
        self.reply(reply, Ok(Answer::Acquired(Acquired { lease, blocks: leased, miss })));
    }

    /// Ends a lease. What the reader found corrupt is dropped from memory; a copy on NVMe is checked when it is read.
    pub(super) fn release(&mut self, session: SessionId, grant: GrantId, corrupt: &[BlockKey]) {
        if self.leases.get(&grant).is_none_or(|lease| lease.session != session) {
            return;
        }
        let Some(lease) = self.leases.remove(&grant) else { return };
        for &id in &lease.blocks {
            let key = self.tenant(lease.tenant).blocks.at(id).key;
            if corrupt.contains(&key) {
                tracing::warn!(key = %key.short(), "a reader found a block damaged in memory; it is dropped");
                self.tenant(lease.tenant).blocks.change(id, |block| block.doomed = true);
            }
            self.unlease(lease.tenant, id);
        }
    }

    pub(super) fn release_session(&mut self, session: SessionId) {
        let leases: Vec<GrantId> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.session == session)
            .map(|(&grant, _)| grant)
            .collect();
        for grant in leases {
            self.release(session, grant, &[]);
        }
        let pending: Vec<GrantId> = self
            .acquires
            .iter()
            .filter(|(_, acquire)| acquire.session == session)
            .map(|(&grant, _)| grant)
            .collect();
        for grant in pending {
            let Some(acquire) = self.acquires.remove(&grant) else { continue };
            for wanted in &acquire.wanted {
                self.unlease(acquire.tenant, wanted.block);
            }
        }
    }

    fn unlease(&mut self, tenant: TenantIndex, id: BlockId) {
        let blocks = &mut self.tenant(tenant).blocks;
        let must_go = blocks.change(id, |block| {
            block.leases = block.leases.checked_sub(1).expect("a lease is ended once");
            block.must_go()
        });
        if must_go {
            self.drop_pinned(tenant, id);
        }
    }
}
