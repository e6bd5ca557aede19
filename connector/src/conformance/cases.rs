//! The promises, one by one.

use std::time::Instant;

use hearth_proto::key::BlockKey;

use super::{BLOCKS_MIN, Bed, Guest, assert_right, eventually, identity, payload, payload_bytes, soon};
use crate::{Durability, Miss, Refusal, State, StoreConfig, Tier, WriteError};

type Case = fn(&dyn Bed);

pub(super) const ALL: &[(&str, Case)] = &[
    ("what is sealed is found by all", what_is_sealed_is_found_by_all),
    ("every way to read is checked and right", every_way_to_read_is_right),
    ("nothing is visible before the seal", nothing_is_visible_before_the_seal),
    ("a block is written by one client at a time", one_writer_at_a_time),
    ("only what was written is sealed", only_what_was_written_is_sealed),
    ("parts are written as one block", parts_are_one_block),
    ("wrong writes are refused", wrong_writes_are_refused),
    ("a lease is a prefix of what was asked", a_lease_is_a_prefix),
    ("wrong calls are misses", wrong_calls_are_misses),
    ("flipped bytes are a miss, and dropped", flipped_bytes_are_dropped),
    ("tenants are apart", tenants_are_apart),
    ("a wrong secret is refused", a_wrong_secret_is_refused),
    ("another identity is refused by field", another_identity_is_refused),
    ("a leased block stays under pressure", a_leased_block_stays),
    ("many threads at once", many_threads_at_once),
    ("a closed store voids its grants", a_closed_store_voids_its_grants),
    ("what engines hold is published", what_engines_hold_is_published),
    ("what is durable survives the node", what_is_durable_survives),
];

fn what_is_sealed_is_found_by_all(bed: &dyn Bed) {
    let (a, b) = (Guest::new(bed, 0, "a"), Guest::new(bed, 0, "b"));
    let chain = a.keys("found by all", 10);
    assert_eq!(a.store.match_run(&chain, soon()).miss, Some(Miss::Absent));
    a.put(&chain[..6], 0, Durability::Memory);
    a.put(&chain, 6, Durability::Nvme);
    for guest in [&a, &b] {
        let matched = guest.store.match_run(&chain, soon());
        assert_eq!((matched.tiers.len(), matched.miss), (10, None));
        let lease = guest.lease(&chain);
        assert_eq!((lease.len(), lease.first(), lease.keys()), (10, 0, &chain[..]));
        (0..10).for_each(|i| assert_right(&lease, i));
    }
}

fn every_way_to_read_is_right(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "reader");
    let chain = guest.keys("ways to read", 3);
    guest.put(&chain, 0, Durability::Memory);
    let lease = guest.lease(&chain);
    assert!(lease.tiers().iter().all(|tier| matches!(tier, Tier::Pinned | Tier::Nvme)));
    let whole = payload(&chain[1]);
    let range = lease.range_bytes();
    assert_eq!((lease.payload_bytes(), range), (whole.len(), whole.len() / 4));
    let mut part = vec![0; 2 * range];
    lease.read_range(1, range..3 * range, &mut part).expect("leased");
    assert!(part == whole[range..3 * range]);
    let view = lease.view(1).expect("leased");
    assert!(view.slice().to_vec() == whole);
    view.copy_to(range + 3, &mut part[..5]).expect("inside");
    assert!(part[..5] == whole[range + 3..range + 8]);
    assert_eq!(view.copy_to(whole.len(), &mut part), Err(Miss::Misuse));
    view.confirm().expect("nobody has touched it");
}

fn nothing_is_visible_before_the_seal(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "writer");
    let chain = guest.keys("before the seal", 2);
    let reservation = guest.store.reserve(&chain, 0, soon());
    reservation.write(0, &payload(&chain[0])).expect("granted");
    assert_eq!(guest.found(&chain), 0);
    assert_eq!(guest.store.acquire(&chain, 0..2, soon()).miss, Some(Miss::Absent));
    drop(reservation);
    eventually("a dropped reservation can be taken again", || {
        guest.store.reserve(&chain, 0, soon()).granted().len() == 2
    });
    assert_eq!(guest.found(&chain), 0);
}

