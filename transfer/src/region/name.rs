//! What a region is called, here and on a wire.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;

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

/// What a region is called. A memfd carries it at the end of its name, so that an importer notices a
/// descriptor that came with the ticket of another region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: RegionId,
    pub(super) generation: Generation,
}

impl Identity {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = RegionId(NEXT.fetch_add(1, Ordering::Relaxed));
        Self { id, generation: process_generation() }
    }

    pub(super) fn memfd_name(self, name: &str) -> String {
        format!("{name}:{}:{}", self.id, self.generation)
    }

    pub(super) fn check_memfd(self, fd: &OwnedFd) -> Result<(), Error> {
        let link = rustix::fs::readlink(proc_path(fd.as_fd()), Vec::new())
            .map_err(Error::os("readlink(/proc/self/fd)"))?;
        let link = link.to_string_lossy();
        let unknown = Error::UnknownRegion { region: self.id };
        let Some(actual) = Self::of_memfd_link(&link) else { return Err(unknown) };
        match actual {
            _ if actual == self => Ok(()),
            Self { id, generation } if id == self.id => {
                Err(Error::WrongGeneration { region: self.id, stated: self.generation, actual: generation })
            }
            _ => Err(unknown),
        }
    }

    /// Reads `/memfd:NAME:ID:GENERATION (deleted)`.
    fn of_memfd_link(link: &str) -> Option<Self> {
        let name = link.strip_prefix("/memfd:")?;
        let name = name.strip_suffix(" (deleted)").unwrap_or(name);
        let (rest, generation) = name.rsplit_once(':')?;
        let (_, id) = rest.rsplit_once(':')?;
        Some(Self {
            id: RegionId(id.parse().ok()?),
            generation: Generation(u64::from_str_radix(generation, 16).ok()?),
        })
    }
}

/// Drawn once per process.
fn process_generation() -> Generation {
    static DRAWN: OnceLock<Generation> = OnceLock::new();
    *DRAWN.get_or_init(|| {
        let mut bytes = [0; 8];
        let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        assert_eq!(drawn, Ok(8), "the kernel always has eight random bytes after boot");
        Generation(u64::from_le_bytes(bytes))
    })
}

pub(super) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
