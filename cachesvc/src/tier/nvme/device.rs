//! The device as a tier uses it: many operations in flight, and now and then one that is waited for.

use std::collections::VecDeque;
use std::task::Waker;

use hearth_proto::header::HEADER_BYTES;
use hearth_transfer::{Region, RegionSlice};
use rustix::io::Errno;

use crate::io::{BlockIo, FileId, IoDone, IoFault, IoKind, IoOp, IoPick, IoTag, Wait};

/// Block I/O, with tags given out and completions kept that came while another was waited for.
pub(super) struct Device {
    io: Box<dyn BlockIo>,
    queue_depth: usize,
    next_tag: u64,
    /// Completions that were reaped while waiting for another one; at most `queue_depth`.
    early: VecDeque<IoDone>,
}

impl Device {
    pub(super) fn new(io: Box<dyn BlockIo>, queue_depth: u32) -> Self {
        let queue_depth = usize::try_from(queue_depth).expect("a depth fits a usize");
        Self { io, queue_depth, next_tag: 0, early: VecDeque::new() }
    }

    /// The seam below, for opening and closing files.
    pub(super) fn io(&mut self) -> &mut dyn BlockIo {
        &mut *self.io
    }

    pub(super) fn pick(&self) -> &IoPick {
        self.io.pick()
    }

    pub(super) fn waker(&self) -> Waker {
        self.io.waker()
    }

    pub(super) fn queue_depth(&self) -> usize {
        self.queue_depth
    }

    /// Operations in flight, or completed and not yet taken.
    pub(super) fn outstanding(&self) -> usize {
        self.io.in_flight() + self.early.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.outstanding() < self.queue_depth
    }

    /// Starts an operation. Panics without room.
    pub(super) fn start(&mut self, file: FileId, kind: IoKind) -> IoTag {
        let tag = self.tag();
        let taken = self.io.submit(IoOp { tag, file, kind });
        assert!(taken.is_ok(), "who starts an operation made sure that there is room");
        tag
    }

    /// Takes completions, waiting as told when there are none.
    pub(super) fn reap(&mut self, done: &mut Vec<IoDone>, wait: Wait) {
        let wait = if self.early.is_empty() { wait } else { Wait::Poll };
        done.extend(self.early.drain(..));
        self.io.reap(done, wait);
    }

    /// Carries out one operation. Blocks.
    pub(super) fn run(&mut self, file: FileId, kind: IoKind) -> Result<(), IoFault> {
        let tag = self.tag();
        let mut op = IoOp { tag, file, kind };
        while let Err(refused) = self.io.submit(op) {
            op = refused;
            self.wait_for(None);
        }
        self.wait_for(Some(tag)).expect("waited for until it is there")
    }

    /// Waits for the completion of `tag`, or for any one, and keeps the others.
    fn wait_for(&mut self, tag: Option<IoTag>) -> Option<Result<(), IoFault>> {
        loop {
            let mut done = Vec::new();
            self.io.reap(&mut done, Wait::Forever);
            let any = !done.is_empty();
            let mut wanted = None;
            for completion in done {
                if Some(completion.op.tag) == tag {
                    wanted = Some(completion.result);
                } else {
                    self.early.push_back(completion);
                }
            }
            if wanted.is_some() || (tag.is_none() && any) {
                return wanted;
            }
        }
    }

    fn tag(&mut self) -> IoTag {
        self.next_tag += 1;
        IoTag(self.next_tag)
    }
}

/// Pages for headers on their way to and from the device.
pub(super) struct Pages {
    free: Vec<RegionSlice>,
}

impl Pages {
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn new(count: usize) -> Result<Self, Errno> {
        let memory = Region::heap(count.max(1) * HEADER_BYTES).map_err(|_| Errno::NOMEM)?;
        let page =
            |i: usize| memory.slice(i * HEADER_BYTES..(i + 1) * HEADER_BYTES).expect("within the region");
        Ok(Self { free: (0..count).map(page).collect() })
    }

    /// Takes a page. Its bytes are those of its last use.
    pub(super) fn take(&mut self) -> Option<RegionSlice> {
        self.free.pop()
    }

    pub(super) fn give(&mut self, page: RegionSlice) {
        self.free.push(page);
    }
}

/// The bytes of a page.
pub(super) fn page_bytes(page: &RegionSlice) -> Box<[u8; HEADER_BYTES]> {
    let mut bytes = Box::new([0; HEADER_BYTES]);
    page.copy_to(&mut bytes[..]).expect("a page has the bytes of a header");
    bytes
}