fn one_writer_at_a_time(bed: &dyn Bed) {
    let (a, b) = (Guest::new(bed, 0, "a"), Guest::new(bed, 0, "b"));
    let chain = a.keys("one writer", 5);
    a.put(&chain[..2], 0, Durability::Memory);
    let mine = a.store.reserve(&chain, 0, soon());
    assert_eq!((mine.granted(), mine.present(), mine.refused()), (&[2, 3, 4][..], 2, 0));
    let none = b.store.reserve(&chain, 1, soon());
    assert_eq!((none.granted(), none.present(), none.miss()), (&[][..], 4, None));
    assert_eq!(none.seal(Durability::Memory, soon()).map(|sealed| sealed.blocks), Ok(0));
    for &index in mine.granted() {
        mine.write(index, &payload(&chain[index])).expect("granted");
    }
    assert_eq!(mine.seal(Durability::Memory, soon()).map(|sealed| sealed.blocks), Ok(3));
    assert_eq!(b.found(&chain), 5);
}

fn only_what_was_written_is_sealed(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "writer");
    let chain = guest.keys("partly written", 4);
    let reservation = guest.store.reserve(&chain, 0, soon());
    for index in [0, 1, 3] {
        reservation.write(index, &payload(&chain[index])).expect("granted");
    }
    assert_eq!(reservation.seal(Durability::Memory, soon()).map(|sealed| sealed.blocks), Ok(3));
    assert_eq!(guest.found(&chain), 2);
    let last = guest.store.acquire(&chain, 3..4, soon()).lease.expect("a hole before it does not hide it");
    assert_eq!(last.range(), 3..4);
    assert_right(&last, 0);
    eventually("the hole can be filled", || guest.store.reserve(&chain, 0, soon()).granted() == [2]);
}

fn parts_are_one_block(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "writer");
    let chain = guest.keys("parts", 1);
    let whole = payload(&chain[0]);
    let (a, rest) = whole.split_at(7);
    let (b, c) = rest.split_at(whole.len() / 2);
    let reservation = guest.store.reserve(&chain, 0, soon());
    reservation.write_parts(0, &[a, &[], b, c]).expect("granted");
    reservation.seal(Durability::Memory, soon()).expect("the node takes it");
    assert_right(&guest.lease(&chain), 0);
}

fn wrong_writes_are_refused(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "writer");
    let chain = guest.keys("wrong writes", 2);
    let reservation = guest.store.reserve(&chain, 1, soon());
    let block = payload(&chain[1]);
    assert_eq!(reservation.payload_bytes(), payload_bytes());
    assert_eq!(reservation.write(0, &block), Err(WriteError::NotGranted(0)));
    let length = WriteError::Length { given: block.len() - 1, expected: block.len() };
    assert_eq!(reservation.write(1, &block[1..]), Err(length));
    assert_eq!(reservation.write(1, &block), Ok(()));
    assert_eq!(reservation.write(1, &block), Err(WriteError::Twice(1)));
}

fn a_lease_is_a_prefix(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "reader");
    let chain = guest.keys("prefix", 70);
    guest.put(&chain[..67], 0, Durability::Memory);
    let acquired = guest.store.acquire(&chain, 60..70, soon());
    let lease = acquired.lease.expect("seven are there");
    assert_eq!((lease.range(), acquired.miss), (60..67, Some(Miss::Absent)));
    (0..lease.len()).for_each(|i| assert_right(&lease, i));
    let none = guest.store.acquire(&chain, 67..70, soon());
    assert!(none.lease.is_none() && none.miss == Some(Miss::Absent));
}

fn wrong_calls_are_misses(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "reader");
    let chain = guest.keys("wrong calls", 2);
    guest.put(&chain, 0, Durability::Memory);
    let past = Instant::now();
    assert_eq!(guest.store.match_run(&chain, past).miss, Some(Miss::Deadline));
    assert_eq!(guest.store.acquire(&chain, 0..2, past).miss, Some(Miss::Deadline));
    assert_eq!(guest.store.reserve(&chain, 0, past).miss(), Some(Miss::Deadline));
    assert_eq!(guest.store.acquire(&chain, 1..3, soon()).miss, Some(Miss::Misuse));
    assert_eq!(guest.store.reserve(&chain, 2, soon()).miss(), Some(Miss::Misuse));
    assert_eq!(guest.store.acquire(&chain, 1..1, soon()).miss, None);
    assert_eq!(guest.store.match_run(&[], soon()).miss, None);
    let lease = guest.lease(&chain);
    let mut page = vec![0; lease.payload_bytes()];
    assert_eq!(lease.read(2, &mut page), Err(Miss::Misuse));
    assert_eq!(lease.read(0, &mut page[1..]), Err(Miss::Misuse));
    assert_eq!(lease.read_range(0, 1..11, &mut page[..10]), Err(Miss::Misuse));
    assert!(lease.view(2).is_err());
    assert_right(&lease, 0);
}

