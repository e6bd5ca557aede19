//! What a node does with requests, without a socket: one value, changed by one call at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hearth_proto::code::Code;
use hearth_proto::header::{BlockHeader, Generation, HEADER_BYTES, Location};
use hearth_proto::identity::CacheIdentity;
use hearth_proto::key::{self, BlockKey};
use hearth_proto::tenant::{TenantId, TenantName, TenantSecret};
use hearth_proto::v1;

use super::arena::Arena;
use crate::backend::{Failure, Op, Outcome};
use crate::config::StoreConfig;
use crate::error::Refusal;
use crate::local::{Scope, SessionMemory};

/// The one region of each session.
const REGION: u32 = 0;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) running: bool,
    pub(super) stalled: bool,
    capacity_bytes: usize,
    used_bytes: usize,
    clock: u64,
    arenas: BTreeMap<usize, Arena>,
    tenants: HashMap<TenantName, TenantSecret>,
    sessions: HashMap<u64, Session>,
    blocks: HashMap<Name, Block>,
    writing: BTreeSet<Name>,
    leases: HashMap<u64, Lease>,
    reservations: HashMap<u64, Reservation>,
}

/// A tenant's block: a key is of no use to another tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name {
    tenant: TenantId,
    key: BlockKey,
}

#[derive(Debug)]
struct Session {
    memory: Arc<SessionMemory>,
    scope: Arc<Scope>,
    identity: CacheIdentity,
    holder: String,
    advertised: BTreeSet<BlockKey>,
}

#[derive(Debug)]
struct Block {
    place: SlotPlace,
    generation: Generation,
    parent: Option<Name>,
    leases: usize,
    last_used: u64,
    in_nvme: bool,
    durable: bool,
}

/// A slot of one of the arenas.
#[derive(Clone, Copy, Debug)]
struct SlotPlace {
    payload_bytes: usize,
    offset: usize,
}

#[derive(Debug)]
struct Lease {
    session: u64,
    names: Vec<Name>,
}

#[derive(Debug)]
struct Reservation {
    session: u64,
    slots: BTreeMap<u32, Reserved>,
}

#[derive(Debug)]
struct Reserved {
    name: Name,
    parent: Option<Name>,
    place: SlotPlace,
    generation: Generation,
}

fn refuse(code: Code, message: &str) -> Failure {
    Failure::Node { code, message: message.to_owned() }
}

impl Node {
    pub(super) fn new(capacity_bytes: usize) -> Self {
        Self {
            running: true,
            stalled: false,
            capacity_bytes,
            used_bytes: 0,
            clock: 0,
            arenas: BTreeMap::new(),
            tenants: HashMap::new(),
            sessions: HashMap::new(),
            blocks: HashMap::new(),
            writing: BTreeSet::new(),
            leases: HashMap::new(),
            reservations: HashMap::new(),
        }
    }

    /// Opens a session. The first secret of a tenant is the right one, and the identity of a model's live sessions.
    pub(super) fn hello(
        &mut self,
        config: &StoreConfig,
        scope: &Arc<Scope>,
    ) -> Result<Arc<SessionMemory>, Refusal> {
        static SESSIONS: AtomicU64 = AtomicU64::new(1);
        let secret = self.tenants.entry(config.tenant.clone()).or_insert_with(|| config.secret.clone());
        if *secret != config.secret {
            let tenant = config.tenant.to_string();
            return Err(Refusal::Secret { tenant, message: "the proof is wrong".to_owned() });
        }
        let same_model = |session: &&Session| {
            session.scope.tenant == scope.tenant
                && session.identity.model == config.identity.model
                && session.identity.adapter == config.identity.adapter
        };
        let live = self.sessions.values().find(same_model);
        if let Some(mismatch) = live.and_then(|live| live.identity.mismatch(&config.identity)) {
            return Err(Refusal::Identity(mismatch));
        }
        let region = self
            .arena(scope.payload_bytes)
            .map_err(|error| Refusal::Session { code: Code::Full, message: error.to_string() })?;
        let number = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let memory = Arc::new(SessionMemory::new(number, vec![(REGION, region)]));
        let session = Session {
            memory: Arc::clone(&memory),
            scope: Arc::clone(scope),
            identity: config.identity.clone(),
            holder: config.holder.clone(),
            advertised: BTreeSet::new(),
        };
        self.sessions.insert(number, session);
        Ok(memory)
    }

