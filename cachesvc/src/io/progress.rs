//! What becomes of an operation that the system carried out in part, or not yet. Pure.

use hearth_transfer::RegionSlice;
use rustix::io::Errno;

use crate::io::{IO_ALIGN_BYTES, IoDone, IoFault, IoKind, IoOp};

/// How often in a row an operation is started anew without having moved a byte.
const RETRIES_MAX: u32 = 64;

/// An operation and how far it got.
#[derive(Debug)]
pub(super) struct Progress {
    op: IoOp,
    moved: usize,
    retries: u32,
}

/// What to do with an operation after the system answered.
#[derive(Debug)]
pub(super) enum Next {
    /// Start the rest.
    Again(Progress),
    /// It is over.
    Done(IoDone),
}

/// What is to be asked of the system.
#[derive(Debug)]
pub(super) enum Step {
    /// Fill these windows.
    Read { offset: u64, windows: Vec<RegionSlice> },
    /// Write these windows.
    Write { offset: u64, windows: Vec<RegionSlice> },
    /// Sync the file.
    Sync,
}

impl Progress {
    /// A new operation. Panics unless it is aligned and its windows can be filled, as [`super::BlockIo::submit`]
    /// says.
    pub(super) fn new(op: IoOp) -> Self {
        if let IoKind::Read { offset, into: buffers } | IoKind::Write { offset, from: buffers } = &op.kind {
            let fill = matches!(op.kind, IoKind::Read { .. });
            assert!(offset.is_multiple_of(IO_ALIGN_BYTES as u64), "a range starts at a page");
            assert!(!buffers.is_empty(), "an operation moves bytes");
            for window in buffers.iter() {
                let raw = window.raw();
                assert!(raw.ptr.addr().is_multiple_of(IO_ALIGN_BYTES), "a window starts at a page");
                assert!(raw.len.is_multiple_of(IO_ALIGN_BYTES), "a window is whole pages");
                assert!(!fill || window.is_writable(), "a window to be filled is writable");
            }
        }
        Self { op, moved: 0, retries: 0 }
    }

    pub(super) fn op(&self) -> &IoOp {
        &self.op
    }

    /// What remains to be done.
    pub(super) fn step(&self) -> Step {
        match &self.op.kind {
            IoKind::Read { offset, into } => {
                Step::Read { offset: offset + self.moved as u64, windows: into.after(self.moved) }
            }
            IoKind::Write { offset, from } => {
                Step::Write { offset: offset + self.moved as u64, windows: from.after(self.moved) }
            }
            IoKind::Sync => Step::Sync,
        }
    }

    /// What the system answered to the last [`Progress::step`]. A sync is never repeated: after a failure the kernel
    /// may have dropped the pages and call the next one a success.
    pub(super) fn after(mut self, answer: Result<usize, Errno>) -> Next {
        let total = match &self.op.kind {
            IoKind::Read { into: buffers, .. } | IoKind::Write { from: buffers, .. } => buffers.len(),
            IoKind::Sync => return self.done(answer.map(drop).map_err(IoFault::Os)),
        };
        let moved = match answer {
            Ok(moved) => moved,
            Err(Errno::INTR | Errno::AGAIN) if self.retries < RETRIES_MAX => 0,
            Err(errno) => return self.done(Err(IoFault::Os(errno))),
        };
        let interrupted = answer.is_err();
        let before = self.moved;
        self.moved = (before + moved).min(total);
        if self.moved == total {
            return self.done(Ok(()));
        }
        // The rest must start at a page again, so part of a page is moved twice.
        self.moved -= self.moved % IO_ALIGN_BYTES;
        if self.moved > before {
            self.retries = 0;
            return Next::Again(self);
        }
        if interrupted {
            self.retries += 1;
            return Next::Again(self);
        }
        let fault = match self.op.kind {
            IoKind::Read { .. } => IoFault::Short,
            _ => IoFault::Os(Errno::IO),
        };
        self.done(Err(fault))
    }

    fn done(self, result: Result<(), IoFault>) -> Next {
        Next::Done(IoDone { op: self.op, result })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Buffers, FileId, IoTag};
    use hearth_transfer::Region;

    fn op(kind: fn(Buffers) -> IoKind) -> Progress {
        let header = Region::heap(4096).expect("memory").whole();
        let payload = Region::heap(3 * 4096).expect("memory").whole();
        Progress::new(IoOp { tag: IoTag(1), file: FileId(0), kind: kind(Buffers::two(header, payload)) })
    }

    fn read(into: Buffers) -> IoKind {
        IoKind::Read { offset: 8192, into }
    }

    fn write(from: Buffers) -> IoKind {
        IoKind::Write { offset: 0, from }
    }

    fn again(next: Next) -> Progress {
        match next {
            Next::Again(progress) => progress,
            Next::Done(done) => panic!("ended with {:?}", done.result),
        }
    }

    fn result(next: Next) -> Result<(), IoFault> {
        match next {
            Next::Done(done) => done.result,
            Next::Again(_) => panic!("goes on"),
        }
    }

    #[test]
    fn a_short_transfer_goes_on_at_the_page_it_stopped_in() {
        let progress = again(op(read).after(Ok(4096 + 5000)));
        let Step::Read { offset, windows } = progress.step() else { panic!("a read") };
        assert_eq!((offset, windows.len(), windows[0].len()), (8192 + 8192, 1, 2 * 4096));
        assert_eq!(result(progress.after(Ok(2 * 4096))), Ok(()));
        let progress = again(op(read).after(Ok(4096)));
        assert_eq!(result(progress.after(Ok(100))), Err(IoFault::Short), "the end of the file");
        assert_eq!(result(op(read).after(Ok(0))), Err(IoFault::Short));
        assert_eq!(result(op(write).after(Ok(0))), Err(IoFault::Os(Errno::IO)));
    }

    #[test]
    fn interruptions_are_repeated_but_not_for_ever() {
        let mut progress = op(write);
        for _ in 0..RETRIES_MAX {
            progress = again(progress.after(Err(Errno::INTR)));
        }
        assert_eq!(result(progress.after(Err(Errno::AGAIN))), Err(IoFault::Os(Errno::AGAIN)));
        assert_eq!(result(op(write).after(Err(Errno::NOSPC))), Err(IoFault::Os(Errno::NOSPC)));
    }

    #[test]
    fn a_sync_is_never_repeated() {
        let sync = || Progress::new(IoOp { tag: IoTag(1), file: FileId(0), kind: IoKind::Sync });
        for errno in [Errno::INTR, Errno::AGAIN, Errno::IO] {
            assert_eq!(result(sync().after(Err(errno))), Err(IoFault::Os(errno)));
        }
        assert_eq!(result(sync().after(Ok(0))), Ok(()));
    }
}
