//! One suite for every implementation of the seam, on every kind of file system that the machine offers.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use hearth_transfer::{Region, RegionSlice};
use rustix::io::Errno;
use tempfile::TempDir;

use super::*;
use crate::io::psync::{Psync, PsyncConfig};
use crate::io::uring::Uring;

const PAGE: usize = IO_ALIGN_BYTES;
const DEPTH: u32 = 6;
const FILES_MAX: u32 = 4;

type Make = fn() -> Box<dyn BlockIo>;

fn uring() -> Box<dyn BlockIo> {
    Box::new(Uring::new(DEPTH, FILES_MAX).expect("a ring"))
}

fn psync(caching: Caching) -> Box<dyn BlockIo> {
    let config = PsyncConfig { caching, queue_depth: DEPTH, files_max: FILES_MAX };
    Box::new(Psync::new(config).expect("threads"))
}

fn faultless() -> Box<dyn BlockIo> {
    Box::new(fault::FaultIo::new(psync(Caching::Buffered), fault::Plan::default()))
}

/// Runs the suite on a disk and, where there is one, on memory. On memory `O_DIRECT` checks nothing, so the disk is
/// what counts for alignment.
fn on_each_file_system(make: Make) {
    let binary = std::env::current_exe().expect("a test binary");
    let disk = tempfile::tempdir_in(binary.parent().expect("in a folder")).expect("a folder");
    suite(make, &disk);
    match tempfile::tempdir_in("/dev/shm") {
        Ok(memory) => suite(make, &memory),
        Err(error) => eprintln!("skipped on tmpfs: {error}"),
    }
}

fn suite(make: Make, dir: &TempDir) {
    let cases: [fn(&mut dyn BlockIo, &Path); 6] =
        [moves_bytes, bounds_the_queue, tells_the_end, opens_and_closes, takes_space, wakes];
    for (number, case) in cases.into_iter().enumerate() {
        let path = dir.path().join(number.to_string());
        case(&mut *make(), &path);
    }
    finishes_before_it_is_gone(make(), &dir.path().join("drop"));
}

#[test]
fn uring_conforms() {
    match Uring::new(DEPTH, FILES_MAX) {
        Ok(_) => on_each_file_system(uring),
        Err(refusal) => eprintln!("skipped: {refusal}"),
    }
}

#[test]
fn psync_conforms() {
    on_each_file_system(|| psync(Caching::Direct));
    on_each_file_system(|| psync(Caching::Buffered));
}

#[test]
fn the_test_double_conforms() {
    on_each_file_system(faultless);
}

/// Pages filled from `seed` on.
fn filled(pages: usize, seed: usize) -> RegionSlice {
    let window = Region::heap(pages * PAGE).expect("memory").whole();
    let bytes: Vec<u8> = (0..pages * PAGE).map(|i| ((i / 7 + i + seed * 31) % 253) as u8).collect();
    window.copy_from(&bytes).expect("of one length");
    window
}

fn empty(pages: usize) -> RegionSlice {
    Region::heap(pages * PAGE).expect("memory").whole()
}

fn write(page: usize, from: Buffers) -> IoKind {
    IoKind::Write { offset: (page * PAGE) as u64, from }
}

fn read(page: usize, into: Buffers) -> IoKind {
    IoKind::Read { offset: (page * PAGE) as u64, into }
}

/// Runs operations, as many at a time as go, and returns how each went.
fn run(io: &mut dyn BlockIo, file: FileId, kinds: Vec<IoKind>) -> Vec<Result<(), IoFault>> {
    let count = kinds.len();
    let mut results: Vec<Option<Result<(), IoFault>>> = vec![None; count];
    let mut waiting =
        kinds.into_iter().enumerate().map(|(i, kind)| IoOp { tag: IoTag(i as u64), file, kind });
    let mut next = waiting.next();
    let mut done = Vec::new();
    while results.iter().any(Option::is_none) {
        while let Some(op) = next.take() {
            match io.submit(op) {
                Ok(()) => next = waiting.next(),
                Err(op) => {
                    next = Some(op);
                    break;
                }
            }
        }
        io.reap(&mut done, Wait::Forever);
        for completion in done.drain(..) {
            let at = completion.op.tag.0 as usize;
            assert!(results[at].replace(completion.result).is_none(), "one completion per operation");
        }
    }
    assert_eq!(io.in_flight(), 0);
    results.into_iter().flatten().collect()
}

