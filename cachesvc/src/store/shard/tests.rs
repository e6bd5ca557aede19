//! A shard under random events, with an NVMe tier whose completions come late and in any order, against what must
//! always hold:
//!
//! - a slot that is leased, reserved, being read into or being written from is never handed out again;
//! - what is leased was sealed, and sits where it was sealed;
//! - a reader of the feed that applies snapshot and events arrives at what the shard holds;
//! - when every session is gone and every operation has ended, nothing is held any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use hearth_proto::code::Code;
use hearth_proto::event::Digest;
use hearth_proto::header::{BlockHeader, Generation};
use hearth_proto::identity::Fingerprint;
use hearth_proto::key::{BlockKey, unpack};
use hearth_proto::tenant::TenantId;
use hearth_proto::v1::{Durability, FeedMessage, MissReason, SealedBlock, Tier, feed_message::Body};
use proptest::prelude::*;

use super::*;
use crate::slots::{Slot, SlotsConfig};
use crate::store::message::{Acquired, Caller, Link, PinnedSpan, Reserved};
use crate::tier::nvme::{Damage, Done, ReadError, RecoveryCounts, WriteError};

const PAYLOAD: u64 = 4096;
const SESSIONS: u64 = 3;
const READER: SubscriberId = SubscriberId(1);

/// A leased block: its key, the offset of its slot, the slot's generation.
type Held = (BlockKey, u64, Generation);

/// What the NVMe tier would be doing.
#[derive(Debug)]
enum Io {
    Write { tag: Tag, slot: Slot, from: PinnedSpan, header: Box<BlockHeader> },
    Read { tag: Tag, slot: Slot, into: PinnedSpan, generation: Generation, key: BlockKey },
    Erase { tag: Tag },
}

/// A shard, the world around it, and what that world knows.
struct World {
    shard: Shard<u64>,
    now: Instant,
    asked: u64,
    answers: HashMap<u64, Result<Answer, Code>>,
    io: Vec<Io>,
    /// Content of pinned slots by offset, as headers.
    pinned: BTreeMap<u64, BlockHeader>,
    /// Content of NVMe slots.
    nvme: HashMap<Slot, (BlockKey, Generation, Vec<u32>)>,
    leases: BTreeMap<(SessionId, GrantId), Vec<Held>>,
    reservations: BTreeMap<(SessionId, GrantId), Vec<(u32, u64)>>,
    feed: Vec<FeedMessage>,
}

fn slots(segments: u32) -> SlotsConfig {
    SlotsConfig {
        segment_bytes: 4 * 8192,
        segment_head_bytes: 0,
        segment_tail_bytes: 0,
        segments_max: segments,
    }
}

/// Runs fork at their third block: run `r` has blocks 0 and 1 in common with all others.
fn chain(run: u8, blocks: usize) -> Vec<Link> {
    let key =
        |i: usize| BlockKey([if i < 2 { 0 } else { run + 1 }, i as u8, 7, 7].repeat(8).try_into().unwrap());
    let link = |i: usize| Link { index: i as u32, key: key(i), parent: i.checked_sub(1).map(key) };
    (0..blocks).map(link).collect()
}

fn caller(session: u64) -> Caller {
    Caller {
        session: SessionId(session),
        tenant: TenantIndex(0),
        shape: Shape { fingerprint: Fingerprint([5; 32]), payload_bytes: PAYLOAD },
        range_bytes: 4096,
        holder: format!("engine-{session}").as_str().into(),
    }
}

impl World {
    fn new() -> Self {
        let config = ShardConfig {
            shard: 0,
            shards: 1,
            incarnation: 3,
            tenants: vec![TenantId([9; 16])],
            pinned: slots(2),
            nvme_writes_max: 2,
            nvme_reads_max: 2,
        };
        let mut shard = Shard::new(config, StoreMetrics::default());
        shard.recover(&Recovered {
            slots: slots(4),
            segments: Vec::new(),
            segments_usable: 4,
            blocks: Vec::new(),
            generation_max: Generation(0),
            counts: RecoveryCounts::default(),
        });
        Self {
            shard,
            now: Instant::now(),
            asked: 0,
            answers: HashMap::new(),
            io: Vec::new(),
            pinned: BTreeMap::new(),
            nvme: HashMap::new(),
            leases: BTreeMap::new(),
            reservations: BTreeMap::new(),
            feed: Vec::new(),
        }
    }