    fn arena(&mut self, payload_bytes: usize) -> Result<hearth_transfer::Region, hearth_transfer::Error> {
        if let Some(arena) = self.arenas.get(&payload_bytes) {
            return Ok(arena.region().clone());
        }
        let arena = Arena::new(payload_bytes, self.capacity_bytes)?;
        let region = arena.region().clone();
        self.arenas.insert(payload_bytes, arena);
        Ok(region)
    }

    /// Answers one request of a session.
    pub(super) fn answer(&mut self, session: u64, op: Op) -> Result<Outcome, Failure> {
        let tenant = self.sessions.get(&session).ok_or(Failure::StoreDown)?.scope.tenant;
        self.clock += 1;
        let unpack = |keys: &[u8]| {
            let keys = key::unpack(keys);
            let keys = keys.map_err(|error| refuse(Code::InvalidArgument, &error.to_string()))?;
            Ok(keys.into_iter().map(|key| Name { tenant, key }).collect::<Vec<_>>())
        };
        match op {
            Op::Match(op) => Ok(Outcome::Matched(self.match_run(&unpack(&op.keys)?))),
            Op::Acquire(op) => Ok(Outcome::Acquired(self.acquire(session, &unpack(&op.keys)?, &op))),
            Op::Release(op) => {
                self.release(session, op.lease, &unpack(&op.corrupt_keys)?)?;
                Ok(Outcome::Done(v1::Done {}))
            }
            Op::Reserve(op) => Ok(Outcome::Reserved(self.reserve(session, &unpack(&op.keys)?, op.first))),
            Op::Seal(op) => {
                self.seal(session, &op)?;
                Ok(Outcome::Done(v1::Done {}))
            }
            Op::Abort(op) => {
                self.abort(session, op.reservation)?;
                Ok(Outcome::Done(v1::Done {}))
            }
            Op::Hello(_) | Op::Advertise(_) | Op::Withdraw(_) => {
                Err(refuse(Code::OutOfOrder, "the fake takes this by another way"))
            }
        }
    }

    fn match_run(&self, chain: &[Name]) -> v1::Matched {
        let found = chain.iter().map_while(|name| self.blocks.get(name));
        v1::Matched { tiers: found.map(|block| block.tier().into()).collect() }
    }

    fn acquire(&mut self, session: u64, chain: &[Name], op: &v1::Acquire) -> v1::Acquired {
        let first = usize::try_from(op.first).unwrap_or(usize::MAX);
        let count = usize::try_from(op.count).unwrap_or(usize::MAX);
        let mut answer = v1::Acquired::default();
        let mut names = Vec::new();
        for name in chain.iter().skip(first).take(count) {
            let Some(block) = self.blocks.get_mut(name) else {
                answer.miss = v1::MissReason::MissAbsent.into();
                break;
            };
            answer.region.push(REGION);
            answer.offset.push(block.place.offset as u64);
            answer.generation.push(block.generation.0);
            answer.tier.push(block.tier().into());
            block.in_nvme = false;
            block.leases += 1;
            block.last_used = self.clock;
            names.push(*name);
        }
        if !names.is_empty() {
            answer.lease = self.clock;
            self.leases.insert(self.clock, Lease { session, names });
        }
        answer
    }

    fn release(&mut self, session: u64, lease: u64, corrupt: &[Name]) -> Result<(), Failure> {
        let of_session = self.leases.get(&lease).is_some_and(|lease| lease.session == session);
        let Some(lease) = of_session.then(|| self.leases.remove(&lease)).flatten() else {
            return Err(refuse(Code::Stale, "no such lease"));
        };
        for name in &lease.names {
            if let Some(block) = self.blocks.get_mut(name) {
                block.leases -= 1;
            }
        }
        for name in corrupt.iter().filter(|name| lease.names.contains(name)) {
            self.drop_block(name);
        }
        Ok(())
    }

