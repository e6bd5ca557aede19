//! Registered memory: who owns it, how it is named, and bounds-checked windows onto it.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Bound, RangeBounds};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use crate::error::Error;
use crate::sys::map::Mapping;

/// Regions start and end on multiples of this many bytes.
pub const PAGE_BYTES: usize = 4096;

/// Largest region, so that sizes named by a peer cannot overflow a length.
pub const REGION_BYTES_MAX: u64 = 1 << 46;

/// Names a region within the process that owns it. Never reused while that process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub u64);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Tells a region from one of the same id in an earlier life of its owner: drawn at random once per
/// process, so that a ticket kept across a restart is refused instead of naming other memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a mapping of a region allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only; stores are refused.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// Where the bytes of a region live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryKind {
    /// Private memory of this process.
    Host,
    /// Memory behind a sealed memfd, mappable by other processes of this host.
    HostShared,
    /// Memory of an accelerator.
    Device,
}

/// How a region is named to a peer. Plain data, safe to put on a wire: no field is an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegionTicket {
    /// The region's id at its owner.
    pub id: RegionId,
    /// The owner's generation.
    pub generation: Generation,
    /// Bytes of the region.
    pub bytes: u64,
    /// What one transport needs beside the name, such as a remote key. Empty for shared memory.
    pub transport: Vec<u8>,
}

/// A ticket, and the descriptor that travels beside it where the memory is mappable.
#[derive(Debug)]
pub struct Export {
    /// The name.
    pub ticket: RegionTicket,
    /// The memory, for a peer on this host.
    pub fd: Option<OwnedFd>,
}

/// Memory that can take part in transfers. A cheap handle: clones name the same memory, which is
/// unmapped when the last handle and the last [`RegionSlice`] onto it are gone.
#[derive(Clone, Debug)]
pub struct Region {
    memory: Arc<Memory>,
}

impl Region {
    /// Zeroed memory that other processes of this host can map: a memfd named `name` (shown in
    /// `/proc/PID/maps`), sealed against resizing. `bytes` is rounded up to whole pages; no page is taken
    /// until touched, see [`Region::prefault`].
    ///
    /// # Errors
    /// [`Error::Empty`] for no bytes, [`Error::OutOfBounds`] above [`REGION_BYTES_MAX`], [`Error::Os`]
    /// when the kernel refuses.
    pub fn shared(name: &str, bytes: usize) -> Result<Self, Error> {
        let len = whole_pages(bytes)?;
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(Error::os("memfd_create"))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(Error::os("ftruncate"))?;
        rustix::fs::fcntl_add_seals(&fd, SIZE_SEALS | SealFlags::SEAL).map_err(Error::os("F_ADD_SEALS"))?;
        let mapping = Mapping::shared(fd, len, Access::ReadWrite)?;
        Ok(Self::owned(mapping, MemoryKind::HostShared))
    }

    /// Zeroed page-aligned memory of this process. `bytes` is rounded up to whole pages.
    ///
    /// # Errors
    /// As [`Region::shared`].
    pub fn heap(bytes: usize) -> Result<Self, Error> {
        let mapping = Mapping::private(whole_pages(bytes)?)?;
        Ok(Self::owned(mapping, MemoryKind::Host))
    }

    fn owned(mapping: Mapping, kind: MemoryKind) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = RegionId(NEXT.fetch_add(1, Ordering::Relaxed));
        Self { memory: Arc::new(Memory { mapping, id, generation: process_generation(), kind }) }
    }

    /// Maps a peer's shared region from its ticket and descriptor, after checking that the descriptor is
    /// of the stated size and can never change it: touching the mapping cannot raise SIGBUS, whatever
    /// the peer does.
    ///
    /// # Errors
    /// [`Error::Unsealed`] and [`Error::SizeMismatch`] for a descriptor that does not keep what its
    /// ticket says, [`Error::Os`] when it cannot be mapped with this access.
    pub fn import(ticket: &RegionTicket, fd: OwnedFd, access: Access) -> Result<Self, Error> {
        let region = ticket.id;
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_not_a_memfd| Error::Unsealed { region })?;
        if !seals.contains(SIZE_SEALS) {
            return Err(Error::Unsealed { region });
        }
        let stat = rustix::fs::fstat(&fd).map_err(Error::os("fstat"))?;
        let actual = u64::try_from(stat.st_size).unwrap_or(0);
        if actual != ticket.bytes {
            return Err(Error::SizeMismatch { region, stated: ticket.bytes, actual });
        }
        let len = usize::try_from(actual).unwrap_or(usize::MAX);
        let mapping = Mapping::shared(fd, whole_pages(len)?, access)?;
        let (id, generation) = (ticket.id, ticket.generation);
        let memory = Memory { mapping, id, generation, kind: MemoryKind::HostShared };
        Ok(Self { memory: Arc::new(memory) })
    }

    /// Name and descriptor for a peer of this host. The descriptor is opened anew with `access`; a peer
    /// that runs as the same user can still widen it, so `Access::Read` guards against mistakes, and
    /// only a different user id guards against malice.
    ///
    /// # Errors
    /// [`Error::NotShared`] for private memory, [`Error::Os`] when no descriptor can be opened.
    pub fn export(&self, access: Access) -> Result<Export, Error> {
        let Some(fd) = self.memory.mapping.fd() else {
            return Err(Error::NotShared { region: self.id() });
        };
        let fd = match access {
            Access::ReadWrite => rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(Error::os("F_DUPFD"))?,
            Access::Read => {
                use std::os::fd::AsRawFd;
                let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
                rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(Error::os("open(/proc/self/fd)"))?
            }
        };
        Ok(Export { ticket: self.ticket(), fd: Some(fd) })
    }

    /// The region's name, with no transport-specific part.
    #[must_use]
    pub fn ticket(&self) -> RegionTicket {
        RegionTicket {
            id: self.id(),
            generation: self.generation(),
            bytes: self.len() as u64,
            transport: Vec::new(),
        }
    }

    /// The id, at the owner.
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.memory.id
    }

    /// The owner's generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.memory.generation
    }

    /// Where the bytes live.
    #[must_use]
    pub fn kind(&self) -> MemoryKind {
        self.memory.kind
    }

    /// What this mapping allows.
    #[must_use]
    pub fn access(&self) -> Access {
        self.memory.mapping.access()
    }

    /// Bytes of the region; never none.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.mapping.len()
    }

    /// The whole region as a window.
    #[must_use]
    pub fn whole(&self) -> RegionSlice {
        RegionSlice { memory: Arc::clone(&self.memory), offset: 0, len: self.len() }
    }

    /// A window onto `range`, in bytes.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<RegionSlice, Error> {
        let (start, end) = checked(range, self.len())?;
        Ok(RegionSlice { memory: Arc::clone(&self.memory), offset: start, len: end - start })
    }

    /// Takes and maps every page now, so that no first touch is paid later (0.3 to 2 s for 512 MiB once,
    /// against a fault per 4 KiB on the hot path). Blocks meanwhile. Kernels before 5.14 cannot, and go
    /// on without.
    pub fn prefault(&self) {
        if !self.memory.mapping.populate() {
            tracing::debug!(region = %self.id(), bytes = self.len(), "pages are taken at first touch");
        }
    }
}

