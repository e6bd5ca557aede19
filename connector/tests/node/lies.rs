//! A node that breaks the protocol: the client hangs up, misses, and opens another session.

use std::os::fd::OwnedFd;

use hearth_connector::proto::v1::{self, reply};
use hearth_connector::{Miss, Store};
use hearth_transfer::Region;

use crate::support::{Conn, NO_REGION, Node, chain, fd_of, named, slot_bytes, soon};

/// Opens a session, has the client call, and lets the node answer badly.
fn lie(name: &str, call: impl FnOnce(&Store) -> Option<Miss> + Send, answer: impl FnOnce(&Node, &mut Conn)) {
    let node = Node::new();
    let (store, mut conn) = node.session();
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| call(&store));
        answer(&node, &mut conn);
        assert_eq!(caller.join().expect("no panic"), Some(Miss::StoreDown), "{name}");
        conn.hung_up();
    });
    let _conn = node.accept();
    assert!(store.wait_ready(soon()).is_connected(), "{name}");
}

fn acquire(store: &Store) -> Option<Miss> {
    store.acquire(&chain(2), 0..2, soon()).miss
}

fn reserve(store: &Store) -> Option<Miss> {
    store.reserve(&chain(2), 0, soon()).miss()
}

#[test]
fn bytes_that_are_no_frame() {
    let headers: [(&str, &[u8]); 5] = [
        ("garbage", b"GET / HTTP/1.1\r\n\r\n"),
        ("4 GiB", &[b'H', b'F', 0, 0, 0xff, 0xff, 0xff, 0xff]),
        ("17 descriptors", &[b'H', b'F', 17, 0, 1, 0, 0, 0]),
        ("descriptors that do not come", &[b'H', b'F', 1, 0, 0, 0, 0, 0]),
        ("no message", &[b'H', b'F', 0, 0, 3, 0, 0, 0, 0xff, 0xff, 0xff]),
    ];
    for (name, bytes) in headers {
        lie(name, acquire, |_, conn| {
            conn.next();
            conn.send_bytes(bytes);
        });
    }
}

#[test]
fn answers_to_nothing_and_of_another_kind() {
    lie("another id", acquire, |node, conn| {
        let (id, _) = conn.next();
        conn.reply(id + 1000, reply::Result::Acquired(node.acquired(1, 1, 1)));
    });
    lie("Done to another id", acquire, |_, conn| {
        let (id, _) = conn.next();
        conn.reply(id + 1, reply::Result::Done(v1::Done {}));
    });
    lie("another kind", acquire, |_, conn| {
        let (id, _) = conn.next();
        conn.reply(id, reply::Result::Done(v1::Done {}));
    });
    lie("welcome again", acquire, |node, conn| {
        let (id, _) = conn.next();
        conn.reply(id, reply::Result::Welcome(node.welcome()));
    });
    lie("nothing", acquire, |_, conn| {
        let (id, _) = conn.next();
        conn.send(&v1::Reply { id, result: None });
    });
    lie("a descriptor", acquire, |node, conn| {
        let (id, _) = conn.next();
        let result = Some(reply::Result::Acquired(node.acquired(1, 1, 1)));
        conn.send_with(&v1::Reply { id, result }, &[node.fd()]);
    });
}

