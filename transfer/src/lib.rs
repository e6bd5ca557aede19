//! Moves bytes between registered memory regions of two processes.
//!
//! It knows regions, offsets and lengths. It does not know what the bytes mean, runs no protocol of its
//! own and starts no thread: whoever owns a [`Transport`] posts to it, reaps it and tells it the time.
//!
//! # The types to know
//!
//! - [`Region`]: memory this process owns or has imported. [`Region::shared`] can be mapped by other
//!   processes of the host, [`Region::heap`] cannot. A [`RegionSlice`] is a bounds-checked window onto it
//!   that keeps it mapped.
//! - [`RegionTicket`]: how a region is named on a wire: id, generation, size. Never an address.
//! - [`RemoteRegion`]: a peer's region, imported from its ticket.
//! - [`Op`] and [`Batch`]: reads and writes between windows of both. A posted batch owns its buffers until
//!   it comes back in a [`Completion`].
//! - [`Transport`]: the seam. [`transport::shm`] copies with the poster's own CPU through memory that two
//!   processes map; [`transport::loopback`] is the reference and the model of faults.
//! - [`pick`]: from both sides' [`Caps`] and the operator's [`Setting`]s to one transport, with reasons.
//!
//! [`copy`] holds the copies that digest what they move; [`send_with_fds`] and [`recv_with_fds`] pass
//! descriptors over a unix socket.
//!
//! # On one host
//!
//! ```
//! use std::num::NonZeroUsize;
//! use hearth_transfer::{Access, Region, copy_in_digest, copy_out_digest};
//!
//! // The owner: memory, its name, and a descriptor to send beside the name.
//! let arena = Region::shared("arena", 1 << 20)?;
//! let export = arena.export(Access::Read)?;
//! let range = NonZeroUsize::new(4096).expect("positive");
//! let sealed = copy_in_digest(&arena.slice(8192..16384)?, &[7; 8192], range)?;
//!
//! // The importer, after `recv_with_fds`: map, copy and check in one pass.
//! let fd = export.fd.expect("shared memory has a descriptor");
//! let arena = Region::import(&export.ticket, fd, Access::Read)?;
//! let mut block = vec![0; 8192];
//! let landed = copy_out_digest(&mut block, &arena.slice(8192..16384)?, range)?;
//! assert_eq!(landed, sealed);
//! # Ok::<(), hearth_transfer::Error>(())
//! ```

#![deny(unsafe_code)]

mod caps;
pub mod copy;
mod error;
mod inflight;
mod op;
mod peer;
mod pick;
mod region;
mod remote;
#[expect(unsafe_code, reason = "mappings and copy loops; every other module is safe")]
mod sys;
pub mod transport;

pub use caps::{Caps, Limit, MemoryKinds, Reach, TransportKind};
pub use copy::{
    Stores, copy_digest, copy_digest_ranges, copy_in_digest, copy_out_digest, copy_out_digest_with, digest,
    digest_ranges,
};
pub use error::{Error, ErrorKind};
pub use op::{Batch, BatchId, Completion, Direction, Event, Op, OpDone, Refused, SEGMENTS_MAX};
pub use peer::{PEERS_MAX, PeerAddress, PeerId};
pub use pick::{Need, Offer, Pick, PickError, Setting, Verdict, pick};
pub use region::{
    Access, Export, Generation, MemoryKind, PAGE_BYTES, REGION_BYTES_MAX, Region, RegionId, RegionSlice,
    RegionTicket,
};
pub use remote::{RemoteRegion, RemoteSlice};
pub use sys::RawParts;
pub use sys::fds::{FDS_PER_MESSAGE_MAX, recv_with_fds, send_all_with_fds, send_with_fds};
pub use transport::Transport;
