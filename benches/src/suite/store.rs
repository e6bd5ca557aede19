//! Loads and writes between two processes of one host: through the connector, and through peers.
//!
//! The work of a round: a client asks a server in another process for runs of [`RUN_BLOCKS`] blocks and
//! has the bytes in memory of its own, at scattered places, when it is done. `limit:memcpy` moves the
//! same bytes inside one process, one thread, and asks nobody.
//!
//! Expectation: verified loads of 1 MiB at 1.3 times `limit:memcpy` or more (a copy that bypasses the
//! cache, fused with its checksum); the ask costs one message each way per run, some 20 us against
//! some 3 ms of copying. Peers move each byte through a socket, twice or more.

use std::cell::RefCell;
use std::rc::Rc;

use crate::case::Case;
use crate::memory::{self, Walk};
use crate::setting::Setting;
use crate::suite::Suite;
use crate::system::{Entry, Failure};

mod hearth;
mod limit;
mod mooncake;
mod redis;

/// The suite.
pub(super) const SUITE: Suite =
    Suite { name: "store", about: "blocks between a client and a store process on one host", cases };

const KIB: usize = 1 << 10;
/// Blocks that are asked for together, as for the prompt of one request.
const RUN_BLOCKS: usize = 32;

fn cases(setting: &Setting) -> Vec<Case> {
    vec![
        load("load_64KiB", 64 * KIB, setting),
        load("load_256KiB", 256 * KIB, setting),
        load("load_1MiB", 1024 * KIB, setting),
        load("load_4MiB", 4096 * KIB, setting),
        write("write_1MiB", 1024 * KIB, setting),
    ]
}

fn load(name: &'static str, block_bytes: usize, setting: &Setting) -> Case {
    let shape = Shape::new(block_bytes, setting);
    let pages: Pages = Rc::default();
    let node: hearth::SharedNode = Rc::default();
    let at = |how: hearth::Load| {
        let (pages, node) = (Rc::clone(&pages), Rc::clone(&node));
        move || hearth::load(shape, &node, pages, how)
    };
    let (for_limit, for_redis) = (Rc::clone(&pages), Rc::clone(&pages));
    Case {
        name,
        about: about(shape),
        baseline: "limit:memcpy",
        systems: vec![
            Entry::new("limit:memcpy", move || limit::copy(shape, for_limit)),
            Entry::new("hearth", at(hearth::Load::Copy)),
            Entry::new("hearth:lease", at(hearth::Load::InPlace)),
            Entry::new("redis", move || redis::load(shape, for_redis)),
            Entry::new("mooncake", move || mooncake::open(shape, mooncake::Work::Load)),
        ],
    }
}

fn write(name: &'static str, block_bytes: usize, setting: &Setting) -> Case {
    let shape = Shape::new(block_bytes, setting);
    let pages: Pages = Rc::default();
    let (for_limit, for_hearth, for_redis) = (Rc::clone(&pages), Rc::clone(&pages), Rc::clone(&pages));
    Case {
        name,
        about: about(shape),
        baseline: "limit:memcpy",
        systems: vec![
            Entry::new("limit:memcpy", move || limit::copy(shape, for_limit)),
            Entry::new("hearth", move || hearth::write(shape, for_hearth)),
            Entry::new("redis", move || redis::write(shape, for_redis)),
            Entry::new("mooncake", move || mooncake::open(shape, mooncake::Work::Write)),
        ],
    }
}

fn about(shape: Shape) -> String {
    format!("one client thread, runs of {RUN_BLOCKS} blocks, working set {} MiB", shape.bytes() >> 20)
}

/// Sizes of a case.
#[derive(Debug, Clone, Copy)]
struct Shape {
    block_bytes: usize,
    runs: usize,
    round_runs: usize,
}

impl Shape {
    fn new(block_bytes: usize, setting: &Setting) -> Self {
        let runs = |bytes: usize| (bytes / block_bytes / RUN_BLOCKS).max(1);
        Self { block_bytes, runs: runs(setting.working_set_bytes), round_runs: runs(setting.round_bytes) }
    }

    fn blocks(&self) -> usize {
        self.runs * RUN_BLOCKS
    }

    fn bytes(&self) -> usize {
        self.blocks() * self.block_bytes
    }

    fn round_bytes(&self) -> usize {
        self.round_runs * RUN_BLOCKS * self.block_bytes
    }
}

/// The pages of an engine: where loads land and writes come from. Shared by the systems of a case.
type Pages = Rc<RefCell<Vec<u8>>>;

/// Pages with every byte touched; the first caller fills them.
fn touch(pages: &Pages, shape: Shape) {
    if pages.borrow().is_empty() {
        *pages.borrow_mut() = memory::touched(shape.blocks(), shape.block_bytes);
    }
}

/// Which run comes next, and at which pages its blocks land.
struct Turn {
    run: Walk,
    page: Walk,
}

impl Turn {
    fn new(shape: Shape) -> Self {
        Self { run: Walk::new(shape.runs, 1), page: Walk::new(shape.blocks(), 2) }
    }
}

/// Whether a page holds the block of that number.
fn check(page: &[u8], number: usize) -> Result<(), Failure> {
    if memory::holds(page, number) { Ok(()) } else { Err(Failure::WrongBytes { block: number }) }
}
