//! Reading through shared memory: what does not check is a miss, and the node hears of it.

use std::sync::atomic::{AtomicBool, Ordering};

use hearth_connector::conformance::payload;
use hearth_connector::proto::header::{BlockHeader, HEADER_BYTES};
use hearth_connector::proto::identity::Fingerprint;
use hearth_connector::proto::key::{self, BlockKey};
use hearth_connector::proto::tenant::TenantId;
use hearth_connector::proto::v1::{reply, request};
use hearth_connector::{Lease, Miss, Store, Tier};

use crate::support::{Conn, Node, chain, header, slot_bytes, soon};

/// Leases `blocks` blocks of generation 1 in slots 0.. .
fn lease(node: &Node, (store, conn): (&Store, &mut Conn), blocks: u32) -> Lease {
    let chain = chain(blocks);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| store.acquire(&chain, 0..chain.len(), soon()));
        let (id, op) = conn.next();
        let request::Op::Acquire(asked) = op else { panic!("{op:?}") };
        assert_eq!((asked.first, asked.count, asked.keys), (0, blocks, key::pack(&chain)));
        conn.reply(id, reply::Result::Acquired(node.acquired(77, chain.len(), 1)));
        let acquired = caller.join().expect("no panic");
        assert_eq!(acquired.miss, None);
        acquired.lease.expect("granted")
    })
}

/// What the client gives back when the lease is dropped.
fn released(conn: &mut Conn) -> Vec<BlockKey> {
    let (_, op) = conn.next();
    let request::Op::Release(release) = op else { panic!("{op:?}") };
    assert_eq!(release.lease, 77);
    key::unpack(&release.corrupt_keys).expect("keys")
}

#[test]
fn a_leased_block_is_read_and_released() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let chain = chain(3);
    (0..3).for_each(|slot| node.put(slot, &header(chain[slot], 1)));
    let lease = lease(&node, (&store, &mut conn), 3);
    assert_eq!(lease.tiers(), [Tier::Pinned; 3]);
    let mut page = vec![0; lease.payload_bytes()];
    for (i, key) in chain.iter().enumerate() {
        lease.read(i, &mut page).expect("right");
        assert!(page == payload(key));
        assert!(lease.view(i).expect("right").slice().to_vec() == page);
    }
    drop(lease);
    assert_eq!(released(&mut conn), []);
}

#[test]
fn every_flipped_byte_is_found_and_named() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let chain = chain(2);
    for at in [0, 9, 100, 255, 300, 4095, HEADER_BYTES, slot_bytes() / 2, slot_bytes() - 1] {
        (0..2).for_each(|slot| node.put(slot, &header(chain[slot], 1)));
        let byte = node.read(at, 1)[0];
        node.write(at, &[byte ^ 0x10]);
        let lease = lease(&node, (&store, &mut conn), 2);
        let mut page = vec![0; lease.payload_bytes()];
        assert_eq!(lease.read(0, &mut page), Err(Miss::Corrupt), "byte {at}");
        assert_eq!(lease.view(0).map(|_| ()), Err(Miss::Corrupt), "byte {at}");
        lease.read(1, &mut page).expect("the other block is right");
        drop(lease);
        assert_eq!(released(&mut conn), [chain[0]]);
    }
}

#[test]
fn a_header_of_something_else_is_a_miss() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let chain = chain(1);
    let right = header(chain[0], 1);
    let half = right.payload_bytes / 2;
    let wrong = [
        ("key", BlockHeader { key: BlockKey([1; 32]), ..right.clone() }, Miss::Corrupt),
        ("fingerprint", BlockHeader { fingerprint: Fingerprint([1; 32]), ..right.clone() }, Miss::Corrupt),
        ("tenant", BlockHeader { tenant: TenantId([1; 16]), ..right.clone() }, Miss::Corrupt),
        (
            "length",
            BlockHeader { payload_bytes: half, range_crcs: right.range_crcs[..2].to_vec(), ..right.clone() },
            Miss::Corrupt,
        ),
        (
            "ranges",
            BlockHeader { range_bytes: 2 * right.range_bytes, range_crcs: vec![0; 2], ..right.clone() },
            Miss::Corrupt,
        ),
        ("generation", header(chain[0], 2), Miss::Stale),
    ];
    for (field, header, miss) in wrong {
        node.put(0, &right);
        node.write(0, &header.encode()[..]);
        let lease = lease(&node, (&store, &mut conn), 1);
        let mut page = vec![0; lease.payload_bytes()];
        assert_eq!(lease.read(0, &mut page), Err(miss), "{field}");
        drop(lease);
        let named: &[BlockKey] = if miss == Miss::Corrupt { &chain } else { &[] };
        assert_eq!(released(&mut conn), named, "{field}");
    }
}

/// A slot is given to another block, and back, while it is read: a read that succeeds has the bytes of its key.
#[test]
fn a_slot_reused_during_a_read_never_gives_wrong_bytes() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let mine = chain(1)[0];
    node.put(0, &header(mine, 1));
    let lease = lease(&node, (&store, &mut conn), 1);
    let done = AtomicBool::new(false);
    let (mut right, mut missed) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let other = header(BlockKey([9; 32]), 2);
            let mine = header(mine, 1);
            while !done.load(Ordering::Relaxed) {
                node.put(0, &other);
                node.put(0, &mine);
                std::thread::yield_now();
            }
        });
        let mut page = vec![0; lease.payload_bytes()];
        for _ in 0..3000 {
            match lease.read(0, &mut page) {
                Ok(()) => {
                    right += 1;
                    assert!(page == payload(&mine), "a hit is right");
                }
                Err(miss) => {
                    missed += 1;
                    assert!(matches!(miss, Miss::Stale | Miss::Corrupt), "{miss}");
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(right + missed, 3000);
    node.put(0, &header(mine, 1));
    lease.read(0, &mut vec![0; lease.payload_bytes()]).expect("right again");
}

#[test]
fn a_lease_ends_with_its_session() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    node.put(0, &header(chain(1)[0], 1));
    let old = lease(&node, (&store, &mut conn), 1);
    let view = old.view(0).expect("right");
    drop(conn);
    let mut conn = node.accept();
    assert_eq!(view.confirm(), Err(Miss::StoreDown));
    assert_eq!(old.read(0, &mut vec![0; old.payload_bytes()]), Err(Miss::StoreDown));
    drop(view);
    // An old lease is nothing to the new session: the first thing it hears is the next call.
    drop(old);
    assert!(store.wait_ready(soon()).is_connected());
    let new = lease(&node, (&store, &mut conn), 1);
    new.read(0, &mut vec![0; new.payload_bytes()]).expect("right");
}
