//! One shard: its state, and how each event changes it.
//!
//! Nothing here waits, locks, reads a clock or touches bytes. Every change happens inside [`Shard::apply`] or
//! [`Shard::tick`], so no other code ever sees a state in between.

mod acquire;
mod evict;
mod feed;
mod nvme;
mod session;
mod write;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_proto::code::Code;
use hearth_proto::header::Generation;
use hearth_proto::key::BlockKey;
use hearth_proto::tenant::TenantId;
use hearth_proto::v1::Tier;

use self::acquire::{Lease, PendingAcquire};
use self::feed::Feed;
use self::nvme::NvmeOp;
use self::session::HeldBy;
use self::write::{PendingSeal, Reservation};
use super::block::{Block, Blocks, OnNvme};
use super::message::{
    Answer, Effect, Event, GrantId, SessionId, Shape, ShardStatus, SubscriberId, TenantIndex,
};
use super::metrics::StoreMetrics;
use crate::slots::{Slots, SlotsConfig};
use crate::tier::nvme::{Recovered, Tag};

/// Longest that a shard may go without a [`Shard::tick`] while something is pending.
pub const TICK: Duration = Duration::from_millis(20);

/// Time after which a reservation that was not sealed is void.
const RESERVATION_TTL: Duration = Duration::from_secs(30);
/// Generations start at the node's start number, shifted by this: they grow through restarts.
const INCARNATION_SHIFT: u32 = 40;
/// Quiet time after which readers of the feed get a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What a shard is made of.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Its number.
    pub shard: u32,
    /// How many there are.
    pub shards: u32,
    /// Start number of the node, never used twice; the high bits of every generation.
    pub incarnation: u64,
    /// Owners of blocks, in the order of [`TenantIndex`].
    pub tenants: Vec<TenantId>,
    /// Share of the pinned tier, for each tenant.
    pub pinned: SlotsConfig,
    /// Writes to NVMe under way at once.
    pub nvme_writes_max: usize,
    /// Reads from NVMe under way at once.
    pub nvme_reads_max: usize,
}

/// The state of one shard. `R` is where answers go.
#[derive(Debug)]
pub struct Shard<R> {
    config: ShardConfig,
    tenants: Vec<Tenant>,
    nvme_slots: Option<Slots>,
    leases: HashMap<GrantId, Lease>,
    acquires: HashMap<GrantId, PendingAcquire<R>>,
    reservations: HashMap<GrantId, Reservation>,
    seals: HashMap<GrantId, PendingSeal<R>>,
    flushes: Vec<(Instant, R)>,
    session_held: HashMap<SessionId, HeldBy>,
    subscribers: HashMap<SubscriberId, TenantIndex>,
    ops: HashMap<Tag, NvmeOp>,
    write_queue: VecDeque<(TenantIndex, BlockKey)>,
    read_queue: VecDeque<(TenantIndex, BlockKey)>,
    writes_inflight: usize,
    reads_inflight: usize,
    nvme_degraded: String,
    grants: u64,
    tags: u64,
    /// Last generation given out.
    generation: Generation,
    heartbeat_at: Option<Instant>,
    metrics: StoreMetrics,
    reported: ShardStatus,
    effects: Vec<Effect<R>>,
}

/// What a shard holds of one tenant.
#[derive(Debug)]
struct Tenant {
    id: TenantId,
    slots: Slots,
    blocks: Blocks,
    /// Blocks that are being written, and by which reservation.
    writing: HashMap<BlockKey, GrantId>,
    /// Blocks in engines' own pages, by holder.
    held: BTreeMap<Arc<str>, HashMap<BlockKey, feed::Held>>,
    feed: Feed,
}

impl<R> Shard<R> {
    /// An empty shard, without an NVMe tier until [`Shard::recover`].
    pub fn new(config: ShardConfig, metrics: StoreMetrics) -> Self {
        let tenant = |&id: &TenantId| Tenant {
            id,
            slots: Slots::new(config.pinned),
            blocks: Blocks::default(),
            writing: HashMap::new(),
            held: BTreeMap::new(),
            feed: Feed::default(),
        };
        Self {
            tenants: config.tenants.iter().map(tenant).collect(),
            nvme_slots: None,
            generation: Generation(config.incarnation << INCARNATION_SHIFT),
            config,
            leases: HashMap::new(),
            acquires: HashMap::new(),
            reservations: HashMap::new(),
            seals: HashMap::new(),
            flushes: Vec::new(),
            session_held: HashMap::new(),
            subscribers: HashMap::new(),
            ops: HashMap::new(),
            write_queue: VecDeque::new(),
            read_queue: VecDeque::new(),
            writes_inflight: 0,
            reads_inflight: 0,
            nvme_degraded: String::new(),
            grants: 0,
            tags: 0,
            heartbeat_at: None,
            metrics,
            reported: ShardStatus::default(),
            effects: Vec::new(),
        }
    }

    /// Takes over what was found on NVMe at start. Blocks of tenants that are not configured are left out; their slots
    /// are free. Returns how many blocks were taken over.
    pub fn recover(&mut self, found: &Recovered) -> u64 {
        let mut slots = Slots::new(found.slots);
        slots.limit_assigned(found.segments_usable);
        for segment in &found.segments {
            let restored = slots.restore_segment(segment.segment, segment.class);
            if restored.is_ok() && !segment.writable {
                slots.close(segment.segment);
            }
        }
        self.generation = self.generation.max(found.generation_max);
        let mut taken = 0;
        for block in &found.blocks {
            let Some(tenant) = self.tenants.iter_mut().find(|tenant| tenant.id == block.name.tenant) else {
                continue;
            };
            let shape =
                Shape { fingerprint: block.name.fingerprint, payload_bytes: block.name.payload_bytes };
            let known = tenant.blocks.find(&block.name.key).is_some();
            if known || slots.restore(block.slot, shape.class()).is_err() {
                continue;
            }
            let mut entry = Block::new(block.name.key, block.parent, block.depth, shape);
            entry.nvme = OnNvme::Ready { slot: block.slot, generation: block.name.generation };
            tenant.blocks.insert(entry);
            tenant.feed.stored_before_any_reader(&block.name.key, Tier::Nvme);
            taken += 1;
        }
        self.nvme_slots = Some(slots);
        for tenant in &mut self.tenants {
            tenant.blocks.order_recovered();
        }
        taken
    }

