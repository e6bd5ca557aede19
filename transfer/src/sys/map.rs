//! Pages mapped into this process, unmapped on drop.

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::error::Error;
use crate::region::Access;

/// Page-aligned memory of this process: private, or shared through a descriptor it keeps open.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    access: Access,
    fd: Option<OwnedFd>,
}

// SAFETY: the mapping is plain memory that this value alone unmaps; nothing in it is tied to a thread.
// Concurrent access to the bytes goes through raw-pointer copies, never through references.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed private memory. `len` is a positive whole number of pages.
    pub(crate) fn private(len: usize) -> Result<Self, Error> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh anonymous mapping at an address the kernel picks touches no existing memory.
        let start = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE) }
            .map_err(Error::os("mmap"))?;
        Ok(Self::own(start, len, Access::ReadWrite, None))
    }

    /// The first `len` bytes behind `fd`, shared with everyone who maps it. The caller has checked that
    /// the descriptor holds that many bytes and is sealed against shrinking.
    pub(crate) fn shared(fd: OwnedFd, len: usize, access: Access) -> Result<Self, Error> {
        let prot = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: as in `private`: the kernel picks the address.
        let start = unsafe { mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }
            .map_err(Error::os("mmap"))?;
        Ok(Self::own(start, len, access, Some(fd)))
    }

    fn own(start: *mut c_void, len: usize, access: Access, fd: Option<OwnedFd>) -> Self {
        let start = NonNull::new(start.cast()).expect("mmap never succeeds with a null address");
        let mapping = Self { start, len, access, fd };
        // Huge pages are a gift, not a need: ~10 % on large copies where the kernel grants them.
        let _granted = mapping.advise(Advice::LinuxHugepage);
        mapping
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(OwnedFd::as_fd)
    }

    /// Has the kernel take and map every page now. False where it cannot (before Linux 5.14, or out of
    /// memory).
    pub(crate) fn populate_to_write(&self) -> bool {
        self.advise(Advice::LinuxPopulateWrite)
    }

    /// The same without making a page dirty.
    pub(crate) fn populate_to_read(&self) -> bool {
        self.advise(Advice::LinuxPopulateRead)
    }

    fn advise(&self, advice: Advice) -> bool {
        // SAFETY: the range is exactly the mapping, and no advice used here discards its contents.
        unsafe { mm::madvise(self.start.as_ptr().cast(), self.len, advice) }.is_ok()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` came from mmap and are unmapped once, here; every window onto the
        // mapping holds a count on its owner, so none is left.
        let unmapped = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    }
}
