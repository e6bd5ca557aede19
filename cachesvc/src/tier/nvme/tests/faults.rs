//! A device that fails: for each call in a script and each way to break it, nothing wrong is read, nothing that was
//! acknowledged as durable is lost, every command is answered, and the tier goes on.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::*;
use crate::io::fault::{Fault, FaultIo, Plan};
use crate::io::mount::Mount;
use crate::io::psync::{Psync, PsyncConfig};
use crate::io::{Caching, IoFault};

/// A tier on a device that is broken by `plan`.
fn broken(dir: &Path, plan: &Plan) -> Result<Rig, NvmeError> {
    let plan = plan.clone();
    Rig::try_open_on(config(dir), move |config| {
        let (queue_depth, files_max) = (config.queue_depth, config.files_max);
        let psync =
            Psync::new(PsyncConfig { caching: Caching::Buffered, queue_depth, files_max }).expect("threads");
        Ok(Box::new(FaultIo::new(Box::new(psync), plan)))
    })
}

fn healthy(dir: &Path) -> Rig {
    broken(dir, &Plan::default()).expect("opens")
}

/// What the script knows about a slot: None when a failed write left it open.
type Known = BTreeMap<Slot, Option<Block>>;

/// Opens, stores, rewrites, erases and reads; returns what must be found afterwards. Reads check their bytes.
fn script(dir: &Path, plan: &Plan) -> Known {
    let mut durable = Known::new();
    // The first life makes blocks for the second one to recover.
    for (life, generation) in [(0, 100), (1, 200)] {
        let Ok(rig) = broken(dir, plan) else { continue };
        for (at, block) in rig.blocks() {
            let _ = rig.read(at, block);
        }
        let _ = rig.create(life);
        for index in 0..4 {
            let at = slot(life, index);
            let block =
                Block { number: u64::from(life * 10 + index), generation: generation + u64::from(index) };
            let ack = if index % 2 == 0 { Ack::Durable } else { Ack::Written };
            let acked = rig.write(at, block, ack).is_ok() && ack == Ack::Durable;
            durable.insert(at, acked.then_some(block));
            let _ = rig.read(at, block);
        }
        let again = Block { number: 77 + u64::from(life), generation: generation + 50 };
        let acked = rig.write(slot(life, 0), again, Ack::Durable).is_ok();
        durable.insert(slot(life, 0), acked.then_some(again));
        let _ = rig.erase(slot(life, 2));
        durable.insert(slot(life, 2), None);
        let _ = rig.read(slot(life, 0), again);
        let _ = rig.delete(5);
    }
    durable
}

fn sweep(faults: &[Fault], found: impl Fn(&Rig, &Known)) {
    let total = {
        let dir = quick_folder();
        let plan = Plan::default();
        script(dir.path(), &plan);
        plan.calls()
    };
    assert!(total > 40, "the script makes calls");
    for &fault in faults {
        let mut struck = BTreeMap::new();
        for call in 0..total {
            let dir = quick_folder();
            let plan = Plan::once(call, fault);
            let durable = script(dir.path(), &plan);
            if let Some(name) = plan.struck() {
                *struck.entry(name).or_insert(0) += 1;
            }
            found(&healthy(dir.path()), &durable);
        }
        assert!(struck.values().sum::<u32>() > 5, "{fault:?} struck {struck:?}");
    }
}

/// Reads whatever was recovered: [`Rig::read`] checks the bytes of every hit.
fn read_all(rig: &Rig) {
    for (at, block) in rig.blocks() {
        assert!(matches!(rig.read(at, block), Ok(()) | Err(ReadError::Corrupt(_))));
    }
}

#[test]
fn an_honest_failure_at_any_call_loses_nothing_that_is_durable() {
    let faults = [
        Fault::Fails(Errno::IO),
        Fault::Fails(Errno::NOSPC),
        Fault::Torn(Errno::IO),
        Fault::Torn(Errno::NOSPC),
        Fault::Fails(Errno::TIMEDOUT),
    ];
    sweep(&faults, |rig, durable| {
        read_all(rig);
        let blocks: BTreeMap<_, _> = rig.blocks().into_iter().collect();
        for (at, block) in durable {
            let Some(block) = block else { continue };
            if rig.recovered.counts.segments_set_aside == 0 {
                assert_eq!(blocks.get(at), Some(block), "acknowledged as durable");
                assert_eq!(rig.read(*at, *block), Ok(()));
            }
        }
    });
}

#[test]
fn a_device_that_lies_at_any_call_yields_nothing_wrong() {
    let pages = class().get();
    let faults = [Fault::Lost, Fault::Astray(4096), Fault::Astray(pages), Fault::Astray(2 * pages)];
    sweep(&faults, |rig, _| read_all(rig));
}

