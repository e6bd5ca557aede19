//! Reads and writes, posted in batches. A posted operation owns its buffers until it is complete.

use std::num::NonZeroUsize;
use std::time::Instant;

use crate::copy::{copy_digest_ranges, copy_window, digest_ranges};
use crate::error::Error;
use crate::peer::PeerId;
use crate::region::{Access, RegionSlice};
use crate::remote::RemoteSlice;

/// Most local windows of one operation: a tensor-parallel slice of a block of a very deep model.
pub const SEGMENTS_MAX: usize = 1024;

/// Which way the bytes go, from the view of the side that posts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the peer's region into local memory.
    Read,
    /// From local memory into the peer's region.
    Write,
}

/// One transfer between a contiguous window of a peer's region and one or more local windows.
#[derive(Debug)]
pub struct Op {
    direction: Direction,
    remote: RemoteSlice,
    local: Segments,
    digest_range: Option<NonZeroUsize>,
}

#[derive(Debug)]
enum Segments {
    One(RegionSlice),
    Many(Vec<RegionSlice>),
}

impl Op {
    /// Reads `from` into `into`.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`], [`Error::TooManySegments`], [`Error::ReadOnly`] when `into` may not be
    /// written.
    pub fn read(from: RemoteSlice, into: RegionSlice) -> Result<Self, Error> {
        Self::checked(Direction::Read, from, Segments::One(into))
    }

    /// Reads `from` into several windows, filled in order.
    ///
    /// # Errors
    /// As [`Op::read`].
    pub fn read_scattered(from: RemoteSlice, into: Vec<RegionSlice>) -> Result<Self, Error> {
        Self::checked(Direction::Read, from, Segments::Many(into))
    }

    /// Writes `from` to `to`.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`], [`Error::ReadOnly`] when `to` was granted for reading.
    pub fn write(from: RegionSlice, to: RemoteSlice) -> Result<Self, Error> {
        Self::checked(Direction::Write, to, Segments::One(from))
    }

    /// Writes several windows, in order, to `to`.
    ///
    /// # Errors
    /// As [`Op::write`].
    pub fn write_gathered(from: Vec<RegionSlice>, to: RemoteSlice) -> Result<Self, Error> {
        Self::checked(Direction::Write, to, Segments::Many(from))
    }

    /// Asks for the CRC-32 of each `range_bytes` of what landed, counted anew from the start of each
    /// local segment. A scattered read thus digests each piece apart.
    #[must_use]
    pub fn digested(mut self, range_bytes: NonZeroUsize) -> Self {
        self.digest_range = Some(range_bytes);
        self
    }

    /// Which way the bytes go.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The far end.
    #[must_use]
    pub fn remote(&self) -> &RemoteSlice {
        &self.remote
    }

    /// The near end, in order.
    #[must_use]
    pub fn local(&self) -> &[RegionSlice] {
        match &self.local {
            Segments::One(slice) => std::slice::from_ref(slice),
            Segments::Many(slices) => slices,
        }
    }

    fn checked(direction: Direction, remote: RemoteSlice, local: Segments) -> Result<Self, Error> {
        let op = Self { direction, remote, local, digest_range: None };
        let segments = op.local().len();
        if segments > SEGMENTS_MAX {
            return Err(Error::TooManySegments { segments, max: SEGMENTS_MAX });
        }
        let local_bytes = op.local().iter().map(RegionSlice::len).fold(0, usize::saturating_add);
        let remote_bytes = op.remote.len();
        let (src, dst) = match direction {
            Direction::Read => (remote_bytes, local_bytes),
            Direction::Write => (local_bytes, remote_bytes),
        };
        if src != dst {
            return Err(Error::LengthMismatch { src, dst });
        }
        let writable = match direction {
            Direction::Read => op.local().iter().all(RegionSlice::is_writable),
            Direction::Write => op.remote.access() == Access::ReadWrite,
        };
        if writable { Ok(op) } else { Err(Error::ReadOnly) }
    }

    /// Carries the operation out with this CPU, against the far end as a local window.
    pub(crate) fn copy_with(&self, remote: &RegionSlice) -> Result<Vec<u32>, Error> {
        let mut digests = Vec::new();
        let mut done = 0;
        for local in self.local() {
            let remote = remote.slice(done..done + local.len())?;
            let (dst, src) = match self.direction {
                Direction::Read => (local, &remote),
                Direction::Write => (&remote, local),
            };
            match self.digest_range {
                Some(range) => digests.extend(copy_digest_ranges(dst, src, range)?),
                None => copy_window(dst, src)?,
            }
            done += local.len();
        }
        Ok(digests)
    }

    /// Digests the near end as asked, apart from the copy.
    pub(crate) fn digest_local(&self) -> Vec<u32> {
        let Some(range) = self.digest_range else { return Vec::new() };
        self.local().iter().flat_map(|local| digest_ranges(local, range)).collect()
    }
}

/// Operations posted together to one peer.
#[derive(Debug)]
pub struct Batch {
    /// The peer all of them go to.
    pub peer: PeerId,
    /// The operations. They may land in any order.
    pub ops: Vec<Op>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Handed back with each event of the batch; means nothing here.
    pub tag: u64,
}

/// Names a posted batch within its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub(crate) u64);

/// A batch that was not posted, given back whole.
#[derive(Debug, thiserror::Error)]
#[error("batch was not posted: {error}")]
pub struct Refused {
    /// The batch.
    pub batch: Batch,
    /// Why.
    #[source]
    pub error: Error,
}

/// What a transport reports.
#[derive(Debug)]
pub enum Event {
    /// Every operation of the batch has come to rest; the buffers are the caller's again.
    Completed(Completion),
    /// The deadline has passed. The caller can answer its own caller now; the buffers stay with the
    /// transport until [`Event::Completed`], because the device may still write them.
    Expired {
        /// The batch.
        batch: BatchId,
        /// Its tag.
        tag: u64,
    },
    /// The peer is gone. Its batches complete with [`Error::PeerGone`], and no more are taken.
    PeerGone(PeerId),
}

/// A batch at rest.
#[derive(Debug)]
pub struct Completion {
    /// The batch.
    pub batch: BatchId,
    /// Its tag.
    pub tag: u64,
    /// Its peer.
    pub peer: PeerId,
    /// Its operations, in the order posted.
    pub ops: Vec<OpDone>,
}

/// An operation at rest, with its buffers.
#[derive(Debug)]
pub struct OpDone {
    /// The operation.
    pub op: Op,
    /// The digests asked for, or why the bytes must not be used. After an error the destination may
    /// hold anything.
    pub result: Result<Vec<u32>, Error>,
}