type Spoil<T> = (&'static str, fn(&mut T));

#[test]
fn leases_on_what_is_not_there() {
    let cases: [Spoil<v1::Acquired>; 10] = [
        ("offset beyond the region", |a| a.offset[1] = 8 * slot_bytes() as u64),
        ("block over the region's end", |a| a.offset[1] = 8 * slot_bytes() as u64 - 4096),
        ("offset that overflows", |a| a.offset[1] = u64::MAX - 4095),
        ("offset within a page", |a| a.offset[1] += 8),
        ("unknown region", |a| a.region[1] = NO_REGION),
        ("a column short", |a| a.generation.truncate(1)),
        ("more than asked", |a| {
            a.region.push(a.region[0]);
            a.offset.push(0);
            a.generation.push(1);
            a.tier.push(2);
        }),
        ("no name", |a| a.lease = 0),
        ("a name for nothing", |a| *a = v1::Acquired { lease: 1, ..v1::Acquired::default() }),
        ("a tier of no kind", |a| a.tier[0] = 77),
    ];
    for (name, spoil) in cases {
        lie(name, acquire, |node, conn| {
            let (id, _) = conn.next();
            let mut acquired = node.acquired(1, 2, 1);
            spoil(&mut acquired);
            conn.reply(id, reply::Result::Acquired(acquired));
        });
    }
}

#[test]
fn slots_that_must_not_be_written() {
    let cases: [Spoil<v1::Reserved>; 9] = [
        ("offset beyond the region", |r| r.offset[1] = 8 * slot_bytes() as u64),
        ("offset that overflows", |r| r.offset[1] = u64::MAX - 4095),
        ("unknown region", |r| r.region[0] = NO_REGION),
        ("overlapping slots", |r| r.offset[1] = r.offset[0] + 4096),
        ("the same slot twice", |r| r.offset[1] = r.offset[0]),
        ("an index not asked for", |r| r.index[1] = 2),
        ("an index twice", |r| r.index[1] = 0),
        ("a column short", |r| r.region.truncate(1)),
        ("more refused than asked", |r| r.refused = u32::MAX),
    ];
    for (name, spoil) in cases {
        lie(name, reserve, |node, conn| {
            let (id, _) = conn.next();
            let mut reserved = node.reserved(1, 0, 2);
            spoil(&mut reserved);
            conn.reply(id, reply::Result::Reserved(reserved));
        });
    }
}

#[test]
fn more_matched_than_asked() {
    let call = |store: &Store| store.match_run(&chain(2), soon()).miss;
    lie("three of two", call, |_, conn| {
        let (id, _) = conn.next();
        conn.reply(id, reply::Result::Matched(v1::Matched { tiers: vec![2; 3] }));
    });
}

/// A memfd that its owner can still shrink: touching it could kill this process.
fn unsealed(region: &v1::Region) -> OwnedFd {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let name = format!("unsealed:{}:{:016x}", region.id, region.generation);
    let fd = rustix::fs::memfd_create(name, flags).expect("a memfd");
    rustix::fs::ftruncate(&fd, region.bytes).expect("resized");
    fd
}

#[test]
fn memory_that_is_not_what_it_is_said_to_be() {
    type Welcome = Box<dyn Fn(&Node) -> (v1::Welcome, Vec<OwnedFd>)>;
    // Regions as they should be, of which the last ones are not named or not sent.
    let many = |named_count: usize, sent: usize| -> Welcome {
        Box::new(move |node| {
            let regions: Vec<Region> =
                (0..17).map(|_| Region::shared("more", 4096).expect("memory")).collect();
            let welcome =
                v1::Welcome { regions: regions[..named_count].iter().map(named).collect(), ..node.welcome() };
            (welcome, regions[..sent].iter().map(fd_of).collect())
        })
    };
    let cases: Vec<(&str, Welcome)> = vec![
        ("a region without descriptor", many(1, 0)),
        ("a descriptor too many", many(1, 2)),
        ("17 regions, 16 descriptors", many(17, 16)),
        (
            "one region twice",
            Box::new(|node| {
                let mut welcome = node.welcome();
                welcome.regions.push(welcome.regions[0]);
                (welcome, vec![node.fd(), node.fd()])
            }),
        ),
        (
            "a region of an earlier life",
            Box::new(|node| {
                let mut welcome = node.welcome();
                welcome.regions[0].generation += 1;
                (welcome, vec![node.fd()])
            }),
        ),
        (
            "another size",
            Box::new(|node| {
                let mut welcome = node.welcome();
                welcome.regions[0].bytes *= 2;
                (welcome, vec![node.fd()])
            }),
        ),
        ("memory that can shrink", Box::new(|node| (node.welcome(), vec![unsealed(&named(&node.memory))]))),
        (
            "no memory at all",
            Box::new(|node| {
                let file = std::fs::File::open("/dev/null").expect("there");
                (node.welcome(), vec![OwnedFd::from(file)])
            }),
        ),
        (
            "blocks of another size",
            Box::new(|node| {
                let mut welcome = node.welcome();
                welcome.payload_bytes /= 2;
                (welcome, vec![node.fd()])
            }),
        ),
    ];
    for (name, make) in cases {
        let node = Node::new();
        let store = Store::open(node.config());
        let mut conn = node.greet();
        let hello = conn.hello();
        let (welcome, fds) = make(&node);
        conn.welcome(hello, welcome, fds);
        conn.hung_up();
        let _conn = node.accept();
        assert!(store.wait_ready(soon()).is_connected(), "{name}");
    }
}

#[test]
fn sixteen_regions_are_fine() {
    let node = Node::new();
    let store = Store::open(node.config());
    let mut conn = node.greet();
    let hello = conn.hello();
    let regions: Vec<Region> =
        (0..16).map(|_| Region::shared("one of many", 4096).expect("memory")).collect();
    let welcome = v1::Welcome { regions: regions.iter().map(named).collect(), ..node.welcome() };
    conn.welcome(hello, welcome, regions.iter().map(fd_of).collect());
    assert!(store.wait_ready(soon()).is_connected());
}