fn flipped_bytes_are_dropped(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "reader");
    let chain = guest.keys("flipped", 3);
    guest.put(&chain, 0, Durability::Memory);
    let lease = guest.lease(&chain);
    let view = lease.view(1).expect("leased");
    let byte = view.slice().slice(40_000..40_001).expect("inside");
    let before = guest.store.metrics().corrupt_so_far();
    byte.fill(!byte.to_vec()[0]).expect("a client may write its tenant's memory");
    assert_eq!(view.confirm(), Err(Miss::Corrupt));
    let mut page = vec![0; lease.payload_bytes()];
    assert_eq!(lease.read(1, &mut page), Err(Miss::Corrupt));
    assert_eq!(lease.view(1).map(|_| ()), Err(Miss::Corrupt));
    assert_eq!(guest.store.metrics().corrupt_so_far(), before + 1, "a block is counted once");
    let good = lease.range_bytes();
    lease.read_range(1, 0..good, &mut page[..good]).expect("the other ranges are right");
    assert_right(&lease, 0);
    assert_right(&lease, 2);
    drop(lease);
    eventually("the block is gone, or right again from the disk", || {
        let lease = guest.store.acquire(&chain, 1..2, soon()).lease;
        lease.is_none_or(|lease| lease.read(0, &mut page).is_ok() && page == payload(&chain[1]))
    });
}

fn tenants_are_apart(bed: &dyn Bed) {
    let (mine, other) = (Guest::new(bed, 0, "mine"), Guest::new(bed, 1, "other"));
    let chain = mine.keys("apart", 2);
    assert_ne!(chain, other.keys("apart", 2), "equal prompts have unrelated keys");
    mine.put(&chain, 0, Durability::Memory);
    assert_eq!(other.found(&chain), 0, "a key is of no use to another tenant");
    assert!(other.store.acquire(&chain, 0..2, soon()).lease.is_none());
    let theirs = other.keys("apart", 2);
    other.put(&theirs, 0, Durability::Memory);
    assert_right(&other.lease(&theirs), 1);
    assert_right(&mine.lease(&chain), 1);
}

fn a_wrong_secret_is_refused(bed: &dyn Bed) {
    let _right = Guest::new(bed, 0, "right");
    let (name, _) = bed.tenant(0);
    let (_, secret) = bed.tenant(1);
    let store = bed.open(StoreConfig::new(None, name, secret, identity(), "wrong"));
    let state = store.wait_ready(soon());
    assert!(matches!(&state, State::Refused(r) if matches!(**r, Refusal::Secret { .. })), "{state}");
    let chain = [BlockKey([1; 32])];
    assert_eq!(store.match_run(&chain, soon()).miss, Some(Miss::Refused));
    assert_eq!(store.acquire(&chain, 0..1, soon()).miss, Some(Miss::Refused));
    assert_eq!(store.reserve(&chain, 0, soon()).miss(), Some(Miss::Refused));
}

fn another_identity_is_refused(bed: &dyn Bed) {
    let _first = Guest::new(bed, 0, "first");
    let (name, secret) = bed.tenant(0);
    let mut other = identity();
    other.rope = "theta=20000;scaling=none".into();
    let store = bed.open(StoreConfig::new(None, name.clone(), secret.clone(), other, "second"));
    let State::Refused(refusal) = store.wait_ready(soon()) else { panic!("{}", store.state()) };
    let Refusal::Identity(mismatch) = &*refusal else { panic!("{refusal}") };
    assert_eq!(mismatch.field, "rope");
    assert!(mismatch.ours.contains("10000") && mismatch.theirs.contains("20000"), "{mismatch}");
    let mut invalid = identity();
    invalid.kv_dtype = "int3".into();
    let store = bed.open(StoreConfig::new(None, name, secret, invalid, "third"));
    assert!(matches!(store.state(), State::Refused(_)), "known without asking the node");
    assert_eq!(store.acquire(&[BlockKey([1; 32])], 0..1, soon()).miss, Some(Miss::Refused));
}