    /// Applies one event. The effects are to be carried out in order.
    pub fn apply(&mut self, event: Event<R>, now: Instant) -> Vec<Effect<R>> {
        match event {
            Event::Match { caller, links, reply } => self.match_run(&caller, &links, reply),
            Event::Acquire { caller, links, deadline, reply } => {
                self.acquire(&caller, &links, (deadline, now), reply)
            }
            Event::Release { session, lease, corrupt } => self.release(session, lease, &corrupt),
            Event::Reserve { caller, links, first, reply } => {
                self.reserve(&caller, links, (first, now), reply)
            }
            Event::Seal { session, reservation, blocks, durability, reply } => {
                self.seal((session, reservation), &blocks, durability, reply);
            }
            Event::Abort { session, reservation } => self.abort(session, reservation),
            Event::Advertise { caller, links } => self.advertise(&caller, &links),
            Event::Withdraw { caller, keys } => self.withdraw(&caller, &keys),
            Event::CloseSession { session } => self.close_session(session),
            Event::Subscribe { tenant, subscriber } => self.subscribe(tenant, subscriber),
            Event::Unsubscribe { subscriber } => self.unsubscribe(subscriber),
            Event::Register { tenant, identity, fingerprint } => {
                self.registered(tenant, *identity, fingerprint)
            }
            Event::Status { reply } => {
                let status = self.status();
                self.reply(reply, Ok(Answer::Status(status)));
            }
            Event::Flush { deadline, reply } => self.flushes.push((deadline, reply)),
            Event::Nvme(done) => self.nvme_done(done),
        }
        self.settle(now)
    }

    /// Does what is due by `now`: deadlines, expiries, heartbeats.
    pub fn tick(&mut self, now: Instant) -> Vec<Effect<R>> {
        self.expire_acquires(now);
        self.expire_reservations(now);
        self.heartbeat(now);
        self.settle(now)
    }

    /// Whether something may come due, so that [`Shard::tick`] must be called every [`TICK`].
    pub fn is_waiting(&self) -> bool {
        !(self.acquires.is_empty()
            && self.reservations.is_empty()
            && self.flushes.is_empty()
            && self.subscribers.is_empty())
    }

    /// What the shard holds.
    pub fn status(&self) -> ShardStatus {
        let mut status = ShardStatus { nvme_degraded: self.nvme_degraded.clone(), ..ShardStatus::default() };
        for tenant in &self.tenants {
            status.pinned_bytes_used += tenant.slots.used_bytes();
            status.pinned_blocks += tenant.feed.blocks(Tier::Pinned);
            status.nvme_blocks += tenant.feed.blocks(Tier::Nvme);
        }
        status.nvme_bytes_used = self.nvme_slots.as_ref().map_or(0, Slots::used_bytes);
        status.nvme_writes_pending = self.writes_pending();
        status
    }

    /// Ends every event: starts I/O that has room now, answers flushes, reports gauges.
    fn settle(&mut self, now: Instant) -> Vec<Effect<R>> {
        self.start_nvme();
        let pending = self.writes_pending();
        if pending == 0 || self.flushes.iter().any(|&(deadline, _)| deadline <= now) {
            let due = |&mut (deadline, _): &mut (Instant, R)| pending == 0 || deadline <= now;
            let flushed: Vec<_> = self.flushes.extract_if(.., due).collect();
            for (_, reply) in flushed {
                self.reply(reply, Ok(Answer::Flushed(pending)));
            }
        }
        self.report();
        std::mem::take(&mut self.effects)
    }

    /// Moves the node's gauges by what changed here.
    fn report(&mut self) {
        let (now, then) = (self.status(), &self.reported);
        let delta = |a: u64, b: u64| a.cast_signed() - b.cast_signed();
        for (tier, blocks, bytes) in [
            (
                Tier::Pinned,
                delta(now.pinned_blocks, then.pinned_blocks),
                delta(now.pinned_bytes_used, then.pinned_bytes_used),
            ),
            (
                Tier::Nvme,
                delta(now.nvme_blocks, then.nvme_blocks),
                delta(now.nvme_bytes_used, then.nvme_bytes_used),
            ),
        ] {
            if blocks != 0 || bytes != 0 {
                self.metrics.tier_changed(tier, blocks, bytes);
            }
        }
        self.reported = now;
    }

    fn reply(&mut self, to: R, answer: Result<Answer, Code>) {
        self.effects.push(Effect::Reply(to, answer));
    }

    fn tenant(&mut self, tenant: TenantIndex) -> &mut Tenant {
        &mut self.tenants[usize::from(tenant.0)]
    }

    fn next_grant(&mut self) -> GrantId {
        self.grants += 1;
        GrantId(self.grants)
    }

    fn next_tag(&mut self) -> Tag {
        self.tags += 1;
        Tag(self.tags)
    }

    /// Never given out before, restarts included.
    fn next_generation(&mut self) -> Generation {
        self.generation.0 += 1;
        self.generation
    }
}