/// A tier with segment 0, and the number of the next call.
fn prepared(dir: &Path) -> u64 {
    let plan = Plan::default();
    let rig = broken(dir, &plan).expect("opens");
    assert_eq!(rig.create(0), Ok(()));
    drop(rig);
    let plan = Plan::default();
    drop(broken(dir, &plan).expect("opens"));
    plan.calls()
}

const ONE: Block = Block { number: 1, generation: 1 };
const TWO: Block = Block { number: 2, generation: 2 };

#[test]
fn a_failed_sync_is_never_retried_into_an_acknowledgement() {
    let dir = quick_folder();
    let next = prepared(dir.path());
    // The write is call `next`, its sync the one after.
    let rig = broken(dir.path(), &Plan::once(next + 1, Fault::Fails(Errno::IO))).expect("opens");
    assert_eq!(rig.write(slot(0, 0), ONE, Ack::Durable), Err(WriteError::Poisoned(0)));
    assert_eq!(
        rig.write(slot(0, 1), TWO, Ack::Durable),
        Err(WriteError::Poisoned(0)),
        "the device is healthy again"
    );
    assert_eq!(rig.write(slot(0, 1), TWO, Ack::Written), Err(WriteError::Poisoned(0)));
    assert_eq!(rig.erase(slot(0, 1)), Err(WriteError::Poisoned(0)));
    assert_eq!(rig.read(slot(0, 0), ONE), Ok(()), "what it holds is served");
    assert_eq!(rig.create(0), Ok(()), "made anew it is as good as any");
    assert_eq!(rig.write(slot(0, 1), TWO, Ack::Durable), Ok(()));
}

#[test]
fn a_failed_write_closes_its_segment_and_no_other() {
    let dir = quick_folder();
    let next = prepared(dir.path());
    let rig = broken(dir.path(), &Plan::once(next, Fault::Torn(Errno::IO))).expect("opens");
    assert_eq!(rig.write(slot(0, 0), ONE, Ack::Written), Err(WriteError::Poisoned(0)));
    assert_eq!(rig.create(1), Ok(()));
    assert_eq!(rig.write(slot(1, 0), TWO, Ack::Durable), Ok(()));
    assert!(matches!(rig.read(slot(0, 0), ONE), Err(ReadError::Corrupt(Damage::Payload { .. }))), "torn");
}

#[test]
fn a_full_device_at_a_write_fails_that_write_alone() {
    let dir = quick_folder();
    let next = prepared(dir.path());
    let rig = broken(dir.path(), &Plan::once(next, Fault::Fails(Errno::NOSPC))).expect("opens");
    assert_eq!(rig.write(slot(0, 0), ONE, Ack::Durable), Err(WriteError::Full));
    assert_eq!(rig.write(slot(0, 0), ONE, Ack::Durable), Ok(()));
}

#[test]
fn a_read_that_fails_is_reported_for_its_block() {
    let dir = quick_folder();
    let next = prepared(dir.path());
    let rig = broken(dir.path(), &Plan::once(next + 1, Fault::Fails(Errno::IO))).expect("opens");
    assert_eq!(rig.write(slot(0, 0), ONE, Ack::Written), Ok(()));
    assert_eq!(rig.read(slot(0, 0), ONE), Err(ReadError::Io(IoFault::Os(Errno::IO))));
    assert_eq!(rig.read(slot(0, 0), ONE), Ok(()));
}

#[test]
fn a_full_file_system_is_said_so_and_what_is_stored_is_served() {
    let Some(small) = Mount::new("tmpfs", &format!("size={}", 3 * SEGMENT_BYTES)) else { return };
    let dir = small.path().join("tier");
    let rig = Rig::open(config(&dir));
    let made = (0..8).take_while(|&segment| rig.create(segment) == Ok(())).count() as u32;
    assert!((1..4).contains(&made), "{made} segments fit");
    assert_eq!(rig.create(made), Err(SegmentError::Full));
    assert_eq!(rig.write(slot(0, 0), ONE, Ack::Durable), Ok(()), "space was taken ahead");
    let names = std::fs::read_dir(&dir).expect("a folder").count();
    assert_eq!(names, made as usize, "no unfinished segment is left");
    drop(rig);
    let ballast = small.path().join("ballast");
    drop(std::fs::write(&ballast, vec![1; 4 * SEGMENT_BYTES as usize]).expect_err("full to the last page"));

    let rig = Rig::open(config(&dir));
    assert_eq!(rig.blocks(), [(slot(0, 0), ONE)], "opens on a full file system");
    assert_eq!(rig.read(slot(0, 0), ONE), Ok(()));
    assert_eq!(rig.write(slot(0, 1), TWO, Ack::Durable), Ok(()));
    std::fs::remove_file(&ballast).expect("was made");
    assert_eq!(rig.delete(0), Ok(()));
    assert_eq!(rig.create(made), Ok(()), "heals when there is room");
}
