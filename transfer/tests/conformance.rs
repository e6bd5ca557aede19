//! What every transport promises, run against each that this machine offers: one owner of memory, one
//! poster, and a way to end the owner as a crash would. Time is a value that the tests move.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hearth_transfer::transport::{loopback, shm};
use hearth_transfer::{
    Access, Batch, Completion, Error, Event, Export, Generation, Op, PeerAddress, PeerId, Region,
    RegionTicket, RemoteRegion, Transport,
};

const REGION_BYTES: usize = 256 * 1024;
const FAR: Duration = Duration::from_secs(60);

/// A poster with one open peer.
struct Pair {
    poster: Box<dyn Transport>,
    owner: Box<dyn Transport>,
    peer: PeerId,
    kill: Box<dyn FnOnce()>,
    now: Instant,
}

fn loopback_pair() -> Pair {
    let fabric = loopback::Fabric::default();
    let owner = fabric.join(b"owner", loopback::Faults::default());
    let faults = loopback::Faults { delay: Duration::from_millis(3), ..Default::default() };
    let mut poster = fabric.join(b"poster", faults);
    let peer = poster.open_peer(PeerAddress::Named(b"owner".to_vec())).expect("the owner is there");
    let kill = Box::new(move || fabric.kill(b"owner"));
    Pair { poster: Box::new(poster), owner: Box::new(owner), peer, kill, now: Instant::now() }
}

fn shm_pair() -> Pair {
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    let mut poster = shm::Shm::new();
    let peer = poster.open_peer(PeerAddress::Link(OwnedFd::from(ours))).expect("a socket is an address");
    let kill = Box::new(move || drop(theirs));
    Pair { poster: Box::new(poster), owner: Box::new(shm::Shm::new()), peer, kill, now: Instant::now() }
}

impl Pair {
    fn offer(&mut self, access: Access) -> (Region, RemoteRegion) {
        let region = Region::shared("conformance", REGION_BYTES).expect("memory");
        let export = self.owner.register(&region, access).expect("registers");
        let remote = self.poster.import(self.peer, export, access).expect("imports");
        (region, remote)
    }

    /// Imports what `forge` makes of an honest ticket.
    fn forged(&mut self, forge: impl FnOnce(&mut RegionTicket)) -> Result<RemoteRegion, Error> {
        let region = Region::shared("forged", REGION_BYTES).expect("memory");
        let Export { mut ticket, fd } = self.owner.register(&region, Access::ReadWrite).expect("registers");
        forge(&mut ticket);
        self.poster.import(self.peer, Export { ticket, fd }, Access::ReadWrite)
    }

    fn batch(&self, ops: Vec<Op>) -> Batch {
        Batch { peer: self.peer, ops, deadline: self.now + FAR, tag: 77 }
    }

    fn run(&mut self, ops: Vec<Op>) -> Completion {
        let batch = self.batch(ops);
        let id = self.poster.post(batch, self.now).expect("posts");
        let completion = self.completion();
        assert_eq!((completion.batch, completion.tag, completion.peer), (id, 77, self.peer));
        completion
    }

    /// Reaps, moving time on, until something completes.
    fn completion(&mut self) -> Completion {
        for _ in 0..1000 {
            let mut events = Vec::new();
            self.poster.reap(self.now, &mut events);
            for event in events {
                if let Event::Completed(completion) = event {
                    return completion;
                }
            }
            self.now += Duration::from_millis(1);
        }
        panic!("nothing completed within a second");
    }

    /// The error of reading the first bytes of `remote`, at import or at the operation.
    fn error_of_reading(&mut self, remote: Result<RemoteRegion, Error>, at: u64) -> Error {
        let remote = match remote {
            Ok(remote) => remote,
            Err(error) => return error,
        };
        let from = remote.slice(at..at + 16).expect("inside what the ticket states");
        let read = Op::read(from, local(16)).expect("lengths agree");
        let mut completion = self.run(vec![read]);
        completion.ops.remove(0).result.expect_err("refused")
    }
}

