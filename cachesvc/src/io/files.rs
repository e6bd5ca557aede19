//! The files that a device back end has open.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::io::{Caching, FileId, Open};

/// Open files by number, and how many operations each has in flight.
#[derive(Debug)]
pub(super) struct Files {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    caching: Caching,
}

#[derive(Debug)]
struct Entry {
    fd: Arc<OwnedFd>,
    in_flight: usize,
}

impl Files {
    pub(super) fn new(files_max: u32, caching: Caching) -> Self {
        let count = usize::try_from(files_max).expect("a file number fits a usize");
        let entries = std::iter::repeat_with(|| None).take(count).collect();
        Self { entries, free: (0..files_max).rev().collect(), caching }
    }

    pub(super) fn open(&mut self, path: &Path, open: Open) -> Result<FileId, Errno> {
        let file = FileId(*self.free.last().ok_or(Errno::MFILE)?);
        let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
        if open == Open::New {
            flags |= OFlags::CREATE | OFlags::EXCL;
        }
        if self.caching == Caching::Direct {
            flags |= OFlags::DIRECT;
        }
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = again(|| rustix::fs::open(path, flags, mode))?;
        self.free.pop();
        *self.slot(file) = Some(Entry { fd: Arc::new(fd), in_flight: 0 });
        Ok(file)
    }

    /// Takes the first `bytes`, or at least makes the file so long.
    pub(super) fn allocate(&self, file: FileId, bytes: u64) -> Result<(), Errno> {
        let fd = self.fd(file);
        match again(|| rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, bytes)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if self.bytes(file)? < bytes => {
                again(|| rustix::fs::ftruncate(fd, bytes))
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => other,
        }
    }

    pub(super) fn bytes(&self, file: FileId) -> Result<u64, Errno> {
        u64::try_from(rustix::fs::fstat(self.fd(file))?.st_size).map_err(|_| Errno::OVERFLOW)
    }

    pub(super) fn close(&mut self, file: FileId) {
        let entry = self.slot(file).take().expect("an open file");
        assert_eq!(entry.in_flight, 0, "a file is closed when nothing is in flight on it");
        self.free.push(file.0);
    }

    pub(super) fn fd(&self, file: FileId) -> BorrowedFd<'_> {
        self.shared_fd(file).as_fd()
    }

    /// The descriptor, for a thread that may outlive the table.
    pub(super) fn shared_fd(&self, file: FileId) -> &Arc<OwnedFd> {
        let at = usize::try_from(file.0).expect("a file number fits a usize");
        let entry = self.entries.get(at).and_then(Option::as_ref);
        &entry.expect("an open file").fd
    }

    pub(super) fn begin(&mut self, file: FileId) {
        self.slot(file).as_mut().expect("an open file").in_flight += 1;
    }

    pub(super) fn end(&mut self, file: FileId) {
        self.slot(file).as_mut().expect("an open file").in_flight -= 1;
    }

    fn slot(&mut self, file: FileId) -> &mut Option<Entry> {
        let at = usize::try_from(file.0).expect("a file number fits a usize");
        self.entries.get_mut(at).expect("a file number that was handed out")
    }
}

/// Repeats a call that a signal interrupted.
fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
