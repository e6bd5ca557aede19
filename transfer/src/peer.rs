//! Who the other side is.

use std::fmt;
use std::os::fd::OwnedFd;

/// Most peers one transport keeps open.
pub const PEERS_MAX: usize = 1024;

/// A peer opened by one transport; means nothing to another, and is not given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub(crate) u64);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How a transport reaches a peer.
#[derive(Debug)]
pub enum PeerAddress {
    /// A connected unix socket to a process of this host. The transport only watches it for hang-up; its
    /// bytes belong to whoever shares the socket, so a duplicate of a protocol's own socket will do.
    Link(OwnedFd),
    /// A name or address in the transport's own form.
    Named(Vec<u8>),
}