    fn reserve(&mut self, session: u64, chain: &[Name], first: u32) -> v1::Reserved {
        let payload_bytes = self.sessions[&session].scope.payload_bytes;
        let start = usize::try_from(first).unwrap_or(usize::MAX);
        let mut answer = v1::Reserved::default();
        let mut slots = BTreeMap::new();
        for (name, index) in chain.iter().skip(start).zip(first..) {
            if self.blocks.contains_key(name) || self.writing.contains(name) {
                continue;
            }
            let Some(offset) = self.take_slot(payload_bytes) else {
                answer.refused += 1;
                continue;
            };
            self.clock += 1;
            let generation = Generation(self.clock);
            let place = SlotPlace { payload_bytes, offset };
            let at = usize::try_from(index).expect("chains are short");
            let parent = at.checked_sub(1).map(|before| chain[before]);
            answer.index.push(index);
            answer.region.push(REGION);
            answer.offset.push(offset as u64);
            answer.generation.push(generation.0);
            self.writing.insert(*name);
            slots.insert(index, Reserved { name: *name, parent, place, generation });
        }
        if !slots.is_empty() {
            answer.reservation = self.clock;
            self.reservations.insert(self.clock, Reservation { session, slots });
        }
        answer
    }

    /// A slot within the budget, after eviction where needed.
    fn take_slot(&mut self, payload_bytes: usize) -> Option<usize> {
        let bytes = Arena::slot_bytes(payload_bytes);
        while self.used_bytes + bytes > self.capacity_bytes {
            let victim = self.least_recent_leaf()?;
            self.drop_block(&victim);
        }
        let offset = self.arenas.get_mut(&payload_bytes)?.take()?;
        self.used_bytes += bytes;
        Some(offset)
    }

    fn least_recent_leaf(&self) -> Option<Name> {
        let parents: BTreeSet<Name> = self.blocks.values().filter_map(|block| block.parent).collect();
        let free = self.blocks.iter().filter(|(name, block)| block.leases == 0 && !parents.contains(name));
        free.min_by_key(|(_, block)| block.last_used).map(|(name, _)| *name)
    }

    fn seal(&mut self, session: u64, op: &v1::Seal) -> Result<(), Failure> {
        let held = self.reservations.get(&op.reservation).filter(|held| held.session == session);
        let held = held.ok_or_else(|| refuse(Code::Stale, "no such reservation"))?;
        let scope = Arc::clone(&self.sessions[&session].scope);
        let mut headers = BTreeMap::new();
        for sealed in &op.blocks {
            let slot = held.slots.get(&sealed.index);
            let slot = slot.ok_or_else(|| refuse(Code::InvalidArgument, "a block was not granted"))?;
            let ranges = scope.payload_bytes.div_ceil(scope.range_bytes.get());
            if usize::try_from(sealed.range_bytes) != Ok(scope.range_bytes.get())
                || sealed.range_crcs.len() != ranges
            {
                return Err(refuse(Code::InvalidArgument, "the ranges do not cover the block"));
            }
            headers.insert(sealed.index, slot.header(&scope, sealed));
        }
        let durable = op.durability == i32::from(v1::Durability::Nvme);
        let mut held = self.reservations.remove(&op.reservation).expect("found above");
        for (index, header) in headers {
            let slot = held.slots.remove(&index).expect("found above");
            self.arenas[&slot.place.payload_bytes].write(slot.place.offset, &header.encode()[..]);
            self.writing.remove(&slot.name);
            let block = Block {
                place: slot.place,
                generation: slot.generation,
                parent: slot.parent,
                leases: 0,
                last_used: self.clock,
                in_nvme: false,
                durable,
            };
            self.blocks.insert(slot.name, block);
        }
        self.give_up(held);
        Ok(())
    }

    fn abort(&mut self, session: u64, reservation: u64) -> Result<(), Failure> {
        let of_session = self.reservations.get(&reservation).is_some_and(|held| held.session == session);
        let held = of_session.then(|| self.reservations.remove(&reservation)).flatten();
        self.give_up(held.ok_or_else(|| refuse(Code::Stale, "no such reservation"))?);
        Ok(())
    }

    fn give_up(&mut self, reservation: Reservation) {
        for slot in reservation.slots.into_values() {
            self.writing.remove(&slot.name);
            self.free_slot(slot.place);
        }
    }

