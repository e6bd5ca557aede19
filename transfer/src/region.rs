//! Registered memory: who owns it, and what may be done with it.

mod name;
mod slice;

use std::ops::RangeBounds;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

pub use self::name::{Generation, RegionId, RegionTicket};
use self::name::{Identity, proc_path};
pub use self::slice::RegionSlice;
pub(crate) use self::slice::checked;
use crate::error::Error;
use crate::sys::map::Mapping;

/// Regions start and end on multiples of this many bytes.
pub const PAGE_BYTES: usize = 4096;

/// Largest region, so that sizes named by a peer cannot overflow a length.
pub const REGION_BYTES_MAX: u64 = 1 << 46;

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
        let identity = Identity::next();
        let name = identity.memfd_name(name);
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(Error::os("memfd_create"))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(Error::os("ftruncate"))?;
        rustix::fs::fcntl_add_seals(&fd, SIZE_SEALS | SealFlags::SEAL).map_err(Error::os("F_ADD_SEALS"))?;
        let mapping = Mapping::shared(fd, len, Access::ReadWrite)?;
        Ok(Self::own(mapping, identity, MemoryKind::HostShared))
    }

    /// Zeroed page-aligned memory of this process. `bytes` is rounded up to whole pages.
    ///
    /// # Errors
    /// As [`Region::shared`].
    pub fn heap(bytes: usize) -> Result<Self, Error> {
        let mapping = Mapping::private(whole_pages(bytes)?)?;
        Ok(Self::own(mapping, Identity::next(), MemoryKind::Host))
    }

    fn own(mapping: Mapping, identity: Identity, kind: MemoryKind) -> Self {
        Self { memory: Arc::new(Memory { mapping, identity, kind, imported: false }) }
    }

    /// Maps a peer's shared region from its ticket and descriptor, after checking that the descriptor
    /// belongs to the ticket, is of the stated size and can never change it: touching the mapping cannot
    /// raise SIGBUS, whatever the peer does.
    ///
    /// # Errors
    /// [`Error::WrongGeneration`], [`Error::UnknownRegion`], [`Error::Unsealed`] and [`Error::SizeMismatch`] for a descriptor that does not keep what its
    /// ticket says, [`Error::Os`] when it cannot be mapped with this access.
    pub fn import(ticket: &RegionTicket, fd: OwnedFd, access: Access) -> Result<Self, Error> {
        let region = ticket.id;
        let identity = Identity { id: ticket.id, generation: ticket.generation };
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_not_a_memfd| Error::Unsealed { region })?;
        if !seals.contains(SIZE_SEALS) {
            return Err(Error::Unsealed { region });
        }
        let stat = rustix::fs::fstat(&fd).map_err(Error::os("fstat"))?;
        let actual = u64::try_from(stat.st_size).unwrap_or(0);
        if actual != ticket.bytes {
            return Err(Error::SizeMismatch { region, stated: ticket.bytes, actual });
        }
        identity.check_memfd(&fd)?;
        let len = usize::try_from(actual).unwrap_or(usize::MAX);
        let mapping = Mapping::shared(fd, whole_pages(len)?, access)?;
        Ok(Self {
            memory: Arc::new(Memory { mapping, identity, kind: MemoryKind::HostShared, imported: true }),
        })
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
            Access::Read => rustix::fs::open(proc_path(fd), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(Error::os("open(/proc/self/fd)"))?,
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
        self.memory.identity.id
    }

    /// The owner's generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.memory.identity.generation
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
        RegionSlice::whole(Arc::clone(&self.memory))
    }

    /// A window onto `range`, in bytes.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<RegionSlice, Error> {
        self.whole().slice(range)
    }

    /// Takes and maps every page now, so that no first touch is paid later (0.3 to 2 s for 512 MiB once,
    /// against a fault per 4 KiB on the hot path). Blocks meanwhile. Kernels before 5.14 cannot, and go
    /// on without.
    pub fn prefault(&self) {
        // An importer only looks: it must not make the owner's untouched pages dirty.
        let populated = match (self.access(), self.memory.imported) {
            (Access::ReadWrite, false) => self.memory.mapping.populate_to_write(),
            (Access::Read, _) | (_, true) => self.memory.mapping.populate_to_read(),
        };
        if !populated {
            tracing::debug!(region = %self.id(), bytes = self.len(), "pages are taken at first touch");
        }
    }
}

/// The memory behind the handles and windows of one region.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: Mapping,
    identity: Identity,
    kind: MemoryKind,
    imported: bool,
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

#[cfg(test)]
mod tests;
