//! The handle that an engine holds, and what its questions answer.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hearth_proto::key::{self, BlockKey};
use hearth_proto::limit::CHAIN_BLOCKS_MAX;
use hearth_proto::v1;

use crate::backend::{Answer, Backend, Failure, Op, Outcome};
use crate::client;
use crate::config::StoreConfig;
use crate::error::{Miss, State, Violation};
use crate::fake;
use crate::grant;
use crate::lease::{Lease, Shared};
use crate::local::Scope;
use crate::metrics::Metrics;
use crate::off::Off;
use crate::reservation::{Reservation, Tally};

/// Leases and reservations that one client may hold at once; at the bound it is answered [`Miss::Busy`]. It bounds
/// what waits to be given back, too.
pub const GRANTS_HELD_MAX: usize = 4096;

/// Where a block was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Pages of an engine.
    Engine,
    /// Memory of the node.
    Pinned,
    /// The node's NVMe.
    Nvme,
}

impl Tier {
    /// Lower-case name for logs and metric labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Pinned => "pinned",
            Self::Nvme => "nvme",
        }
    }

    pub(crate) fn from_wire(tier: i32) -> Result<Self, Violation> {
        match v1::Tier::try_from(tier) {
            Ok(v1::Tier::Engine) => Ok(Self::Engine),
            Ok(v1::Tier::Pinned) => Ok(Self::Pinned),
            Ok(v1::Tier::Nvme) => Ok(Self::Nvme),
            Ok(v1::Tier::Unspecified) | Err(_) => Err(Violation::Tier(tier)),
        }
    }
}

/// How much of a chain the store holds. It grants nothing: a block may be gone the next moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// Where each block of the matched prefix is.
    pub tiers: Vec<Tier>,
    /// Why the prefix ends before the chain does.
    pub miss: Option<Miss>,
}

/// What could be leased of the blocks asked.
#[derive(Debug)]
pub struct Acquired {
    /// A prefix of the blocks asked, if there is any.
    pub lease: Option<Lease>,
    /// Why it ends before the last block asked.
    pub miss: Option<Miss>,
}

/// A client of one store node. Clones share one session, which ends when the last of them is dropped; leases and
/// reservations that still live are void then.
#[derive(Clone, Debug)]
pub struct Store {
    client: Arc<Client>,
}

#[derive(Debug)]
struct Client {
    backend: Arc<dyn Backend>,
    scope: Option<Arc<Scope>>,
    metrics: Metrics,
    held: Arc<AtomicUsize>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.backend.close();
    }
}

impl Store {
    /// No store: every call is answered at once with [`Miss::Off`].
    pub fn off() -> Self {
        Self::of(Arc::new(Off::new()), None, Metrics::default())
    }

    /// The store node of this host. Returns at once and never fails: while there is no session, calls are misses, and
    /// [`state`](Self::state) says why. The connection is made, and made again when it breaks, in the background.
    pub fn open(config: StoreConfig) -> Self {
        let metrics = config.metrics.clone();
        match Scope::new(&config.identity, &config.tenant) {
            Err(refusal) => Self::of(Arc::new(Off::refused(refusal)), None, metrics),
            Ok(_scope) if config.socket.is_none() => Self::of(Arc::new(Off::new()), None, metrics),
            Ok(scope) => {
                let scope = Arc::new(scope);
                match client::Client::start(config, Arc::clone(&scope)) {
                    Ok(client) => Self::of(Arc::new(client), Some(scope), metrics),
                    Err(error) => {
                        tracing::error!(%error, "no thread or descriptor for the store's connection; there is no store");
                        Self::of(Arc::new(Off::new()), None, metrics)
                    }
                }
            }
        }
    }

    /// A store in memory, for tests. The socket in `config` is ignored.
    pub fn fake(shared: &fake::Shared, config: StoreConfig) -> Self {
        let metrics = config.metrics.clone();
        match Scope::new(&config.identity, &config.tenant) {
            Err(refusal) => Self::of(Arc::new(Off::refused(refusal)), None, metrics),
            Ok(scope) => {
                let scope = Arc::new(scope);
                Self::of(Arc::new(fake::Client::new(shared, config, &scope)), Some(scope), metrics)
            }
        }
    }