fn a_leased_block_stays(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "holder");
    let chain = guest.keys("pressure", 8);
    guest.put(&chain, 0, Durability::Memory);
    let lease = guest.lease(&chain);
    for round in 0..bed.blocks().div_ceil(BLOCKS_MIN) + 1 {
        let other = guest.keys(&format!("pressure {round}"), BLOCKS_MIN);
        let reservation = guest.store.reserve(&other, 0, soon());
        for &index in reservation.granted() {
            reservation.write(index, &payload(&other[index])).expect("granted");
        }
        // A node whose memory is full of what it has yet to write may refuse some.
        let granted = reservation.granted().len();
        assert_eq!(reservation.seal(Durability::Memory, soon()).map(|s| s.blocks), Ok(granted));
    }
    (0..8).for_each(|i| assert_right(&lease, i));
}

fn many_threads_at_once(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "threads");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let guest = &guest;
            scope.spawn(move || {
                for round in 0..20 {
                    // Two threads share each chain, so that they meet.
                    let chain = guest.keys(&format!("threads {} {round}", thread / 2), 4);
                    let reservation = guest.store.reserve(&chain, 0, soon());
                    for &index in reservation.granted() {
                        reservation.write(index, &payload(&chain[index])).expect("granted");
                    }
                    reservation.seal(Durability::Memory, soon()).expect("the node takes it");
                    let acquired = guest.store.acquire(&chain, 0..4, soon());
                    assert!(matches!(acquired.miss, None | Some(Miss::Absent)), "{:?}", acquired.miss);
                    if let Some(lease) = acquired.lease {
                        (0..lease.len()).for_each(|i| assert_right(&lease, i));
                    }
                }
            });
        }
    });
}

fn a_closed_store_voids_its_grants(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "closing");
    let chain = guest.keys("closed", 2);
    guest.put(&chain[..1], 0, Durability::Memory);
    let lease = guest.lease(&chain[..1]);
    let reservation = guest.store.reserve(&chain, 0, soon());
    assert_eq!(reservation.granted(), [1]);
    let clone = guest.store.clone();
    drop(guest);
    assert_right(&lease, 0);
    drop(clone);
    let mut page = vec![0; lease.payload_bytes()];
    assert_eq!(lease.read(0, &mut page), Err(Miss::StoreDown));
    assert_eq!(reservation.write(1, &page), Err(WriteError::Stale));
    assert!(reservation.seal(Durability::Memory, soon()).is_ok_and(|sealed| sealed.blocks == 0));
    let next = Guest::new(bed, 0, "next");
    eventually("what a closed client was writing is free", || {
        next.store.reserve(&chain, 0, soon()).granted() == [1]
    });
}

fn what_engines_hold_is_published(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "http://engine");
    let chain = guest.keys("advertised", 5);
    guest.store.advertise(&chain[..4], 1);
    guest.store.advertise(&chain, 4);
    guest.store.withdraw(&chain[2..3]);
    if bed.advertised().is_none() {
        return;
    }
    let published = || {
        let all = bed.advertised().expect("seen before");
        let mine = all.into_iter().filter(|(holder, _)| holder == "http://engine");
        mine.map(|(_, key)| key).collect::<std::collections::BTreeSet<_>>()
    };
    let held = [chain[1], chain[3], chain[4]].into();
    eventually("three blocks are published", || published() == held);
    if bed.restart() {
        assert!(guest.store.wait_ready(soon()).is_connected());
        eventually("they are published again by a new node", || published() == held);
    }
    drop(guest);
    eventually("they are gone with their client", || published().is_empty());
}

fn what_is_durable_survives(bed: &dyn Bed) {
    let guest = Guest::new(bed, 0, "survivor");
    let chain = guest.keys("durable", 6);
    guest.put(&chain, 0, Durability::Nvme);
    let old = guest.lease(&chain);
    let reservation = guest.store.reserve(&guest.keys("never sealed", 2), 0, soon());
    if !bed.restart() {
        return;
    }
    eventually("the client notices", || {
        guest.store.wait_ready(soon()).is_connected() && guest.found(&chain) == chain.len()
    });
    let mut page = vec![0; old.payload_bytes()];
    assert_eq!(old.read(0, &mut page), Err(Miss::StoreDown), "old leases are void");
    assert_eq!(reservation.write(0, &page), Err(WriteError::Stale));
    let lease = guest.lease(&chain);
    assert!(lease.tiers().contains(&Tier::Nvme), "found on the disk");
    (0..6).for_each(|i| assert_right(&lease, i));
    assert_eq!(guest.found(&guest.keys("never sealed", 2)), 0);
}
