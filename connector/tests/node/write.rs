//! Writing through shared memory, and what is advertised.

use hearth_connector::conformance::payload;
use hearth_connector::proto::code::Code;
use hearth_connector::proto::header::HEADER_BYTES;
use hearth_connector::proto::key;
use hearth_connector::proto::v1::{self, reply, request};
use hearth_connector::{Durability, Reservation, SealError, Store, WriteError};

use crate::support::{Conn, Node, chain, header, slot_bytes, soon};

const DONE: reply::Result = reply::Result::Done(v1::Done {});

/// Reserves blocks 1 and 2 of a chain of three.
fn reserve(node: &Node, (store, conn): (&Store, &mut Conn)) -> Reservation {
    let chain = chain(3);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| store.reserve(&chain, 0, soon()));
        let (id, op) = conn.next();
        let request::Op::Reserve(asked) = op else { panic!("{op:?}") };
        assert_eq!((asked.first, asked.keys), (0, key::pack(&chain)));
        let mut reserved = node.reserved(5, 1, 2);
        // Shards answer in their own order.
        reserved.index.reverse();
        conn.reply(id, reply::Result::Reserved(reserved));
        caller.join().expect("no panic")
    })
}

#[test]
fn what_is_written_is_sealed_with_the_checksums_of_the_source() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let chain = chain(3);
    let reservation = reserve(&node, (&store, &mut conn));
    assert_eq!((reservation.granted(), reservation.present()), (&[1, 2][..], 1));
    let block = payload(&chain[2]);
    reservation.write(2, &block).expect("granted");
    // Block 2 was granted the first slot.
    assert!(node.read(HEADER_BYTES, block.len()) == block);
    let sealed = std::thread::scope(|scope| {
        let caller = scope.spawn(|| reservation.seal(Durability::Nvme, soon()));
        let (id, op) = conn.next();
        let request::Op::Seal(seal) = op else { panic!("{op:?}") };
        let expected = header(chain[2], 1);
        let block = v1::SealedBlock {
            index: 2,
            range_bytes: expected.range_bytes,
            range_crcs: expected.range_crcs.clone(),
        };
        let durability = v1::Durability::Nvme.into();
        assert_eq!(seal, v1::Seal { reservation: 5, blocks: vec![block], durability });
        conn.reply(id, DONE);
        caller.join().expect("no panic")
    });
    assert_eq!(sealed.map(|sealed| sealed.blocks), Ok(1));
}

#[test]
fn a_dropped_reservation_is_aborted() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    drop(reserve(&node, (&store, &mut conn)));
    let (_, op) = conn.next();
    assert_eq!(op, request::Op::Abort(v1::Abort { reservation: 5 }));
}

#[test]
fn a_refused_seal_says_why_and_is_given_up() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let reservation = reserve(&node, (&store, &mut conn));
    reservation.write(1, &payload(&chain(3)[1])).expect("granted");
    let sealed = std::thread::scope(|scope| {
        let caller = scope.spawn(|| reservation.seal(Durability::Nvme, soon()));
        let (id, _) = conn.next();
        let message = "the device is gone".to_owned();
        conn.refuse(id, v1::Error { code: Code::Io as u32, message, mismatch: None });
        caller.join().expect("no panic")
    });
    assert_eq!(sealed, Err(SealError::Node { code: Code::Io, message: "the device is gone".into() }));
    assert_eq!(conn.next().1, request::Op::Abort(v1::Abort { reservation: 5 }));
}

#[test]
fn nothing_is_written_or_sealed_after_the_session() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let reservation = reserve(&node, (&store, &mut conn));
    let block = payload(&chain(3)[1]);
    reservation.write(1, &block).expect("granted");
    drop(conn);
    let mut conn = node.accept();
    node.write(0, &vec![0; 2 * slot_bytes()]);
    assert_eq!(reservation.write(2, &block), Err(WriteError::Stale));
    assert!(node.read(0, 2 * slot_bytes()).iter().all(|&byte| byte == 0));
    assert_eq!(reservation.seal(Durability::Memory, soon()), Err(SealError::Stale));
    // Neither a seal nor an abort reaches the new session.
    assert!(store.wait_ready(soon()).is_connected());
    store.advertise(&chain(1), 0);
    assert!(matches!(conn.next().1, request::Op::Advertise(_)));
}

#[test]
fn what_is_advertised_is_told_again_after_a_reconnect() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let chain = chain(4);
    store.advertise(&chain, 2);
    let told = request::Op::Advertise(v1::Advertise { keys: key::pack(&chain), first: 2 });
    let (id, op) = conn.next();
    assert_eq!(op, told);
    conn.reply(id, DONE);
    store.withdraw(&chain[2..3]);
    let (_, op) = conn.next();
    assert_eq!(op, request::Op::Withdraw(v1::Withdraw { keys: key::pack(&chain[2..3]) }));
    // The node dies before it has acknowledged that.
    drop(conn);
    let mut conn = node.accept();
    let (id, op) = conn.next();
    assert_eq!(op, request::Op::Advertise(v1::Advertise { keys: key::pack(&chain), first: 3 }));
    conn.reply(id, DONE);
}

#[test]
fn a_node_that_cannot_take_an_advertisement_is_told_later() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let chain = chain(2);
    store.advertise(&chain, 0);
    for _ in 0..2 {
        let (id, op) = conn.next();
        assert_eq!(op, request::Op::Advertise(v1::Advertise { keys: key::pack(&chain), first: 0 }));
        let error = v1::Error { code: Code::Unavailable as u32, message: "busy".into(), mismatch: None };
        conn.refuse(id, error);
    }
    store.withdraw(&chain);
    // What was refused may have been taken in part, so it is withdrawn.
    let (id, op) = std::iter::repeat_with(|| conn.next())
        .find(|(_, op)| matches!(op, request::Op::Withdraw(_)))
        .expect("sooner or later");
    let request::Op::Withdraw(withdraw) = op else { unreachable!("just matched") };
    assert_eq!(key::unpack(&withdraw.keys).expect("keys").len(), 2);
    conn.reply(id, DONE);
}
