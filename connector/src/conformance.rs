//! What every store promises through this API: one suite, run against the fake and against real nodes.
//!
//! It panics where a promise is broken. Each case uses blocks of its own, so cases may run one after another on one
//! node.

use std::time::{Duration, Instant};

use hearth_proto::identity::{AttentionGroup, CacheIdentity, LAYOUT_CANONICAL};
use hearth_proto::key::{BlockKey, KeyChain};
use hearth_proto::layout::BlockLayout;
use hearth_proto::tenant::{TenantName, TenantSecret};
use hearth_proto::version::BLOCK_FORMAT;

use crate::{Durability, Lease, Store, StoreConfig};

mod cases;

/// Blocks of one run that the node under test has to hold in memory for each tenant.
pub const BLOCKS_MIN: usize = 128;

/// Time that any step may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node under test.
pub trait Bed: Sync {
    /// Name and secret of tenant 0 or 1, which the node knows.
    fn tenant(&self, number: usize) -> (TenantName, TenantSecret);

    /// Blocks of [`payload_bytes`] bytes that the node can hold in memory for a tenant, or somewhat more than that.
    fn blocks(&self) -> usize;

    /// A client of the node. The configuration names no socket; the bed knows it.
    fn open(&self, config: StoreConfig) -> Store;

    /// Kills the node without warning and starts it again on the same disk; returns when it serves. False where
    /// that cannot be done.
    fn restart(&self) -> bool;

    /// What the node's feed says that engines hold, as holder and key, sorted; `None` where that cannot be seen.
    fn advertised(&self) -> Option<Vec<(String, BlockKey)>>;
}

/// Runs every case.
pub fn run(bed: &dyn Bed) {
    for (name, case) in cases::ALL {
        tracing::info!(case = name, "conformance");
        case(bed);
    }
}

/// The identity of the suite's blocks: four layers of 16 KiB.
pub fn identity() -> CacheIdentity {
    CacheIdentity {
        model: "conformance".into(),
        revision: "r1".into(),
        tokenizer: "t1".into(),
        compute_dtype: "f32".into(),
        kv_dtype: "f32".into(),
        kv_scale: "none".into(),
        groups: vec![AttentionGroup { kind: "full".into(), layers: 4, kv_heads: 2, head_dim: 64 }],
        block_tokens: 16,
        rope: "theta=10000;scaling=none".into(),
        adapter: String::new(),
        adapter_revision: String::new(),
        layout: LAYOUT_CANONICAL.into(),
        format: BLOCK_FORMAT,
    }
}

/// Bytes of one block of the suite.
pub fn payload_bytes() -> usize {
    BlockLayout::new(&identity()).expect("the suite's identity is valid").payload_bytes()
}

/// Bytes that belong to a key, so that a block under a wrong key is noticed.
pub fn payload(key: &BlockKey) -> Vec<u8> {
    let mut state = key.prefix() | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(payload_bytes() / 8).flatten().collect()
}

/// Now and some time.
pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// One client of the bed and its chains.
struct Guest {
    store: Store,
    chain: KeyChain,
}

impl Guest {
    fn new(bed: &dyn Bed, tenant: usize, holder: &str) -> Self {
        let (name, secret) = bed.tenant(tenant);
        let chain = KeyChain::new(&secret, &identity());
        let store = bed.open(StoreConfig::new(None, name, secret, identity(), holder));
        let state = store.wait_ready(soon());
        assert!(state.is_connected(), "the client is {state}");
        Self { store, chain }
    }

    /// The keys of a prompt of `blocks` blocks that no other case uses.
    fn keys(&self, case: &str, blocks: usize) -> Vec<BlockKey> {
        let tokens = u32::try_from(blocks * self.chain.block_tokens()).expect("short");
        self.chain.keys(case.as_bytes(), &(0..tokens).collect::<Vec<_>>())
    }

    /// Stores blocks `first..` of a chain.
    fn put(&self, chain: &[BlockKey], first: usize, durability: Durability) {
        let reservation = self.store.reserve(chain, first, soon());
        assert_eq!(reservation.miss(), None);
        let expected: Vec<usize> = (first..chain.len()).collect();
        assert_eq!(reservation.granted(), expected);
        for &index in reservation.granted() {
            reservation.write(index, &payload(&chain[index])).expect("granted");
        }
        let sealed = reservation.seal(durability, soon()).expect("the node takes it");
        assert_eq!(sealed.blocks, expected.len());
    }

    fn lease(&self, chain: &[BlockKey]) -> Lease {
        let acquired = self.store.acquire(chain, 0..chain.len(), soon());
        assert_eq!(acquired.miss, None, "all blocks are there");
        acquired.lease.expect("all blocks are there")
    }

    /// How many blocks of the chain are found.
    fn found(&self, chain: &[BlockKey]) -> usize {
        self.store.match_run(chain, soon()).tiers.len()
    }
}

/// Reads block `i` and compares it with what belongs to its key.
fn assert_right(lease: &Lease, i: usize) {
    let mut page = vec![0; lease.payload_bytes()];
    lease.read(i, &mut page).expect("the block is leased");
    assert!(page == payload(&lease.keys()[i]), "block {i} has the bytes of its key");
}

/// Waits for what the node does in its own time.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = soon();
    while !holds() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
