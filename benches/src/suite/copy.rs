//! What moving a block costs on this machine: plain, out of shared memory, with its checksum.
//!
//! Expectation: a verified copy (`hearth`) of 1 MiB and more at 1.3 times `limit:memcpy` where the
//! stores can bypass the cache, because glibc reads each destination line before it writes it;
//! copying first and checking then (`hearth:two-pass`) costs the second read.

use std::cell::{OnceCell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::time::Instant;

use hearth_transfer::{Region, Stores, copy_out_digest_with};

use crate::case::Case;
use crate::memory::{self, Walk};
use crate::setting::Setting;
use crate::suite::Suite;
use crate::system::{Doing, Entry, Failure, Sample, System};

/// The suite.
pub(super) const SUITE: Suite =
    Suite { name: "copy", about: "one thread, scattered blocks, out of memory into memory", cases };

const KIB: usize = 1 << 10;
/// Sizes and their published names.
const SIZES: &[(&str, usize)] = &[
    ("copy_64KiB", 64 * KIB),
    ("copy_256KiB", 256 * KIB),
    ("copy_1MiB", 1024 * KIB),
    ("copy_4MiB", 4096 * KIB),
];
/// Bytes under one checksum.
const RANGE_BYTES: NonZeroUsize = NonZeroUsize::new(64 * KIB).expect("positive");

fn cases(setting: &Setting) -> Vec<Case> {
    SIZES.iter().map(|(name, block_bytes)| case(name, *block_bytes, setting)).collect()
}

fn case(name: &'static str, block_bytes: usize, setting: &Setting) -> Case {
    let shape = Shape {
        block_bytes,
        blocks: setting.working_set_bytes / block_bytes,
        round_blocks: setting.round_bytes / block_bytes,
    };
    let memory: Rc<Memory> = Rc::default();
    let entry = |name, how| {
        let memory = Rc::clone(&memory);
        Entry::new(name, move || Ok(Box::new(Copier::open(shape, memory, how)?)))
    };
    Case {
        name,
        about: format!("one thread, working set {} MiB", setting.working_set_bytes >> 20),
        baseline: "limit:memcpy",
        systems: vec![
            entry("limit:memcpy", How::PrivatePlain),
            entry("limit:memcpy-memfd", How::Plain),
            entry("hearth", How::Digest(Stores::for_bytes(block_bytes))),
            entry("hearth:cached", How::Digest(Stores::Cached)),
            entry("hearth:streaming", How::Digest(Stores::Streaming)),
            entry("hearth:two-pass", How::TwoPass),
        ],
    }
}

/// Sizes of a case.
#[derive(Debug, Clone, Copy)]
struct Shape {
    block_bytes: usize,
    blocks: usize,
    round_blocks: usize,
}

/// The working set that all systems of a case share, filled by the first that needs it.
#[derive(Default)]
struct Memory {
    private: OnceCell<Vec<u8>>,
    shared: OnceCell<Region>,
    target: RefCell<Vec<u8>>,
}

impl Memory {
    fn fill(&self, shape: Shape, how: How) -> Result<(), Failure> {
        if self.target.borrow().is_empty() {
            *self.target.borrow_mut() = memory::touched(shape.blocks, shape.block_bytes);
        }
        if matches!(how, How::PrivatePlain) {
            self.private.get_or_init(|| memory::touched(shape.blocks, shape.block_bytes));
        } else if self.shared.get().is_none() {
            let _first = self.shared.set(shared(shape)?);
        }
        Ok(())
    }
}

fn shared(shape: Shape) -> Result<Region, Failure> {
    let region =
        Region::shared("hearth-bench", shape.blocks * shape.block_bytes).doing("taking shared memory")?;
    region.prefault();
    let mut block = vec![0; shape.block_bytes];
    for number in 0..shape.blocks {
        memory::fill(&mut block, number);
        let at = number * shape.block_bytes;
        let slot = region.slice(at..at + shape.block_bytes).doing("finding a block")?;
        slot.copy_from(&block).doing("filling a block")?;
    }
    Ok(region)
}

/// How a system copies.
#[derive(Debug, Clone, Copy)]
enum How {
    /// From private memory, as memcpy does.
    PrivatePlain,
    /// From shared memory, as memcpy does.
    Plain,
    /// From shared memory, with the checksum in the same pass.
    Digest(Stores),
    /// From shared memory, as memcpy does, and the checksum of the copy after it.
    TwoPass,
}

struct Copier {
    shape: Shape,
    memory: Rc<Memory>,
    how: How,
    from: Walk,
    to: Walk,
}

impl Copier {
    /// Proves one copy before any is timed.
    fn open(shape: Shape, memory: Rc<Memory>, how: How) -> Result<Self, Failure> {
        memory.fill(shape, how)?;
        let (from, to) = (Walk::new(shape.blocks, 1), Walk::new(shape.blocks, 2));
        let copier = Self { shape, memory, how, from, to };
        let last = shape.blocks - 1;
        copier.copy(last, 0)?;
        if !memory::holds(&copier.memory.target.borrow()[..shape.block_bytes], last) {
            return Err(Failure::WrongBytes { block: last });
        }
        Ok(copier)
    }

    fn copy(&self, from: usize, to: usize) -> Result<(), Failure> {
        let bytes = self.shape.block_bytes;
        let mut target = self.memory.target.borrow_mut();
        let target = &mut target[to * bytes..][..bytes];
        if let How::PrivatePlain = self.how {
            let source = self.memory.private.get().expect("filled at open");
            target.copy_from_slice(&source[from * bytes..][..bytes]);
            return Ok(());
        }
        let region = self.memory.shared.get().expect("filled at open");
        let source = region.slice(from * bytes..(from + 1) * bytes).doing("finding a block")?;
        if let How::Digest(stores) = self.how {
            let digests = copy_out_digest_with(target, &source, RANGE_BYTES, stores).doing("copying")?;
            std::hint::black_box(digests);
            return Ok(());
        }
        source.copy_to(target).doing("copying")?;
        if let How::TwoPass = self.how {
            std::hint::black_box(crc32fast::hash(target));
        }
        Ok(())
    }
}

impl System for Copier {
    fn run_once(&mut self) -> Result<Vec<Sample>, Failure> {
        let start = Instant::now();
        for _ in 0..self.shape.round_blocks {
            let (from, to) = (self.from.step(), self.to.step());
            self.copy(from, to)?;
        }
        let bytes = self.shape.round_blocks * self.shape.block_bytes;
        Ok(vec![Sample::rate(bytes, start.elapsed())])
    }
}
