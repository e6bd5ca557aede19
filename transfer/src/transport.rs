//! The seam between what moves bytes and what wants them moved.

pub mod loopback;
pub mod shm;

use std::time::Instant;

use crate::caps::Caps;
use crate::error::Error;
use crate::op::{Batch, BatchId, Event, Refused};
use crate::peer::{PeerAddress, PeerId};
use crate::region::{Access, Export, Region, RegionId};
use crate::remote::RemoteRegion;

/// One way to move bytes between registered regions. One thread owns a transport, posts to it and reaps
/// it; no call waits for a peer.
///
/// The caller passes a `now` that never goes back and reaps until it has seen [`Event::Completed`] for
/// every batch it posted. An implementation keeps these rules, and `tests/conformance.rs` holds it to
/// them:
///
/// - A posted batch completes exactly once, with every operation and its buffers, or stays in flight
///   until its peer is closed. Nothing touches the buffers after that.
/// - A batch that does not complete by its deadline is reported [`Event::Expired`] once, at the first
///   reap at or after it; operations that come to rest later do so with [`Error::Expired`].
/// - One bad operation fails alone.
/// - At most [`Caps::inflight_ops_max`] operations per peer are in flight, expired ones included. More
///   are refused with [`Error::Busy`], and the batch comes back.
/// - A peer that dies is reported [`Event::PeerGone`] once; everything posted to it completes.
/// - What a peer names (region, generation, offset, length) is checked by the owner or, where the
///   importer reaches the memory itself, at import. Nothing a peer says makes this process panic.
pub trait Transport: Send {
    /// What this side can do.
    fn caps(&self) -> Caps;

    /// Offers `region` to peers and returns what they import it by. Offering it again changes what is
    /// granted.
    ///
    /// # Errors
    /// [`Error::NotShared`] when the transport cannot offer this kind of memory, [`Error::Os`].
    fn register(&mut self, region: &Region, grant: Access) -> Result<Export, Error>;

    /// Withdraws the offer. Operations of peers that arrive later are refused where the owner serves
    /// them; a peer that has mapped the memory keeps its mapping, and the memory lives as long.
    fn deregister(&mut self, region: RegionId);

    /// Starts to talk to a peer.
    ///
    /// # Errors
    /// [`Error::WrongAddress`] for an address of another transport, [`Error::TooManyPeers`],
    /// [`Error::Unreachable`].
    fn open_peer(&mut self, address: PeerAddress) -> Result<PeerId, Error>;

    /// Makes a peer's region usable here.
    ///
    /// # Errors
    /// Those of [`Region::import`] where the memory is mapped, [`Error::UnknownPeer`].
    fn import(&mut self, peer: PeerId, export: Export, access: Access) -> Result<RemoteRegion, Error>;

    /// Starts the operations of `batch`, or gives it back.
    ///
    /// # Errors
    /// [`Refused`] with [`Error::Busy`], [`Error::PeerGone`], [`Error::UnknownPeer`],
    /// [`Error::BatchTooLarge`] or [`Error::EmptyBatch`].
    fn post(&mut self, batch: Batch, now: Instant) -> Result<BatchId, Refused>;

    /// Appends to `events` what has happened by `now`.
    fn reap(&mut self, now: Instant, events: &mut Vec<Event>);

    /// Ends talking to a peer: once nothing touches the buffers, what was posted to it completes with
    /// [`Error::PeerGone`] and is reaped as usual.
    fn close(&mut self, peer: PeerId);
}
