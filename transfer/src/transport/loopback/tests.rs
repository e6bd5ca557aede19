//! The fault model does what it says, and the rules of [`Transport`] hold under it.

use proptest::prelude::*;

use super::*;
use crate::op::Completion;

const MS: Duration = Duration::from_millis(1);

struct World {
    // Its memory is offered as long as it lives.
    owner: Loopback,
    poster: Loopback,
    region: Region,
    remote: RemoteRegion,
    peer: PeerId,
    start: Instant,
}

fn world(faults: Faults) -> World {
    let fabric = Fabric::default();
    let mut owner = fabric.join(b"owner", Faults::default());
    let mut poster = fabric.join(b"poster", faults);
    let peer = poster.open_peer(PeerAddress::Named(b"owner".to_vec())).expect("the owner is there");
    let region = Region::heap(4096).expect("memory");
    region.whole().fill(8).expect("writable");
    let export = owner.register(&region, Access::ReadWrite).expect("registers");
    let remote = poster.import(peer, export, Access::ReadWrite).expect("imports");
    World { owner, poster, region, remote, peer, start: Instant::now() }
}

impl World {
    fn read(&self) -> Op {
        let into = Region::heap(16).expect("memory").slice(..16).expect("inside");
        let whole = std::num::NonZeroUsize::new(16).expect("positive");
        Op::read(self.remote.slice(..16).expect("inside"), into).expect("lengths agree").digested(whole)
    }

    fn post(&mut self, ops: Vec<Op>, tag: u64, deadline: Duration) {
        let batch = Batch { peer: self.peer, ops, deadline: self.start + deadline, tag };
        self.poster.post(batch, self.start).expect("posts");
    }

    fn reap(&mut self, at: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        self.poster.reap(self.start + at, &mut events);
        events
    }
}

fn completed(event: &Event) -> &Completion {
    match event {
        Event::Completed(completion) => completion,
        other => panic!("expected a completion, got {other:?}"),
    }
}

#[test]
fn an_expired_batch_keeps_its_buffers_until_it_is_at_rest() {
    let mut world = world(Faults { delay: 10 * MS, ..Default::default() });
    let read = world.read();
    let buffer = read.local()[0].clone();
    world.post(vec![read], 1, 4 * MS);
    assert!(world.reap(3 * MS).is_empty());
    assert!(matches!(world.reap(4 * MS)[..], [Event::Expired { tag: 1, .. }]));
    assert!(world.reap(9 * MS).is_empty(), "told once, and the buffer is not back");
    let events = world.reap(10 * MS);
    assert!(matches!(completed(&events[0]).ops[0].result, Err(Error::Expired)));
    assert_eq!(buffer.to_vec(), [8; 16], "the bytes did land, which is why the buffer had to wait");
}

#[test]
fn a_lost_completion_holds_its_buffers_and_credit_until_the_peer_is_closed() {
    let mut world = world(Faults { lose: BTreeSet::from([1]), ..Default::default() });
    let ops = vec![world.read(), world.read()];
    world.post(ops, 1, 5 * MS);
    assert!(matches!(world.reap(5 * MS)[..], [Event::Expired { .. }]));
    assert!(world.reap(1000 * MS).is_empty());
    world.poster.close(world.peer);
    let events = world.reap(1001 * MS);
    let done = completed(&events[0]);
    assert!(done.ops[0].result.is_ok(), "it had landed in time");
    assert!(matches!(done.ops[1].result, Err(Error::PeerGone { .. })));
}

#[test]
fn a_failed_operation_moves_nothing_and_a_corrupt_one_shows_in_its_digest() {
    let faults = Faults { fail: BTreeSet::from([0]), corrupt: BTreeSet::from([1]), ..Default::default() };
    let mut world = world(faults);
    let ops = vec![world.read(), world.read(), world.read()];
    world.post(ops, 1, 5 * MS);
    let events = world.reap(MS);
    let done = completed(&events[0]);
    assert!(matches!(done.ops[0].result, Err(Error::Failed { .. })));
    assert_eq!(done.ops[0].op.local()[0].to_vec(), [0; 16]);
    let honest = crc32fast::hash(&[8; 16]);
    let digest = |index: usize| done.ops[index].result.as_ref().expect("it landed")[0];
    assert_ne!(digest(1), honest);
    assert_eq!(digest(1), crc32fast::hash(&done.ops[1].op.local()[0].to_vec()));
    assert_eq!(digest(2), honest);
    assert_eq!(world.region.slice(..16).expect("inside").to_vec(), [8; 16], "the source is untouched");
}

#[test]
fn what_is_withdrawn_is_refused() {
    let mut world = world(Faults::default());
    world.owner.deregister(world.region.id());
    let read = world.read();
    world.post(vec![read], 1, 5 * MS);
    let events = world.reap(MS);
    assert!(matches!(completed(&events[0]).ops[0].result, Err(Error::UnknownRegion { .. })));
}

proptest! {
    /// Whatever goes wrong, each batch completes once, with all its operations, and is told late once.
    #[test]
    fn every_batch_completes_once(
        seed: u64,
        delay_ms in 0_u32..8,
        reorder: bool,
        fail in prop::collection::btree_set(0_u64..30, 0..5),
        lose in prop::collection::btree_set(0_u64..30, 0..3),
        sizes in prop::collection::vec((1_usize..5, 1_u32..12), 1..8),
        kill_at_ms in prop::option::of(0_u32..20),
    ) {
        let faults = Faults { seed, delay: MS * delay_ms, reorder, fail, lose, corrupt: BTreeSet::new() };
        let mut world = world(faults);
        for (tag, (ops, deadline_ms)) in sizes.iter().enumerate() {
            let ops = (0..*ops).map(|_| world.read()).collect();
            world.post(ops, tag as u64, MS * *deadline_ms);
        }
        let mut events = Vec::new();
        for ms in 0..30 {
            if kill_at_ms == Some(ms) {
                world.poster.fabric.kill(b"owner");
            }
            events.extend(world.reap(MS * ms));
        }
        world.poster.close(world.peer);
        events.extend(world.reap(MS * 30));
        let mut completions = vec![0; sizes.len()];
        let mut notices = vec![0; sizes.len()];
        for event in &events {
            match event {
                Event::Completed(done) => {
                    completions[done.tag as usize] += 1;
                    prop_assert_eq!(done.ops.len(), sizes[done.tag as usize].0);
                }
                Event::Expired { tag, .. } => {
                    prop_assert_eq!(completions[*tag as usize], 0, "told late after it completed");
                    notices[*tag as usize] += 1;
                }
                Event::PeerGone(_) => prop_assert!(kill_at_ms.is_some()),
            }
        }
        prop_assert!(completions.iter().all(|&count| count == 1), "{:?}", completions);
        prop_assert!(notices.iter().all(|&count| count <= 1), "{:?}", notices);
    }
}