fn local(bytes: usize) -> hearth_transfer::RegionSlice {
    Region::heap(bytes).expect("memory").slice(..bytes).expect("inside")
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn round_trips_at_odd_offsets_and_sizes(mut pair: Pair) {
    let (_region, remote) = pair.offer(Access::ReadWrite);
    for (at, bytes) in
        [(0, 1), (1, 63), (63, 65), (4095, 2), (777, 4096), (12_345, 70_001), (0, REGION_BYTES)]
    {
        let there = remote.slice(at..at + bytes as u64).expect("inside");
        let sent = pattern(bytes);
        let source = local(bytes);
        source.copy_from(&sent).expect("same length");
        let write = Op::write(source, there.clone()).expect("lengths agree");
        assert!(pair.run(vec![write]).ops[0].result.is_ok());
        let read = Op::read(there, local(bytes)).expect("lengths agree");
        let done = pair.run(vec![read]);
        assert!(done.ops[0].result.is_ok());
        assert_eq!(done.ops[0].op.local()[0].to_vec(), sent, "{bytes} bytes at {at}");
    }
}

fn scatters_and_gathers(mut pair: Pair) {
    let (region, remote) = pair.offer(Access::ReadWrite);
    let sent = pattern(1000);
    let (head, tail) = (local(300), local(700));
    head.copy_from(&sent[..300]).expect("same length");
    tail.copy_from(&sent[300..]).expect("same length");
    let there = remote.slice(50..1050).expect("inside");
    let write = Op::write_gathered(vec![head, tail], there.clone()).expect("lengths agree");
    assert!(pair.run(vec![write]).ops[0].result.is_ok());
    assert_eq!(region.slice(50..1050).expect("inside").to_vec(), sent);
    let read = Op::read_scattered(there, vec![local(1), local(999)]).expect("lengths agree");
    let done = pair.run(vec![read]);
    let pieces: Vec<u8> = done.ops[0].op.local().iter().flat_map(|piece| piece.to_vec()).collect();
    assert_eq!(pieces, sent);
}

fn one_bad_operation_fails_alone(mut pair: Pair) {
    let (region, remote) = pair.offer(Access::ReadWrite);
    region.whole().fill(9).expect("writable");
    // A ticket for memory that the owner has taken back, or never had at this transport.
    let other = Region::heap(4096).expect("memory");
    let lost = RegionTicket { id: other.id(), ..other.ticket() };
    let bad = match pair.poster.import(pair.peer, Export { ticket: lost, fd: None }, Access::ReadWrite) {
        Ok(bad) => bad,
        // Where importing it is refused already, one of another transport stands for it.
        Err(_refused) => foreign(),
    };
    let good = || Op::read(remote.slice(..32).expect("inside"), local(32)).expect("lengths agree");
    let bad = Op::read(bad.slice(..32).expect("inside"), local(32)).expect("lengths agree");
    let done = pair.run(vec![good(), bad, good()]);
    assert_eq!(done.ops[0].op.local()[0].to_vec(), [9; 32]);
    assert_eq!(done.ops[2].op.local()[0].to_vec(), [9; 32]);
    let results: Vec<bool> = done.ops.iter().map(|op| op.result.is_ok()).collect();
    assert_eq!(results, [true, false, true]);
    assert!(matches!(done.ops[1].result, Err(Error::UnknownRegion { .. })));
}

/// A region imported through another transport, from a peer with the same number.
fn foreign() -> RemoteRegion {
    let mut pair = loopback_pair();
    pair.offer(Access::ReadWrite).1
}

fn out_of_bounds_is_refused(mut pair: Pair) {
    let (_region, remote) = pair.offer(Access::Read);
    let end = REGION_BYTES as u64;
    assert!(matches!(remote.slice(end - 1..end + 1), Err(Error::OutOfBounds { .. })));
    assert!(matches!(remote.slice(u64::MAX..), Err(Error::OutOfBounds { .. })));
    for bytes in [end + 4096, 1 << 45] {
        let remote = pair.forged(|ticket| ticket.bytes = bytes);
        let error = pair.error_of_reading(remote, end);
        assert!(matches!(error, Error::OutOfBounds { .. } | Error::SizeMismatch { .. }), "{error}");
    }
}

fn another_generation_is_refused(mut pair: Pair) {
    let remote = pair.forged(|ticket| ticket.generation = Generation(ticket.generation.0 ^ 1));
    let error = pair.error_of_reading(remote, 0);
    assert!(matches!(error, Error::WrongGeneration { .. }), "{error}");
}

fn a_reading_grant_takes_no_write(mut pair: Pair) {
    let (_region, remote) = pair.offer(Access::Read);
    let there = remote.slice(..16).expect("inside");
    assert!(matches!(Op::write(local(16), there), Err(Error::ReadOnly)));
    // Importing for more than was granted is refused there or at the first write.
    let region = Region::shared("granted", REGION_BYTES).expect("memory");
    let export = pair.owner.register(&region, Access::Read).expect("registers");
    if let Ok(remote) = pair.poster.import(pair.peer, export, Access::ReadWrite) {
        let write = Op::write(local(16), remote.slice(..16).expect("inside")).expect("lengths agree");
        assert!(matches!(pair.run(vec![write]).ops[0].result, Err(Error::ReadOnly)));
    }
}

fn a_passed_deadline_moves_nothing_and_returns_the_buffers(mut pair: Pair) {
    let (region, remote) = pair.offer(Access::ReadWrite);
    region.whole().fill(9).expect("writable");
    let buffer = local(64);
    let read = Op::read(remote.slice(..64).expect("inside"), buffer.clone()).expect("lengths agree");
    let batch = Batch { deadline: pair.now, ..pair.batch(vec![read]) };
    pair.poster.post(batch, pair.now).expect("posts");
    let done = pair.completion();
    assert!(matches!(done.ops[0].result, Err(Error::Expired)));
    assert_eq!(done.ops[0].op.local()[0].raw().ptr, buffer.raw().ptr);
    assert_eq!(buffer.to_vec(), [0; 64]);
}

fn the_bound_in_flight_gives_the_batch_back(mut pair: Pair) {
    let (_region, remote) = pair.offer(Access::ReadWrite);
    let max = pair.poster.caps().inflight_ops_max as usize;
    let read = || Op::read(remote.slice(..8).expect("inside"), local(8)).expect("lengths agree");
    let reads = |count| (0..count).map(|_| read()).collect::<Vec<_>>();
    let refused = pair.poster.post(pair.batch(reads(max + 1)), pair.now).expect_err("too many at once");
    assert!(matches!(refused.error, Error::BatchTooLarge { .. }));
    let refused = pair.poster.post(pair.batch(Vec::new()), pair.now).expect_err("nothing to do");
    assert!(matches!(refused.error, Error::EmptyBatch));
    pair.poster.post(pair.batch(reads(max - 1)), pair.now).expect("within the bound");
    let refused = pair.poster.post(pair.batch(reads(2)), pair.now).expect_err("over the bound");
    assert!(matches!(refused.error, Error::Busy { .. }));
    assert_eq!(refused.batch.ops.len(), 2);
    assert_eq!(pair.completion().ops.len(), max - 1);
    pair.poster.post(refused.batch, pair.now).expect("credit is back");
    assert_eq!(pair.completion().ops.len(), 2);
}

fn a_dead_peer_completes_everything(mut pair: Pair) {
    let (_region, remote) = pair.offer(Access::ReadWrite);
    let read = || Op::read(remote.slice(..8).expect("inside"), local(8)).expect("lengths agree");
    let posted = [vec![read()], vec![read(), read()]].map(|ops| pair.batch(ops));
    for batch in posted {
        pair.poster.post(batch, pair.now).expect("posts");
    }
    std::mem::replace(&mut pair.kill, Box::new(|| ()))();
    let refused = pair.poster.post(pair.batch(vec![read()]), pair.now).expect_err("the peer is gone");
    assert!(matches!(refused.error, Error::PeerGone { .. }));
    let (mut ops, mut gone) = (0, 0);
    for _ in 0..20 {
        let mut events = Vec::new();
        pair.poster.reap(pair.now, &mut events);
        for event in events {
            match event {
                Event::Completed(done) => {
                    ops += done.ops.len();
                    // What had landed before stays landed.
                    let fine = |done: &hearth_transfer::OpDone| {
                        matches!(done.result, Ok(_) | Err(Error::PeerGone { .. }))
                    };
                    assert!(done.ops.iter().all(fine));
                }
                Event::PeerGone(peer) => {
                    assert_eq!(peer, pair.peer);
                    gone += 1;
                }
                Event::Expired { .. } => panic!("the deadline is far"),
            }
        }
        pair.now += Duration::from_millis(1);
    }
    assert_eq!((ops, gone), (3, 1));
}

fn a_closed_peer_completes_everything(mut pair: Pair) {
    let (_region, remote) = pair.offer(Access::ReadWrite);
    let read = || Op::read(remote.slice(..8).expect("inside"), local(8)).expect("lengths agree");
    pair.poster.post(pair.batch(vec![read()]), pair.now).expect("posts");
    pair.poster.close(pair.peer);
    assert_eq!(pair.completion().ops.len(), 1);
    let refused = pair.poster.post(pair.batch(vec![read()]), pair.now).expect_err("the peer is closed");
    assert!(matches!(refused.error, Error::UnknownPeer { .. }));
}

fn digests_are_those_of_crc32(mut pair: Pair) {
    let (region, remote) = pair.offer(Access::ReadWrite);
    let bytes = pattern(REGION_BYTES);
    region.whole().copy_from(&bytes).expect("same length");
    for (at, len, range) in [(0, REGION_BYTES, 65_536), (3, 100_001, 4096), (9, 5, 100)] {
        let range = NonZeroUsize::new(range).expect("positive");
        let expected: Vec<u32> = bytes[at..at + len].chunks(range.get()).map(crc32fast::hash).collect();
        let there = remote.slice(at as u64..(at + len) as u64).expect("inside");
        let read = Op::read(there.clone(), local(len)).expect("lengths agree").digested(range);
        let done = pair.run(vec![read]);
        assert_eq!(done.ops[0].result.as_ref().expect("reads"), &expected);
        let back = done.ops[0].op.local()[0].clone();
        let write = Op::write(back, there).expect("lengths agree").digested(range);
        let done = pair.run(vec![write]);
        assert_eq!(done.ops[0].result.as_ref().expect("writes"), &expected);
    }
}

fn buffers_outlive_their_regions(mut pair: Pair) {
    let (region, remote) = pair.offer(Access::ReadWrite);
    region.whole().fill(5).expect("writable");
    let read = Op::read(remote.slice(..4096).expect("inside"), local(4096)).expect("lengths agree");
    drop((region, remote));
    let done = pair.run(vec![read]);
    assert!(done.ops[0].result.is_ok());
    assert_eq!(done.ops[0].op.local()[0].to_vec(), [5; 4096]);
}

fn direct_memory_is_the_owners(mut pair: Pair) {
    let (region, remote) = pair.offer(Access::ReadWrite);
    assert_eq!(remote.direct().is_some(), pair.poster.caps().direct);
    if let Some(direct) = remote.direct() {
        region.slice(100..105).expect("inside").copy_from(b"bytes").expect("writable");
        assert_eq!(direct.slice(100..105).expect("inside").to_vec(), b"bytes");
    }
}

fn addresses_of_others_are_refused(mut pair: Pair) {
    let nobody = pair.poster.open_peer(PeerAddress::Named(b"nobody".to_vec()));
    assert!(matches!(nobody, Err(Error::WrongAddress { .. } | Error::Unreachable)));
}

macro_rules! conformance {
    ($transport:ident, $pair:ident, $($case:ident),+ $(,)?) => {
        mod $transport {
            $(
                #[test]
                fn $case() {
                    super::$case(super::$pair());
                }
            )+
        }
    };
}

macro_rules! every_case {
    ($transport:ident, $pair:ident) => {
        conformance!(
            $transport,
            $pair,
            round_trips_at_odd_offsets_and_sizes,
            scatters_and_gathers,
            one_bad_operation_fails_alone,
            out_of_bounds_is_refused,
            another_generation_is_refused,
            a_reading_grant_takes_no_write,
            a_passed_deadline_moves_nothing_and_returns_the_buffers,
            the_bound_in_flight_gives_the_batch_back,
            a_dead_peer_completes_everything,
            a_closed_peer_completes_everything,
            digests_are_those_of_crc32,
            buffers_outlive_their_regions,
            direct_memory_is_the_owners,
            addresses_of_others_are_refused,
        );
    };
}

every_case!(on_loopback, loopback_pair);
every_case!(on_shm, shm_pair);
