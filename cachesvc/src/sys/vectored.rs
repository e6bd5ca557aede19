//! Reads and writes between a file and windows of registered memory.
//!
//! The windows keep their memory mapped for the length of the call. Other processes may write shared windows
//! meanwhile; the kernel copies whatever is there, and no Rust reference into the memory exists.

use std::os::fd::{AsRawFd, BorrowedFd};

use hearth_transfer::RegionSlice;
use rustix::io::Errno;

/// Fills the windows from `offset` on and says how many bytes it was, which may be fewer. Blocks.
pub(crate) fn read_at(fd: BorrowedFd<'_>, windows: &[RegionSlice], offset: u64) -> Result<usize, Errno> {
    assert!(windows.iter().all(RegionSlice::is_writable), "a window to be filled is writable");
    let iovecs = iovecs(windows);
    let (count, offset) = arguments(&iovecs, offset)?;
    // SAFETY: every iovec is a window of a live mapping that `windows` keeps mapped, writable as asserted.
    let moved = unsafe { libc::preadv(fd.as_raw_fd(), iovecs.as_ptr(), count, offset) };
    outcome(moved)
}

/// Writes the windows from `offset` on and says how many bytes it was, which may be fewer. Blocks.
pub(crate) fn write_at(fd: BorrowedFd<'_>, windows: &[RegionSlice], offset: u64) -> Result<usize, Errno> {
    let iovecs = iovecs(windows);
    let (count, offset) = arguments(&iovecs, offset)?;
    // SAFETY: every iovec is a window of a live mapping that `windows` keeps mapped; the call only reads it.
    let moved = unsafe { libc::pwritev(fd.as_raw_fd(), iovecs.as_ptr(), count, offset) };
    outcome(moved)
}

/// Addresses and lengths for the kernel. Valid while the windows, or clones of them, live.
pub(crate) fn iovecs(windows: &[RegionSlice]) -> Vec<libc::iovec> {
    let parts = windows.iter().map(RegionSlice::raw);
    parts.map(|raw| libc::iovec { iov_base: raw.ptr.cast(), iov_len: raw.len }).collect()
}

fn arguments(iovecs: &[libc::iovec], offset: u64) -> Result<(libc::c_int, libc::off_t), Errno> {
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| Errno::INVAL)?;
    Ok((count, libc::off_t::try_from(offset).map_err(|_| Errno::INVAL)?))
}

fn outcome(moved: isize) -> Result<usize, Errno> {
    usize::try_from(moved)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