    fn of(backend: Arc<dyn Backend>, scope: Option<Arc<Scope>>, metrics: Metrics) -> Self {
        Self { client: Arc::new(Client { backend, scope, metrics, held: Arc::default() }) }
    }

    /// Where the client stands with its node.
    pub fn state(&self) -> State {
        self.client.backend.state()
    }

    /// Waits until the client is connected or refused, or the deadline passes. Blocks meanwhile.
    pub fn wait_ready(&self, deadline: Instant) -> State {
        self.client.backend.wait_ready(deadline)
    }

    /// Where this client counts.
    pub fn metrics(&self) -> &Metrics {
        &self.client.metrics
    }

    /// How much of `chain`, from its root on, the store holds. Blocks until answered, to the deadline at most.
    pub fn match_run(&self, chain: &[BlockKey], deadline: Instant) -> Matched {
        let chain = &chain[..chain.len().min(CHAIN_BLOCKS_MAX)];
        if chain.is_empty() {
            return Matched { tiers: Vec::new(), miss: None };
        }
        let none = |miss| Matched { tiers: Vec::new(), miss: Some(miss) };
        let answer = match self.ask(Op::Match(v1::Match { keys: key::pack(chain) }), deadline) {
            Ok(answer) => answer,
            Err(failure) => return none(failure.miss()),
        };
        let tiers = match &answer.outcome {
            Outcome::Matched(matched) => grant::matched(matched, chain.len()),
            _other => Err(Violation::WrongAnswer),
        };
        match tiers {
            Ok(tiers) => {
                let miss = (tiers.len() < chain.len()).then_some(Miss::Absent);
                Matched { tiers, miss }
            }
            Err(violation) => none(self.distrust(&answer, violation)),
        }
    }

    /// Leases the blocks `range` of `chain`, or a prefix of them, for reading. `chain` begins at its root and holds at
    /// least the blocks of the range. Blocks that are only on NVMe are brought into memory first. Blocks until
    /// answered, to the deadline at most; the node then answers with what it has.
    pub fn acquire(&self, chain: &[BlockKey], range: Range<usize>, deadline: Instant) -> Acquired {
        let none = |miss| Acquired { lease: None, miss: Some(miss) };
        if range.start > range.end || range.end > chain.len() {
            return none(Miss::Misuse);
        }
        let range = range.start..range.end.min(CHAIN_BLOCKS_MAX);
        if range.is_empty() {
            return Acquired { lease: None, miss: None };
        }
        let (scope, permit) = match self.permit() {
            Ok(parts) => parts,
            Err(miss) => return none(miss),
        };
        let column = |n: usize| u32::try_from(n).expect("a chain is under 2^32 blocks");
        let keys = key::pack(&chain[..range.end]);
        let acquire = v1::Acquire { keys, first: column(range.start), count: column(range.len()) };
        let answer = match self.ask(Op::Acquire(acquire), deadline) {
            Ok(answer) => answer,
            Err(failure) => return none(failure.miss()),
        };
        let checked = match &answer.outcome {
            Outcome::Acquired(acquired) => {
                grant::acquired(acquired, range.len(), scope.payload_bytes, &answer.memory)
            }
            _other => Err(Violation::WrongAnswer),
        };
        match checked {
            Err(violation) => none(self.distrust(&answer, violation)),
            Ok((None, miss)) => Acquired { lease: None, miss },
            Ok((Some(leased), miss)) => {
                let lease = Lease::new(leased, chain, range.start, self.shared(&answer, scope), permit);
                Acquired { lease: Some(lease), miss }
            }
        }
    }