fn moves_bytes(io: &mut dyn BlockIo, path: &Path) {
    const BLOCKS: usize = 50;
    let file = io.open(path, Open::New).expect("opens");
    let payloads: Vec<_> = (0..BLOCKS).map(|i| (filled(1, i), filled(3, i + 1000))).collect();
    let writes = payloads.iter().enumerate();
    let writes =
        writes.map(|(i, (head, body))| write(4 * i, Buffers::two(head.clone(), body.clone()))).collect();
    assert!(run(io, file, writes).iter().all(Result::is_ok));
    assert_eq!(run(io, file, vec![IoKind::Sync, IoKind::Sync]), [Ok(()), Ok(())]);
    assert_eq!(io.file_bytes(file), Ok((4 * BLOCKS * PAGE) as u64));

    let landed: Vec<_> = (0..BLOCKS).map(|_| (empty(1), empty(3))).collect();
    let reads = landed.iter().enumerate();
    let reads =
        reads.map(|(i, (head, body))| read(4 * i, Buffers::two(head.clone(), body.clone()))).collect();
    assert!(run(io, file, reads).iter().all(Result::is_ok));
    for ((head, body), (head_read, body_read)) in payloads.iter().zip(&landed) {
        assert!(head.to_vec() == head_read.to_vec() && body.to_vec() == body_read.to_vec());
    }
    let whole = empty(4 * BLOCKS);
    assert_eq!(run(io, file, vec![read(0, Buffers::one(whole.clone()))]), [Ok(())]);
    let expected: Vec<u8> =
        payloads.iter().flat_map(|(head, body)| [head.to_vec(), body.to_vec()].concat()).collect();
    assert!(whole.to_vec() == expected, "the file is as the system sees it");
    assert!(std::fs::read(path).expect("a file") == expected);
    io.close(file);
}

fn bounds_the_queue(io: &mut dyn BlockIo, path: &Path) {
    let file = io.open(path, Open::New).expect("opens");
    for tag in 0..u64::from(DEPTH) {
        let op = IoOp { tag: IoTag(tag), file, kind: write(tag as usize, Buffers::one(filled(1, 0))) };
        assert!(io.submit(op).is_ok());
    }
    assert_eq!(io.in_flight(), DEPTH as usize);
    let refused = io.submit(IoOp { tag: IoTag(99), file, kind: IoKind::Sync });
    assert_eq!(refused.expect_err("full").tag, IoTag(99), "given back");
    let mut done = Vec::new();
    while io.in_flight() > 0 {
        io.reap(&mut done, Wait::For(Duration::from_secs(60)));
    }
    let tags: BTreeSet<_> = done.iter().map(|done| done.op.tag.0).collect();
    assert_eq!(tags, (0..u64::from(DEPTH)).collect());
    io.reap(&mut done, Wait::Poll);
    io.reap(&mut done, Wait::For(Duration::from_millis(1)));
    assert_eq!(done.len(), DEPTH as usize, "nothing comes from nothing");
    io.close(file);
}

fn tells_the_end(io: &mut dyn BlockIo, path: &Path) {
    let file = io.open(path, Open::New).expect("opens");
    assert_eq!(run(io, file, vec![write(0, Buffers::one(filled(2, 0)))]), [Ok(())]);
    let beyond = vec![
        read(2, Buffers::one(empty(1))),
        read(1, Buffers::one(empty(2))),
        read(0, Buffers::one(empty(2))),
    ];
    assert_eq!(run(io, file, beyond), [Err(IoFault::Short), Err(IoFault::Short), Ok(())]);
    io.close(file);
}