    fn apply(&mut self, event: impl FnOnce(u64) -> Event<u64>) -> u64 {
        self.asked += 1;
        let ask = self.asked;
        let effects = self.shard.apply(event(ask), self.now);
        self.carry_out(effects);
        ask
    }

    fn carry_out(&mut self, effects: Vec<Effect<u64>>) {
        for effect in effects {
            match effect {
                Effect::Reply(to, answer) => {
                    assert!(self.answers.insert(to, answer).is_none(), "answered once")
                }
                Effect::SealSlot { offset, header, .. } => {
                    assert!(!self.leased_offsets().contains(&offset), "a leased slot is not rewritten");
                    self.pinned.insert(offset, *header);
                }
                Effect::NvmeWrite { tag, slot, from, header, .. } => {
                    self.io.push(Io::Write { tag, slot, from, header })
                }
                Effect::NvmeRead { tag, slot, into, expect } => {
                    assert!(!self.leased_offsets().contains(&into.offset), "a leased slot is not read into");
                    self.pinned.remove(&into.offset);
                    self.io.push(Io::Read {
                        tag,
                        slot,
                        into,
                        generation: expect.generation,
                        key: expect.key,
                    });
                }
                Effect::NvmeErase { tag, slot } => {
                    self.nvme.remove(&slot);
                    self.io.push(Io::Erase { tag });
                }
                Effect::NvmeCreate { .. } => {}
                Effect::Publish(_, batch) => self.feed.extend(batch),
            }
        }
    }

    fn leased_offsets(&self) -> BTreeSet<u64> {
        self.leases.values().flatten().map(|&(_, offset, _)| offset).collect()
    }

    fn reserved_offsets(&self) -> BTreeSet<u64> {
        self.reservations.values().flatten().map(|&(_, offset)| offset).collect()
    }

    fn io_offsets(&self) -> BTreeSet<u64> {
        let offset = |io: &Io| match io {
            Io::Write { from, .. } => Some(from.offset),
            Io::Read { into, .. } => Some(into.offset),
            Io::Erase { .. } => None,
        };
        self.io.iter().filter_map(offset).collect()
    }

    fn reserve(&mut self, session: u64, run: u8, blocks: usize) {
        let ask = self.apply(|reply| Event::Reserve {
            caller: caller(session),
            links: chain(run, blocks),
            first: 0,
            reply,
        });
        let Some(Ok(Answer::Reserved(Reserved { reservation, slots, .. }))) = self.answers.remove(&ask)
        else {
            panic!("a reserve is answered at once")
        };
        let busy: BTreeSet<u64> =
            self.leased_offsets().union(&self.reserved_offsets()).copied().chain(self.io_offsets()).collect();
        for &(_, offset, _) in &slots {
            assert!(!busy.contains(&offset), "slot {offset} is in use");
            self.pinned.remove(&offset);
        }
        if let Some(grant) = reservation {
            let slots = slots.iter().map(|&(index, offset, _)| (index, offset)).collect();
            self.reservations.insert((SessionId(session), grant), slots);
        }
    }

    fn seal(&mut self, durability: Durability, skip: bool) {
        let Some(((session, grant), slots)) = self.reservations.pop_first() else { return };
        let named = slots.iter().skip(usize::from(skip));
        let block =
            |&(index, _): &(u32, u64)| SealedBlock { index, range_bytes: 4096, range_crcs: vec![index] };
        let blocks = named.map(block).collect();
        self.apply(|reply| Event::Seal { session, reservation: grant, blocks, durability, reply });
    }

    fn acquire(&mut self, session: u64, run: u8, blocks: usize) {
        let deadline = self.now + Duration::from_secs(1);
        let caller = caller(session);
        self.apply(|reply| Event::Acquire { caller, links: chain(run, blocks), deadline, reply });
    }

    /// Takes note of leases that were answered since.
    fn note_leases(&mut self) {
        let answers = std::mem::take(&mut self.answers);
        for answer in answers.into_values().flatten() {
            let Answer::Acquired(Acquired { lease: Some(grant), blocks, .. }) = answer else { continue };
            let session = self.shard.leases.get(&grant).map(|lease| lease.session());
            let Some(session) = session else { continue };
            let mut held = Vec::new();
            for leased in blocks {
                let header = self.pinned.get(&leased.offset).expect("a leased slot was sealed");
                assert_eq!(header.generation, leased.generation);
                assert_eq!(header.depth, leased.index);
                assert_eq!(header.range_crcs, vec![leased.index]);
                held.push((header.key, leased.offset, leased.generation));
            }
            self.leases.insert((session, grant), held);
        }
        for (key, offset, generation) in self.leases.values().flatten() {
            let header = &self.pinned[offset];
            assert_eq!((&header.key, &header.generation), (key, generation), "a leased slot keeps its block");
        }
    }