/// A bounds-checked window onto a [`Region`]. It keeps the memory mapped while it lives, even when every
/// `Region` handle is gone, so it can stand behind an operation in flight.
///
/// Other processes may write shared memory at any time; therefore the bytes are copied in and out, and
/// no safe reference into them is handed out.
#[derive(Clone, Debug)]
pub struct RegionSlice {
    memory: Arc<Memory>,
    offset: usize,
    len: usize,
}

impl RegionSlice {
    /// Bytes of the window.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the window has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the window starts in its region, in bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The id of its region, at the owner.
    #[must_use]
    pub fn region_id(&self) -> RegionId {
        self.memory.id
    }

    /// Where the bytes live.
    #[must_use]
    pub fn kind(&self) -> MemoryKind {
        self.memory.kind
    }

    /// Whether the window may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.memory.mapping.access() == Access::ReadWrite
    }

    /// A window inside this one; `range` counts from its first byte.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<Self, Error> {
        let (start, end) = checked(range, self.len)?;
        Ok(Self { memory: Arc::clone(&self.memory), offset: self.offset + start, len: end - start })
    }

    /// The window cut into pieces of `range_bytes`; the last may be shorter.
    pub(crate) fn ranges(&self, range_bytes: NonZeroUsize) -> impl Iterator<Item = Self> {
        (0..self.len).step_by(range_bytes.get()).map(move |start| Self {
            memory: Arc::clone(&self.memory),
            offset: self.offset + start,
            len: range_bytes.get().min(self.len - start),
        })
    }

    /// Copies `src` into the window.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] unless both are of one length, [`Error::ReadOnly`].
    pub fn copy_from(&self, src: &[u8]) -> Result<(), Error> {
        self.check_write(src.len())?;
        self.write_bytes(src);
        Ok(())
    }

    /// Copies the window into `dst`.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] unless both are of one length.
    pub fn copy_to(&self, dst: &mut [u8]) -> Result<(), Error> {
        self.check_read(dst.len())?;
        self.read_bytes(dst);
        Ok(())
    }

    /// Sets each byte of the window.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub fn fill(&self, byte: u8) -> Result<(), Error> {
        self.check_write(self.len)?;
        self.fill_bytes(byte);
        Ok(())
    }

    /// The window's bytes in a new vector.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read_bytes(&mut bytes);
        bytes
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn check_write(&self, src: usize) -> Result<(), Error> {
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        if src != self.len {
            return Err(Error::LengthMismatch { src, dst: self.len });
        }
        Ok(())
    }

    pub(crate) fn check_read(&self, dst: usize) -> Result<(), Error> {
        if dst != self.len {
            return Err(Error::LengthMismatch { src: self.len, dst });
        }
        Ok(())
    }
}

/// The memory behind the handles and windows of one region.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: Mapping,
    id: RegionId,
    generation: Generation,
    kind: MemoryKind,
}

impl Memory {
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

fn whole_pages(bytes: usize) -> Result<usize, Error> {
    if bytes == 0 {
        return Err(Error::Empty);
    }
    if bytes as u64 > REGION_BYTES_MAX {
        return Err(Error::OutOfBounds { start: 0, end: bytes as u64, len: REGION_BYTES_MAX });
    }
    Ok(bytes.next_multiple_of(PAGE_BYTES))
}

fn checked(range: impl RangeBounds<usize>, len: usize) -> Result<(usize, usize), Error> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    if start > end || end > len {
        return Err(Error::OutOfBounds { start: start as u64, end: end as u64, len: len as u64 });
    }
    Ok((start, end))
}

fn process_generation() -> Generation {
    static DRAWN: OnceLock<Generation> = OnceLock::new();
    *DRAWN.get_or_init(|| {
        let mut bytes = [0; 8];
        let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        assert_eq!(drawn, Ok(8), "the kernel always has eight random bytes after boot");
        Generation(u64::from_le_bytes(bytes))
    })
}
