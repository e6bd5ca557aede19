//! Block device I/O, as the NVMe tier uses it: aligned reads, writes and syncs on files, many in flight.
//!
//! Two implementations of one seam, [`BlockIo`]: [`uring`] (io_uring, `O_DIRECT`, registered files) and [`psync`]
//! (`preadv`/`pwritev` on a few threads; `O_DIRECT` where the file system takes it, else through the page cache).
//! [`open`] probes the machine and picks. `fault` wraps either and breaks it on purpose, for tests.
//!
//! Buffers are windows of registered memory ([`RegionSlice`]). An operation owns its buffers until its completion was
//! reaped, so no memory is reused under a transfer; an implementation that is dropped waits for what is in flight, and
//! keeps for ever what does not end in time.

use std::fmt;
use std::path::{Path, PathBuf};
use std::task::Waker;
use std::time::Duration;

use hearth_transfer::RegionSlice;
use rustix::io::Errno;
use thiserror::Error;

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod fault;
mod files;
#[cfg(test)]
pub(crate) mod mount;
mod pick;
mod progress;
pub mod psync;
pub mod uring;

pub use pick::open;

/// Offsets, lengths and addresses of all operations are multiples of this.
pub const IO_ALIGN_BYTES: usize = 4096;

/// Most operations in flight that a configuration may ask for.
pub const QUEUE_DEPTH_MAX: u32 = 1024;

/// How a device is to be driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IoMode {
    /// io_uring where kernel and file system allow, else threads; the choice and its reason are reported.
    #[default]
    Auto,
    /// io_uring with `O_DIRECT`, or an error.
    Uring,
    /// Threads, with `O_DIRECT` where the file system takes it.
    Psync,
}

/// What was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// io_uring.
    Uring,
    /// `preadv` and `pwritev` on threads.
    Psync,
}

impl Backend {
    /// Name, as a label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Psync => "psync",
        }
    }
}

/// Whether the page cache is passed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caching {
    /// `O_DIRECT`: transfers go between the buffers and the device.
    Direct,
    /// Through the page cache.
    Buffered,
}

impl Caching {
    /// Name, as a label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Buffered => "buffered",
        }
    }
}

/// Which implementation runs, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoPick {
    /// The implementation.
    pub backend: Backend,
    /// Whether it passes the page cache by.
    pub caching: Caching,
    /// Why not io_uring with `O_DIRECT`, when that was not what was asked for.
    pub refused: Option<Refusal>,
}

impl fmt::Display for IoPick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.backend.as_str(), self.caching.as_str())?;
        match &self.refused {
            Some(refused) => write!(f, " ({refused})"),
            None => Ok(()),
        }
    }
}

/// Why a way of doing I/O is not available here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The kernel or its seccomp filter refuses a ring.
    #[error("io_uring is refused by the kernel or a seccomp filter: {0}")]
    Ring(Errno),
    /// The kernel's io_uring is too old.
    #[error("the kernel's io_uring lacks {0}")]
    Feature(&'static str),
    /// The file system refuses `O_DIRECT`, at open or at the first transfer.
    #[error("the file system refuses O_DIRECT: {0}")]
    Direct(Errno),
}

impl Refusal {
    /// Name, as a label value.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ring(_) => "ring_refused",
            Self::Feature(_) => "ring_too_old",
            Self::Direct(_) => "direct_refused",
        }
    }
}

/// What to open.
#[derive(Clone, Debug)]
pub struct IoConfig {
    /// How.
    pub mode: IoMode,
    /// Folder of the files, where the probe writes.
    pub dir: PathBuf,
    /// Operations in flight at most, 1 to [`QUEUE_DEPTH_MAX`].
    pub queue_depth: u32,
    /// Files open at most.
    pub files_max: u32,
}

/// No way to do I/O in a folder.
#[derive(Debug, Error)]
pub enum IoOpenError {
    /// What was asked for is not available.
    #[error("I/O mode uring is required, but {0}; use auto or psync")]
    Required(#[source] Refusal),
    /// Not even plain files work.
    #[error("{path} cannot be written and read back: {errno}; check permissions and free space", path = .path.display())]
    Probe {
        /// The probe file.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
    /// A probe read back other bytes than it wrote.
    #[error("{path} did not read back what was written to it: the device or file system is broken", path = .0.display())]
    Mismatch(PathBuf),
}

/// Names an open file within one [`BlockIo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must exist.
    Existing,
    /// It must not exist.
    New,
}

/// Names an operation to whoever submitted it; returned with the completion, not interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoTag(pub u64);

/// Most windows of one operation: a header and a payload.
pub const BUFFERS_MAX: usize = 2;

/// The windows of one operation, in file order.
#[derive(Clone, Debug)]
pub struct Buffers {
    first: RegionSlice,
    second: Option<RegionSlice>,
}

impl Buffers {
    /// One window.
    #[must_use]
    pub fn one(window: RegionSlice) -> Self {
        Self { first: window, second: None }
    }