    fn free_slot(&mut self, place: SlotPlace) {
        let arena = self.arenas.get_mut(&place.payload_bytes).expect("a slot has an arena");
        arena.write(place.offset, &[0; HEADER_BYTES]);
        arena.give_back(place.offset);
        self.used_bytes -= Arena::slot_bytes(place.payload_bytes);
    }

    /// Forgets a block unless it is leased.
    fn drop_block(&mut self, name: &Name) -> bool {
        if self.blocks.get(name).is_none_or(|block| block.leases > 0) {
            return false;
        }
        let block = self.blocks.remove(name).expect("found above");
        self.free_slot(block.place);
        true
    }

    /// The block of whatever tenant: keys of tenants are unrelated.
    fn named(&self, key: &BlockKey) -> Option<Name> {
        self.blocks.keys().find(|name| name.key == *key).copied()
    }

    pub(super) fn evict(&mut self, key: &BlockKey) -> bool {
        self.named(key).is_some_and(|name| self.drop_block(&name))
    }

    pub(super) fn corrupt(&mut self, key: &BlockKey) -> bool {
        let Some(block) = self.named(key).and_then(|name| self.blocks.get(&name)) else { return false };
        let SlotPlace { payload_bytes, offset } = block.place;
        self.arenas[&payload_bytes].flip(offset + HEADER_BYTES + payload_bytes / 2);
        true
    }

    pub(super) fn demote(&mut self, key: &BlockKey) -> bool {
        let named = self.named(key).and_then(|name| self.blocks.get_mut(&name));
        named.map(|block| block.in_nvme = true).is_some()
    }

    pub(super) fn stop(&mut self) {
        self.running = false;
        let sessions: Vec<u64> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.end_session(session);
        }
        let lost: Vec<Name> =
            self.blocks.iter().filter(|(_, block)| !block.durable).map(|(name, _)| *name).collect();
        for name in &lost {
            self.drop_block(name);
        }
        for block in self.blocks.values_mut() {
            block.in_nvme = true;
        }
    }

    pub(super) fn start(&mut self) {
        self.running = true;
    }

    /// Leases, reservations and advertisements of the session are over.
    pub(super) fn end_session(&mut self, session: u64) {
        if let Some(ended) = self.sessions.remove(&session) {
            ended.memory.end();
        }
        let leases: Vec<u64> =
            self.leases.iter().filter(|(_, lease)| lease.session == session).map(|(id, _)| *id).collect();
        for lease in leases {
            self.release(session, lease, &[]).expect("a lease of this session");
        }
        let held: Vec<u64> =
            self.reservations.iter().filter(|(_, held)| held.session == session).map(|(id, _)| *id).collect();
        for reservation in held {
            self.abort(session, reservation).expect("a reservation of this session");
        }
    }

    pub(super) fn advertise(&mut self, session: u64, key: &BlockKey) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.advertised.insert(*key);
        }
    }

    pub(super) fn withdraw(&mut self, session: u64, key: &BlockKey) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.advertised.remove(key);
        }
    }

    pub(super) fn advertised(&self) -> Vec<(String, BlockKey)> {
        let of_session = |session: &Session| {
            let holder = session.holder.clone();
            session.advertised.iter().map(move |key| (holder.clone(), *key)).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.sessions.values().flat_map(of_session).collect();
        all.sort();
        all
    }

    pub(super) fn contains(&self, key: &BlockKey) -> bool {
        self.named(key).is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn leases(&self) -> usize {
        self.leases.len()
    }

    pub(super) fn reservations(&self) -> usize {
        self.reservations.len()
    }
}

impl Block {
    fn tier(&self) -> v1::Tier {
        if self.in_nvme { v1::Tier::Nvme } else { v1::Tier::Pinned }
    }
}

impl Reserved {
    fn header(&self, scope: &Scope, sealed: &v1::SealedBlock) -> BlockHeader {
        BlockHeader {
            key: self.name.key,
            fingerprint: scope.fingerprint,
            tenant: scope.tenant,
            parent: self.parent.map(|parent| parent.key),
            depth: sealed.index,
            generation: self.generation,
            location: Location::MEMORY,
            payload_bytes: scope.payload_bytes as u64,
            range_bytes: sealed.range_bytes,
            range_crcs: sealed.range_crcs.clone(),
        }
    }
}