    fn release(&mut self, corrupt: bool) {
        let Some(((session, lease), blocks)) = self.leases.pop_first() else { return };
        let corrupt =
            if corrupt { blocks.iter().map(|&(key, ..)| key).take(1).collect() } else { Vec::new() };
        self.apply(|_| Event::Release { session, lease, corrupt });
    }

    /// Ends one operation of the device, well or not.
    fn finish_io(&mut self, which: usize, fault: u8) {
        if self.io.is_empty() {
            return;
        }
        let io = self.io.swap_remove(which % self.io.len());
        let done = match io {
            Io::Write { tag, slot, .. } if fault == 1 => {
                Done::Written { tag, result: Err(WriteError::Poisoned(slot.segment)) }
            }
            Io::Write { tag, slot, from, header } => {
                let source = &self.pinned[&from.offset];
                assert_eq!(source.key, header.key, "the source of a write keeps its block");
                self.nvme.insert(slot, (header.key, header.generation, header.range_crcs));
                Done::Written { tag, result: Ok(()) }
            }
            Io::Read { tag, .. } if fault == 1 => {
                Done::Read { tag, result: Err(ReadError::Corrupt(Damage::OtherBlock)) }
            }
            Io::Read { tag, slot, generation, key, .. } => {
                let (stored, stored_generation, crcs) = &self.nvme[&slot];
                assert_eq!(
                    (*stored, *stored_generation),
                    (key, generation),
                    "a slot that is read keeps its block"
                );
                let header = BlockHeader {
                    key,
                    fingerprint: Fingerprint([5; 32]),
                    tenant: TenantId([9; 16]),
                    parent: None,
                    depth: 0,
                    generation,
                    location: hearth_proto::header::Location::MEMORY,
                    payload_bytes: PAYLOAD,
                    range_bytes: 4096,
                    range_crcs: crcs.clone(),
                };
                Done::Read { tag, result: Ok(Box::new(header)) }
            }
            Io::Erase { tag } => Done::Erased { tag, result: Ok(()) },
        };
        self.apply(|_| Event::Nvme(done));
    }

    fn close(&mut self, session: u64) {
        let session = SessionId(session);
        self.leases.retain(|&(owner, _), _| owner != session);
        self.reservations.retain(|&(owner, _), _| owner != session);
        self.apply(|_| Event::CloseSession { session });
    }

    /// Ends everything, and looks whether anything is left.
    fn quiesce(&mut self) {
        for session in 0..SESSIONS {
            self.close(session);
        }
        while !self.io.is_empty() {
            self.finish_io(0, 0);
        }
        self.now += Duration::from_secs(60);
        let effects = self.shard.tick(self.now);
        self.carry_out(effects);
        let shard = &self.shard;
        assert!(shard.leases.is_empty() && shard.acquires.is_empty() && shard.reservations.is_empty());
        assert!(shard.seals.is_empty() && shard.ops.is_empty() && shard.session_held.is_empty());
        assert_eq!(shard.writes_pending(), 0);
        let tenant = &shard.tenants[0];
        assert!(tenant.writing.is_empty() && tenant.held.is_empty());
        let evictable = tenant.blocks.pinned_order.all().count() as u64;
        assert_eq!(evictable, tenant.feed.blocks(Tier::Pinned), "everything in memory may be evicted");
        assert_eq!(tenant.slots.used_bytes(), evictable * 8192, "no slot is lost");
        let on_nvme = shard.nvme_slots.as_ref().unwrap().used_bytes();
        assert_eq!(on_nvme, tenant.feed.blocks(Tier::Nvme) * 8192, "no slot is lost on NVMe");
    }

