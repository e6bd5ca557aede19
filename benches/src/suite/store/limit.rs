//! What one thread can move at best: glibc memcpy between two private working sets.

use std::time::Instant;

use super::{Pages, RUN_BLOCKS, Shape, Turn, touch};
use crate::memory;
use crate::system::{Failure, Sample, System};

struct Copy {
    shape: Shape,
    source: Vec<u8>,
    pages: Pages,
    turn: Turn,
}

#[expect(clippy::unnecessary_wraps, reason = "opened like every other system")]
pub(super) fn copy(shape: Shape, pages: Pages) -> Result<Box<dyn System>, Failure> {
    touch(&pages, shape);
    let source = memory::touched(shape.blocks(), shape.block_bytes);
    Ok(Box::new(Copy { shape, source, pages, turn: Turn::new(shape) }))
}

impl System for Copy {
    fn run_once(&mut self) -> Result<Vec<Sample>, Failure> {
        let bytes = self.shape.block_bytes;
        let mut pages = self.pages.borrow_mut();
        let start = Instant::now();
        for _ in 0..self.shape.round_runs {
            let run = self.turn.run.step();
            for at in 0..RUN_BLOCKS {
                let (from, to) = (run * RUN_BLOCKS + at, self.turn.page.step());
                pages[to * bytes..][..bytes].copy_from_slice(&self.source[from * bytes..][..bytes]);
            }
        }
        Ok(vec![Sample::rate(self.shape.round_bytes(), start.elapsed())])
    }
}