fn opens_and_closes(io: &mut dyn BlockIo, path: &Path) {
    assert_eq!(io.open(path, Open::Existing), Err(Errno::NOENT));
    let file = io.open(path, Open::New).expect("opens");
    assert_eq!(io.open(path, Open::New), Err(Errno::EXIST));
    let more: Vec<_> = (1..FILES_MAX).map(|_| io.open(path, Open::Existing).expect("opens")).collect();
    assert_eq!(io.open(path, Open::Existing), Err(Errno::MFILE));
    assert_eq!(run(io, file, vec![write(0, Buffers::one(filled(1, 5)))]), [Ok(())]);
    let landed = empty(1);
    assert_eq!(run(io, more[1], vec![read(0, Buffers::one(landed.clone()))]), [Ok(())]);
    assert_eq!(landed.to_vec(), filled(1, 5).to_vec(), "one file by two numbers");
    io.close(file);
    let again = io.open(path, Open::Existing).expect("a number is free again");
    assert_eq!(run(io, again, vec![read(0, Buffers::one(landed))]), [Ok(())]);
    for file in more.into_iter().chain([again]) {
        io.close(file);
    }
}

fn takes_space(io: &mut dyn BlockIo, path: &Path) {
    let file = io.open(path, Open::New).expect("opens");
    assert_eq!(io.allocate(file, 16 * PAGE as u64), Ok(()));
    assert_eq!(io.file_bytes(file), Ok(16 * PAGE as u64));
    let landed = filled(2, 1);
    assert_eq!(run(io, file, vec![read(14, Buffers::one(landed.clone()))]), [Ok(())]);
    assert!(landed.to_vec().iter().all(|byte| *byte == 0), "never written is zero");
    assert_eq!(io.allocate(file, PAGE as u64), Ok(()));
    assert_eq!(io.file_bytes(file), Ok(16 * PAGE as u64), "a file is not cut");
    assert!(matches!(io.allocate(file, 1 << 50), Err(Errno::NOSPC | Errno::FBIG)));
    io.close(file);
}

fn wakes(io: &mut dyn BlockIo, _path: &Path) {
    for _ in 0..100 {
        let waker = io.waker();
        let thread = std::thread::Builder::new().spawn(move || waker.wake()).expect("a thread");
        io.reap(&mut Vec::new(), Wait::Forever);
        thread.join().expect("no panic");
    }
    io.waker().wake_by_ref();
    io.waker().wake();
    io.reap(&mut Vec::new(), Wait::Forever);
}

fn finishes_before_it_is_gone(mut io: Box<dyn BlockIo>, path: &Path) {
    let file = io.open(path, Open::New).expect("opens");
    for page in 0..4 {
        let op = IoOp { tag: IoTag(0), file, kind: write(page, Buffers::one(filled(1, page))) };
        assert!(io.submit(op).is_ok());
    }
    drop(io);
    let expected: Vec<u8> = (0..4).flat_map(|page| filled(1, page).to_vec()).collect();
    assert!(std::fs::read(path).expect("a file") == expected);
}

#[test]
fn what_is_not_aligned_is_our_own_mistake() {
    let dir = tempfile::tempdir().expect("a folder");
    let wide = empty(3);
    let crooked = wide.slice(512..512 + PAGE).expect("within");
    let half = wide.slice(..2048).expect("within");
    let kinds = [
        IoKind::Read { offset: 512, into: Buffers::one(empty(1)) },
        IoKind::Write { offset: 0, from: Buffers::one(crooked) },
        IoKind::Write { offset: 0, from: Buffers::two(empty(1), half) },
    ];
    for kind in kinds {
        let path = dir.path().join("file");
        let submitted = std::panic::catch_unwind(|| {
            let mut io = psync(Caching::Buffered);
            let file = io.open(&path, Open::New).expect("opens");
            drop(io.submit(IoOp { tag: IoTag(0), file, kind }));
        });
        assert!(submitted.is_err());
        std::fs::remove_file(&path).expect("was made");
    }
}