    /// What a reader of the feed believes.
    fn replay(&self) -> (Digest, u64) {
        let mut held: BTreeSet<(i32, String, BlockKey)> = BTreeSet::new();
        let mut seq = 0;
        for message in &self.feed {
            assert!(message.seq == 0 || message.seq == seq + 1, "no gap");
            seq = seq.max(message.seq);
            match message.body.as_ref().unwrap() {
                Body::SnapshotEnd(end) => seq = end.seq,
                Body::Stored(stored) => {
                    for key in unpack(&stored.keys).unwrap() {
                        assert!(held.insert((stored.tier, stored.holder.clone(), key)), "stored once");
                    }
                }
                Body::Removed(removed) => {
                    for key in unpack(&removed.keys).unwrap() {
                        assert!(
                            held.remove(&(removed.tier, removed.holder.clone(), key)),
                            "removed what was stored"
                        );
                    }
                }
                _ => {}
            }
        }
        let mut digest = Digest::default();
        for (tier, holder, key) in held {
            digest.add(&key, Tier::try_from(tier).unwrap(), &holder);
        }
        (digest, seq)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(u64, u8, usize),
    Seal(bool, bool),
    Acquire(u64, u8, usize),
    Release(bool),
    Io(usize, u8),
    Close(u64),
    Advertise(u64, u8, usize),
    Withdraw(u64, u8, usize),
    Wait(u64),
    Join,
}

fn step() -> impl Strategy<Value = Step> {
    let session = 0..SESSIONS;
    prop_oneof![
        4 => (session.clone(), 0u8..4, 1usize..6).prop_map(|(s, r, b)| Step::Reserve(s, r, b)),
        4 => any::<(bool, bool)>().prop_map(|(d, s)| Step::Seal(d, s)),
        5 => (session.clone(), 0u8..4, 1usize..6).prop_map(|(s, r, b)| Step::Acquire(s, r, b)),
        3 => prop::bool::weighted(0.1).prop_map(Step::Release),
        8 => (any::<usize>(), prop_oneof![9 => Just(0u8), 1 => Just(1u8)]).prop_map(|(w, f)| Step::Io(w, f)),
        1 => session.clone().prop_map(Step::Close),
        1 => (session.clone(), 0u8..4, 1usize..6).prop_map(|(s, r, b)| Step::Advertise(s, r, b)),
        1 => (session, 0u8..4, 1usize..6).prop_map(|(s, r, b)| Step::Withdraw(s, r, b)),
        1 => (0u64..3_000).prop_map(Step::Wait),
        1 => Just(Step::Join),
    ]
}

fn run(world: &mut World, step: Step) {
    match step {
        Step::Reserve(session, run, blocks) => world.reserve(session, run, blocks),
        Step::Seal(durable, skip) => {
            world.seal(if durable { Durability::Nvme } else { Durability::Memory }, skip);
        }
        Step::Acquire(session, run, blocks) => world.acquire(session, run, blocks),
        Step::Release(corrupt) => world.release(corrupt),
        Step::Io(which, fault) => world.finish_io(which, fault),
        Step::Close(session) => world.close(session),
        Step::Advertise(session, run, blocks) => {
            world.apply(|_| Event::Advertise { caller: caller(session), links: chain(run, blocks) });
        }
        Step::Withdraw(session, run, blocks) => {
            let keys = chain(run, blocks).iter().map(|link| link.key).collect();
            world.apply(|_| Event::Withdraw { caller: caller(session), keys });
        }
        Step::Wait(millis) => {
            world.now += Duration::from_millis(millis);
            let effects = world.shard.tick(world.now);
            world.carry_out(effects);
        }
        Step::Join => {
            world.feed.clear();
            world.apply(|_| Event::Unsubscribe { subscriber: READER });
            world.apply(|_| Event::Subscribe { tenant: TenantIndex(0), subscriber: READER });
        }
    }
    world.note_leases();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_invariants_hold(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        run(&mut world, Step::Join);
        for step in steps {
            run(&mut world, step);
            let (digest, _) = world.replay();
            prop_assert_eq!(digest, world.shard.tenants[0].feed.digest());
        }
        world.quiesce();
    }
}

fn only<T>(mut values: Vec<T>) -> T {
    assert_eq!(values.len(), 1);
    values.remove(0)
}

/// Seals a run and lets the device finish.
fn store_run(world: &mut World, run: u8, blocks: usize) {
    world.reserve(0, run, blocks);
    world.seal(Durability::Memory, false);
    while !world.io.is_empty() {
        world.finish_io(0, 0);
    }
}

fn acquired(world: &mut World, run: u8, blocks: usize) -> Acquired {
    world.acquire(0, run, blocks);
    while !world.io.is_empty() {
        world.finish_io(0, 0);
    }
    let ask = world.asked;
    let answers: Vec<_> =
        std::mem::take(&mut world.answers).into_iter().filter(|&(to, _)| to <= ask).collect();
    let acquired = answers.into_iter().filter_map(|(_, answer)| match answer {
        Ok(Answer::Acquired(acquired)) => Some(acquired),
        _ => None,
    });
    only(acquired.collect())
}

#[test]
fn a_run_is_found_up_to_where_it_was_stored() {
    let mut world = World::new();
    store_run(&mut world, 1, 3);
    let found = acquired(&mut world, 1, 5);
    assert_eq!(found.blocks.len(), 3);
    assert_eq!(found.miss, Some((3, MissReason::MissAbsent)));
    assert!(found.blocks.iter().all(|block| block.tier == Tier::Pinned));
}

#[test]
fn memory_that_runs_out_drops_leaves_first_and_nvme_gives_them_back() {
    let mut world = World::new();
    for run in 1..4 {
        store_run(&mut world, run, 5);
    }
    let status = world.shard.status();
    assert_eq!((status.pinned_blocks, status.nvme_blocks), (8, 11));
    // Run 1 is the oldest: its own blocks left memory, the two that all runs share did not.
    let found = acquired(&mut world, 1, 5);
    let tiers: Vec<Tier> = found.blocks.iter().map(|block| block.tier).collect();
    assert_eq!(tiers, [Tier::Pinned, Tier::Pinned, Tier::Nvme, Tier::Nvme, Tier::Nvme]);
}

#[test]
fn a_damaged_block_on_nvme_ends_the_prefix_and_is_gone() {
    let mut world = World::new();
    for run in 1..4 {
        store_run(&mut world, run, 5);
    }
    world.acquire(0, 1, 5);
    world.finish_io(0, 1);
    while !world.io.is_empty() {
        world.finish_io(0, 0);
    }
    let answers = std::mem::take(&mut world.answers);
    let found = answers.into_values().find_map(|answer| match answer {
        Ok(Answer::Acquired(acquired)) => Some(acquired),
        _ => None,
    });
    let found = found.unwrap();
    assert_eq!(found.miss, Some((2, MissReason::MissCorrupt)));
    assert_eq!(found.blocks.len(), 2);
    assert_eq!(world.shard.status().nvme_blocks, 10);
}

#[test]
fn an_acquire_is_answered_at_its_deadline_with_what_came() {
    let mut world = World::new();
    for run in 1..4 {
        store_run(&mut world, run, 5);
    }
    world.acquire(0, 1, 5);
    world.now += Duration::from_secs(2);
    let effects = world.shard.tick(world.now);
    world.carry_out(effects);
    let Some(Ok(Answer::Acquired(found))) = world.answers.remove(&world.asked) else {
        panic!("not answered")
    };
    assert_eq!((found.blocks.len(), found.miss), (2, Some((2, MissReason::MissDeadline))));
    world.quiesce();
}

#[test]
fn a_durable_seal_is_answered_after_the_device() {
    let mut world = World::new();
    world.reserve(0, 1, 2);
    world.seal(Durability::Nvme, false);
    let ask = world.asked;
    assert!(!world.answers.contains_key(&ask));
    world.finish_io(0, 0);
    assert!(!world.answers.contains_key(&ask));
    world.finish_io(0, 1);
    assert!(matches!(world.answers.remove(&ask), Some(Err(Code::Io))));
}

#[test]
fn another_session_cannot_release_seal_or_abort() {
    let mut world = World::new();
    store_run(&mut world, 1, 2);
    let lease = acquired(&mut world, 1, 2).lease.unwrap();
    world.apply(|_| Event::Release { session: SessionId(1), lease, corrupt: Vec::new() });
    assert_eq!(world.shard.leases.len(), 1);
    world.reserve(0, 2, 4);
    let (_, grant) = *world.reservations.first_key_value().unwrap().0;
    world.apply(|_| Event::Abort { session: SessionId(1), reservation: grant });
    let seal = |reply| Event::Seal {
        session: SessionId(1),
        reservation: grant,
        blocks: Vec::new(),
        durability: Durability::Memory,
        reply,
    };
    let ask = world.apply(seal);
    assert!(matches!(world.answers.remove(&ask), Some(Err(Code::Stale))));
    assert_eq!(world.shard.reservations.len(), 1);
}