    /// Reserves slots for the blocks of `chain` from `first` on that the store does not hold and nobody is writing.
    /// `chain` begins at its root. Blocks until answered, to the deadline at most. Any failure grants nothing. Of a
    /// very long chain, the blocks that no single message could seal count as refused.
    pub fn reserve(&self, chain: &[BlockKey], first: usize, deadline: Instant) -> Reservation {
        let asked_at = Instant::now();
        let missed = |miss| Reservation::missed(self.payload_bytes(), miss);
        let (scope, permit) = match self.permit() {
            Ok(parts) => parts,
            Err(miss) => return missed(miss),
        };
        if first >= chain.len().min(CHAIN_BLOCKS_MAX) {
            return missed(Miss::Misuse);
        }
        let range = first..chain.len().min(CHAIN_BLOCKS_MAX).min(first + scope.reserve_blocks_max());
        let first_column = u32::try_from(first).expect("a chain is under 2^32 blocks");
        let reserve = v1::Reserve { keys: key::pack(&chain[..range.end]), first: first_column };
        let answer = match self.ask(Op::Reserve(reserve), deadline) {
            Ok(answer) => answer,
            Err(failure) => return missed(failure.miss()),
        };
        let Outcome::Reserved(reserved) = &answer.outcome else {
            return missed(self.distrust(&answer, Violation::WrongAnswer));
        };
        match grant::reserved(reserved, &range, scope.payload_bytes, &answer.memory) {
            Err(violation) => missed(self.distrust(&answer, violation)),
            Ok(granted) => {
                let refused = usize::try_from(reserved.refused).expect("checked against what was asked");
                let refused = refused + (chain.len() - range.end);
                let tally = Tally { asked: chain.len() - first, refused, asked_at };
                Reservation::new(granted, tally, self.shared(&answer, scope), permit)
            }
        }
    }

    /// Tells the node that the engine's own pages hold the blocks `first..` of `chain`, which begins at its root. The
    /// node publishes it for routers. Soft state: it is told again after a reconnect, and forgotten when this client
    /// is gone. Never blocks; what is over [`ADVERTISED_BLOCKS_MAX`](hearth_proto::limit::ADVERTISED_BLOCKS_MAX) is
    /// not told.
    pub fn advertise(&self, chain: &[BlockKey], first: usize) {
        self.client.backend.advertise(&chain[..chain.len().min(CHAIN_BLOCKS_MAX)], first);
    }

    /// Tells the node that the engine's own pages no longer hold these blocks. Never blocks.
    pub fn withdraw(&self, keys: &[BlockKey]) {
        self.client.backend.withdraw(keys);
    }

    /// Bytes of one block; 0 without a store.
    pub fn payload_bytes(&self) -> usize {
        self.client.scope.as_ref().map_or(0, |scope| scope.payload_bytes)
    }

    fn ask(&self, op: Op, deadline: Instant) -> Result<Answer, Failure> {
        self.client.backend.call(op, None, deadline)
    }

    fn distrust(&self, answer: &Answer, violation: Violation) -> Miss {
        self.client.backend.distrust(&answer.memory, violation);
        Miss::StoreDown
    }

    fn shared(&self, answer: &Answer, scope: Arc<Scope>) -> Shared {
        Shared {
            backend: Arc::clone(&self.client.backend),
            memory: Arc::clone(&answer.memory),
            scope,
            metrics: self.client.metrics.clone(),
        }
    }

    /// The right to hold one more grant.
    fn permit(&self) -> Result<(Arc<Scope>, Permit), Miss> {
        let Some(scope) = &self.client.scope else {
            return Err(match self.state() {
                State::Refused(_) => Miss::Refused,
                _ => Miss::Off,
            });
        };
        let permit = Permit::take(&self.client.held).ok_or(Miss::Busy)?;
        Ok((Arc::clone(scope), permit))
    }
}

/// One of the grants that a client may hold; given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    held: Arc<AtomicUsize>,
}

impl Permit {
    fn take(held: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |count: usize| (count < GRANTS_HELD_MAX).then_some(count + 1);
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { held: Arc::clone(held) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let before = self.held.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a permit is given back once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_and_guards_cross_threads() {
        fn crosses<T: Send + Sync>() {}
        crosses::<Store>();
        crosses::<Lease>();
        crosses::<Reservation>();
    }

    #[test]
    fn permits_are_bounded_and_given_back() {
        let held = Arc::new(AtomicUsize::new(0));
        let mut permits: Vec<Permit> = std::iter::from_fn(|| Permit::take(&held)).collect();
        assert_eq!(permits.len(), GRANTS_HELD_MAX);
        permits.pop();
        assert!(Permit::take(&held).is_some());
        drop(permits);
        assert_eq!(held.load(Ordering::Relaxed), 0);
    }
}