    /// Two windows.
    #[must_use]
    pub fn two(first: RegionSlice, second: RegionSlice) -> Self {
        Self { first, second: Some(second) }
    }

    /// The windows.
    pub fn iter(&self) -> impl Iterator<Item = &RegionSlice> {
        std::iter::once(&self.first).chain(&self.second)
    }

    /// The first window.
    #[must_use]
    pub fn first(&self) -> &RegionSlice {
        &self.first
    }

    /// The second window, if there is one.
    #[must_use]
    pub fn second(&self) -> Option<&RegionSlice> {
        self.second.as_ref()
    }

    /// Bytes of all windows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().map(RegionSlice::len).sum()
    }

    /// Whether there is nothing to transfer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The windows without their first `bytes`: what remains of a transfer that was cut short.
    #[must_use]
    pub fn after(&self, bytes: usize) -> Vec<RegionSlice> {
        let mut skip = bytes;
        let mut rest = Vec::with_capacity(BUFFERS_MAX);
        for window in self.iter() {
            let cut = skip.min(window.len());
            skip -= cut;
            if cut < window.len() {
                rest.push(window.slice(cut..).expect("within the window"));
            }
        }
        rest
    }
}

/// What to do.
#[derive(Clone, Debug)]
pub enum IoKind {
    /// Fill the windows from the file, from `offset` on.
    Read {
        /// First byte in the file.
        offset: u64,
        /// Where to.
        into: Buffers,
    },
    /// Write the windows to the file, from `offset` on.
    Write {
        /// First byte in the file.
        offset: u64,
        /// Where from. Nobody changes these bytes until the completion.
        from: Buffers,
    },
    /// Make everything durable whose completion was reaped before this was submitted (`fdatasync`).
    Sync,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct IoOp {
    /// The submitter's name for it.
    pub tag: IoTag,
    /// On which file.
    pub file: FileId,
    /// What.
    pub kind: IoKind,
}

/// Why an operation failed. A write that failed may have landed in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IoFault {
    /// The system refused or failed.
    #[error("{0}")]
    Os(Errno),
    /// The file ends before the range.
    #[error("the file ends before the range that was asked for")]
    Short,
}

/// A completion: the operation with its buffers, and how it went. Ok means every byte.
#[derive(Debug)]
pub struct IoDone {
    /// The operation.
    pub op: IoOp,
    /// How it went.
    pub result: Result<(), IoFault>,
}

/// How long to wait for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Take what is there.
    Poll,
    /// Until a completion or a wake-up, at most so long.
    For(Duration),
    /// Until a completion or a wake-up.
    Forever,
}

/// Files of one folder, with many operations in flight. Used by one thread.
///
/// Operations run in any order. Who needs one after the other waits for the first completion.
pub trait BlockIo: Send {
    /// What this is.
    fn pick(&self) -> &IoPick;

    /// Opens a file for reading and writing. Blocks.
    ///
    /// # Errors
    /// What the system said; `EMFILE` when `files_max` are open.
    fn open(&mut self, path: &Path, open: Open) -> Result<FileId, Errno>;

    /// Takes device space for the first `bytes` of a file and makes it at least so long. Blocks. Where the file system
    /// cannot take space ahead, the file is made so long all the same and a write may find the device full.
    ///
    /// # Errors
    /// `ENOSPC`, `EDQUOT` or `EFBIG` when there is no room.
    fn allocate(&mut self, file: FileId, bytes: u64) -> Result<(), Errno>;

    /// Bytes of a file.
    ///
    /// # Errors
    /// What the system said.
    fn file_bytes(&self, file: FileId) -> Result<u64, Errno>;

    /// Closes a file. Panics when an operation on it is in flight.
    fn close(&mut self, file: FileId);

    /// Starts an operation, at the latest with the next [`BlockIo::reap`], or gives it back when `queue_depth` are in
    /// flight. Panics when a range, address or length
    /// is not aligned to [`IO_ALIGN_BYTES`], a window to be filled is read-only, or the file is not open.
    ///
    /// # Errors
    /// The operation, when the queue is full.
    fn submit(&mut self, op: IoOp) -> Result<(), IoOp>;

    /// Appends the completions that are there, after waiting as told. Returns early, with none, when woken.
    fn reap(&mut self, done: &mut Vec<IoDone>, wait: Wait);

    /// Operations whose completion was not reaped.
    fn in_flight(&self) -> usize;

    /// Ends a [`BlockIo::reap`] that waits, now or the next time, from any thread.
    fn waker(&self) -> Waker;
}
