//! What can go wrong, sorted by what the caller does next.

use std::io;

use crate::caps::TransportKind;
use crate::peer::PeerId;
use crate::region::{Generation, RegionId};

/// What the caller does next about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Nothing is broken: the same call may succeed later.
    Retry,
    /// The peer is gone or no longer what it was: open it again and import its regions anew.
    Reconnect,
    /// This machine or this peer cannot do it. Another path may.
    GiveUp,
    /// The call is wrong, here or at the peer. Repeating it gives the same answer.
    Misuse,
}

/// Every error of this crate. Match on [`Error::kind`]; the variants are for messages and tests.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A range reaches outside the memory it was taken from.
    #[error("bytes {start}..{end} lie outside the {len} bytes they are taken from; pass a range inside them")]
    OutOfBounds {
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Bytes there are.
        len: u64,
    },
    /// Source and destination differ in length.
    #[error("source has {src} bytes and destination has {dst}; make them equal")]
    LengthMismatch {
        /// Bytes of the source.
        src: usize,
        /// Bytes of the destination.
        dst: usize,
    },
    /// A write to memory that was imported for reading.
    #[error("the region was imported for reading only; import it with Access::ReadWrite to write")]
    ReadOnly,
    /// A region of no bytes.
    #[error("a region needs at least one byte; ask for a positive size")]
    Empty,
    /// The region has no descriptor that another process could map.
    #[error("region {region} is private memory; create it with Region::shared to export it")]
    NotShared {
        /// The region.
        region: RegionId,
    },
    /// A descriptor that is not a memfd, or lacks the seals that keep its size.
    #[error(
        "the descriptor of region {region} can still be resized by its owner, so mapping it could kill this \
         process; the owner must seal it against shrinking and growing"
    )]
    Unsealed {
        /// The region.
        region: RegionId,
    },
    /// A descriptor whose real size is not the size its ticket states.
    #[error(
        "the descriptor of region {region} holds {actual} bytes where its ticket says {stated}; \
         fetch the ticket and descriptor again"
    )]
    SizeMismatch {
        /// The region.
        region: RegionId,
        /// Bytes the ticket states.
        stated: u64,
        /// Bytes the descriptor has.
        actual: u64,
    },
    /// More descriptors than one message may carry.
    #[error("one message carries at most {max} descriptors; send them in several messages")]
    TooManyDescriptors {
        /// The bound.
        max: usize,
    },
    /// A system call failed.
    #[error("{call} failed: {source}")]
    Os {
        /// The call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// No region of this name is registered with the owner.
    #[error("region {region} is not registered with its owner; ask the owner for a fresh ticket")]
    UnknownRegion {
        /// The region.
        region: RegionId,
    },
    /// The region's name has been given to other memory since the ticket was made.
    #[error("region {region} is of generation {actual}, not {stated}; ask the owner for a fresh ticket")]
    WrongGeneration {
        /// The region.
        region: RegionId,
        /// The generation asked for.
        stated: Generation,
        /// The generation the owner has.
        actual: Generation,
    },
    /// A batch of no operations.
    #[error("a batch needs at least one operation")]
    EmptyBatch,
    /// A batch that could never be posted.
    #[error("a batch of {ops} operations exceeds the {max} that may be in flight; split it")]
    BatchTooLarge {
        /// Operations of the batch.
        ops: usize,
        /// Operations in flight per peer.
        max: u32,
    },
    /// An operation of too many pieces.
    #[error("an operation of {segments} local segments exceeds the {max} it may have; split it")]
    TooManySegments {
        /// Segments of the operation.
        segments: usize,
        /// The bound.
        max: usize,
    },
    /// The bound of operations in flight is reached.
    #[error("{max} operations to this peer are in flight; reap completions, then post again")]
    Busy {
        /// Operations in flight per peer.
        max: u32,
    },
    /// The deadline passed before the operation came to rest.
    #[error("the deadline passed before the bytes had landed; use nothing of the destination")]
    Expired,
    /// The operation failed on its way.
    #[error("{transport} failed to carry the operation out; post it again")]
    Failed {
        /// The transport.
        transport: TransportKind,
    },
    /// The peer has died or closed its side.
    #[error("peer {peer} is gone; open it again and import its regions anew")]
    PeerGone {
        /// The peer.
        peer: PeerId,
    },
    /// No such peer is open, or an operation of a batch names another one.
    #[error("peer {peer} is not open here or not the one the operation names; open it first")]
    UnknownPeer {
        /// The peer.
        peer: PeerId,
    },
    /// Too many peers.
    #[error("{max} peers are open; close one first")]
    TooManyPeers {
        /// The bound.
        max: usize,
    },
    /// An address of another transport.
    #[error("this transport opens a peer by {expected}")]
    WrongAddress {
        /// What it takes.
        expected: &'static str,
    },
    /// Nobody answers at the address.
    #[error("nobody answers at this address; check that the peer runs, then try again")]
    Unreachable,
}

impl Error {
    /// What to do next.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfBounds { .. }
            | Self::LengthMismatch { .. }
            | Self::ReadOnly
            | Self::Empty
            | Self::NotShared { .. }
            | Self::TooManyDescriptors { .. }
            | Self::EmptyBatch
            | Self::BatchTooLarge { .. }
            | Self::TooManySegments { .. }
            | Self::UnknownPeer { .. }
            | Self::TooManyPeers { .. }
            | Self::WrongAddress { .. } => ErrorKind::Misuse,
            Self::Unsealed { .. } => ErrorKind::GiveUp,
            Self::Busy { .. } | Self::Expired | Self::Failed { .. } | Self::Unreachable => ErrorKind::Retry,
            Self::SizeMismatch { .. }
            | Self::UnknownRegion { .. }
            | Self::WrongGeneration { .. }
            | Self::PeerGone { .. } => ErrorKind::Reconnect,
            Self::Os { source, .. } => kind_of_os(source.kind()),
        }
    }

    pub(crate) fn os(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Os { call, source: errno.into() }
    }
}

fn kind_of_os(kind: io::ErrorKind) -> ErrorKind {
    match kind {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::OutOfMemory => {
            ErrorKind::Retry
        }
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => {
            ErrorKind::Reconnect
        }
        _ => ErrorKind::GiveUp,
    }
}
