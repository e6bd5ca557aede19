//! A peer's registered memory, named and never addressed.

use std::ops::RangeBounds;

use crate::error::Error;
use crate::peer::PeerId;
use crate::region::{Access, Generation, Region, RegionId, RegionSlice, RegionTicket, checked};

/// A peer's region as this process may use it.
#[derive(Clone, Debug)]
pub struct RemoteRegion {
    peer: PeerId,
    ticket: RegionTicket,
    access: Access,
    direct: Option<Region>,
}

impl RemoteRegion {
    pub(crate) fn named(peer: PeerId, ticket: RegionTicket, access: Access) -> Self {
        Self { peer, ticket, access, direct: None }
    }

    pub(crate) fn mapped(peer: PeerId, ticket: RegionTicket, region: Region) -> Self {
        Self { peer, ticket, access: region.access(), direct: Some(region) }
    }

    /// The peer that owns it.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Its name.
    #[must_use]
    pub fn ticket(&self) -> &RegionTicket {
        &self.ticket
    }

    /// Where this CPU can address the peer's memory, that memory: copy from or to it in the calling
    /// thread, with no post and no reap. The mapping outlives the peer; whether its bytes still mean
    /// anything is the caller's protocol to know.
    #[must_use]
    pub fn direct(&self) -> Option<&Region> {
        self.direct.as_ref()
    }

    /// A window onto `range`, in bytes.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] against the size its ticket states; the owner checks again.
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<RemoteSlice, Error> {
        let (start, end) = checked(range, self.ticket.bytes, |at| at)?;
        let direct = match &self.direct {
            Some(region) => Some(region.slice(as_usize(start)?..as_usize(end)?)?),
            None => None,
        };
        Ok(RemoteSlice {
            peer: self.peer,
            region: self.ticket.id,
            generation: self.ticket.generation,
            access: self.access,
            offset: start,
            len: as_usize(end - start)?,
            direct,
        })
    }
}

/// A window onto a peer's region: the far end of an operation.
#[derive(Clone, Debug)]
pub struct RemoteSlice {
    peer: PeerId,
    region: RegionId,
    generation: Generation,
    access: Access,
    offset: u64,
    len: usize,
    direct: Option<RegionSlice>,
}

impl RemoteSlice {
    /// The peer that owns it.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The region it lies in.
    #[must_use]
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The generation its ticket stated.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What this process was granted.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Where it starts in its region, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

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

    pub(crate) fn direct(&self) -> Option<&RegionSlice> {
        self.direct.as_ref()
    }
}

fn as_usize(bytes: u64) -> Result<usize, Error> {
    usize::try_from(bytes).map_err(|_too_large| Error::OutOfBounds {
        start: 0,
        end: bytes,
        len: usize::MAX as u64,
    })
}
