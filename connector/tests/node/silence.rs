//! A node that dies, is slow, or says nothing: calls end by their deadlines and nothing stays granted.

use std::time::{Duration, Instant};

use hearth_connector::proto::v1::{self, reply, request};
use hearth_connector::{Durability, Miss, SealError, Store};

use crate::support::{Conn, Node, chain, soon};

fn shortly() -> Instant {
    Instant::now() + Duration::from_millis(30)
}

#[test]
fn a_node_that_dies_during_a_call_is_a_miss_at_once_and_is_found_again() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| store.acquire(&chain(1), 0..1, soon()).miss);
        conn.next();
        drop(conn);
        assert_eq!(caller.join().expect("no panic"), Some(Miss::StoreDown));
    });
    let _conn = node.accept();
    assert!(store.wait_ready(soon()).is_connected());
}

#[test]
fn a_node_that_never_greets_leaves_calls_to_miss_at_once() {
    let node = Node::new();
    let store = Store::open(node.config());
    let _silent = node.listener.accept().expect("a client");
    assert_eq!(store.match_run(&chain(1), soon()).miss, Some(Miss::StoreDown));
    assert!(!store.wait_ready(shortly()).is_connected());
}

#[test]
fn a_node_that_never_answers_keeps_no_one() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    assert_eq!(store.match_run(&chain(1), shortly()).miss, Some(Miss::Deadline));
    assert_eq!(store.acquire(&chain(1), 0..1, shortly()).miss, Some(Miss::Deadline));
    let reservation = store.reserve(&chain(1), 0, shortly());
    assert_eq!((reservation.miss(), reservation.granted()), (Some(Miss::Deadline), &[][..]));
    let asked: Vec<v1::Request> = (0..3).map(|_| conn.receive().expect("sent")).collect();
    assert!(asked.iter().all(|request| request.deadline_ms < 30), "the node is told how long");
}

/// More calls than the window holds, none of them answered: those that cannot be sent end by their deadlines, too.
#[test]
fn a_full_window_keeps_no_one() {
    let node = Node::new();
    let (store, conn) = node.session();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..40 {
                    let deadline = Instant::now() + Duration::from_millis(2);
                    assert_eq!(store.match_run(&chain(1), deadline).miss, Some(Miss::Deadline));
                }
            });
        }
    });
    drop(conn);
}

/// The socket takes no more bytes because the node reads none.
#[test]
fn a_node_that_does_not_read_keeps_no_one() {
    let node = Node::new();
    let (store, _conn) = node.session();
    let long = chain(20_000);
    for _ in 0..40 {
        assert_eq!(store.match_run(&long, shortly()).miss, Some(Miss::Deadline));
    }
    store.advertise(&long, 0);
    store.withdraw(&long);
}

fn late(conn: &mut Conn, grant: reply::Result) -> request::Op {
    let (id, _) = conn.next();
    conn.reply(id, grant);
    conn.next().1
}

#[test]
fn what_is_granted_too_late_is_given_back() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    assert_eq!(store.acquire(&chain(1), 0..1, shortly()).miss, Some(Miss::Deadline));
    let released = late(&mut conn, reply::Result::Acquired(node.acquired(41, 1, 1)));
    assert_eq!(released, request::Op::Release(v1::Release { lease: 41, corrupt_keys: Vec::new() }));
    assert_eq!(store.reserve(&chain(1), 0, shortly()).miss(), Some(Miss::Deadline));
    let aborted = late(&mut conn, reply::Result::Reserved(node.reserved(42, 0, 1)));
    assert_eq!(aborted, request::Op::Abort(v1::Abort { reservation: 42 }));
}

#[test]
fn a_seal_that_is_not_acknowledged_in_time_says_so() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    let chain = chain(1);
    let reservation = std::thread::scope(|scope| {
        let caller = scope.spawn(|| store.reserve(&chain, 0, soon()));
        let (id, _) = conn.next();
        conn.reply(id, reply::Result::Reserved(node.reserved(6, 0, 1)));
        caller.join().expect("no panic")
    });
    reservation.write(0, &vec![1; reservation.payload_bytes()]).expect("granted");
    assert_eq!(reservation.seal(Durability::Nvme, shortly()), Err(SealError::Deadline));
    assert!(matches!(conn.next().1, request::Op::Seal(_)));
    assert!(matches!(conn.next().1, request::Op::Abort(_)));
}

#[test]
fn answers_may_come_in_any_order() {
    let node = Node::new();
    let (store, mut conn) = node.session();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (1..=4_u32)
            .map(|blocks| {
                let store = &store;
                scope.spawn(move || store.match_run(&chain(blocks), soon()).tiers.len())
            })
            .collect();
        let mut asked: Vec<(u64, request::Op)> = (0..4).map(|_| conn.next()).collect();
        asked.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        for (id, op) in asked {
            let request::Op::Match(op) = op else { panic!("{op:?}") };
            let tiers = vec![v1::Tier::Nvme.into(); op.keys.len() / 32];
            conn.reply(id, reply::Result::Matched(v1::Matched { tiers }));
        }
        let found: Vec<usize> = callers.into_iter().map(|caller| caller.join().expect("no panic")).collect();
        assert_eq!(found, [1, 2, 3, 4]);
    });
}
