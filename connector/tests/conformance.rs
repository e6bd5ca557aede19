//! The fake keeps what a store promises: the suite that real nodes are held to, run against it.

use std::time::{Duration, Instant};

use hearth_connector::conformance::{self, BLOCKS_MIN, Bed, payload_bytes};
use hearth_connector::proto::key::BlockKey;
use hearth_connector::proto::tenant::{TenantName, TenantSecret};
use hearth_connector::{Miss, State, Store, StoreConfig, fake};

struct FakeBed {
    shared: fake::Shared,
}

impl FakeBed {
    fn new() -> Self {
        Self { shared: fake::Shared::new(BLOCKS_MIN * (payload_bytes() + 4096)) }
    }
}

impl Bed for FakeBed {
    fn tenant(&self, number: usize) -> (TenantName, TenantSecret) {
        let name = ["default", "other"][number].parse().expect("a valid name");
        (name, TenantSecret::from_bytes([u8::try_from(number).expect("0 or 1") + 1; 32]))
    }

    fn blocks(&self) -> usize {
        BLOCKS_MIN
    }

    fn open(&self, config: StoreConfig) -> Store {
        Store::fake(&self.shared, config)
    }

    fn restart(&self) -> bool {
        self.shared.stop();
        self.shared.start();
        true
    }

    fn advertised(&self) -> Option<Vec<(String, BlockKey)>> {
        Some(self.shared.advertised())
    }
}

#[test]
fn the_fake_keeps_every_promise() {
    let bed = FakeBed::new();
    conformance::run(&bed);
    assert_eq!((bed.shared.leases(), bed.shared.reservations()), (0, 0), "nothing stays pinned");
}

#[test]
fn a_stalled_fake_runs_calls_into_their_deadline_and_a_stopped_one_misses_at_once() {
    let bed = FakeBed::new();
    let (tenant, secret) = bed.tenant(0);
    let store = bed.open(StoreConfig::new(None, tenant, secret, conformance::identity(), "engine"));
    let chain = [BlockKey([1; 32])];
    let soon = || Instant::now() + Duration::from_secs(20);
    bed.shared.stall(true);
    assert_eq!(
        store.match_run(&chain, Instant::now() + Duration::from_millis(20)).miss,
        Some(Miss::Deadline)
    );
    bed.shared.stall(false);
    assert_eq!(store.match_run(&chain, soon()).miss, Some(Miss::Absent));
    bed.shared.stop();
    assert_eq!(store.match_run(&chain, soon()).miss, Some(Miss::StoreDown));
    assert!(matches!(store.wait_ready(Instant::now()), State::Connecting));
    bed.shared.start();
    assert!(store.wait_ready(soon()).is_connected());
    assert_eq!(store.match_run(&chain, soon()).miss, Some(Miss::Absent));
}

#[test]
fn without_a_store_every_call_is_a_miss() {
    let soon = Instant::now() + Duration::from_secs(20);
    let chain = [BlockKey([1; 32])];
    let (tenant, secret) = FakeBed::new().tenant(0);
    let unconfigured = StoreConfig::new(None, tenant, secret, conformance::identity(), "engine");
    for store in [Store::off(), Store::open(unconfigured)] {
        assert!(matches!(store.wait_ready(soon), State::Off));
        assert_eq!(store.match_run(&chain, soon).miss, Some(Miss::Off));
        assert_eq!(store.acquire(&chain, 0..1, soon).miss, Some(Miss::Off));
        assert_eq!(store.reserve(&chain, 0, soon).miss(), Some(Miss::Off));
        store.advertise(&chain, 0);
        store.withdraw(&chain);
    }
}
