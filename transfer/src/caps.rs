//! What a transport can do, as data: probed at start, sent to the peer, intersected.

use std::fmt;

use crate::region::MemoryKind;

/// The transports there are, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TransportKind {
    /// Within one process.
    Loopback,
    /// Memory mapped by two processes of one host.
    Shm,
    /// RDMA verbs.
    Verbs,
    /// UCX, over whatever lanes it finds.
    Ucx,
    /// Plain sockets.
    Tcp,
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::Shm => "shm",
            Self::Verbs => "verbs",
            Self::Ucx => "ucx",
            Self::Tcp => "tcp",
        })
    }
}

/// How far away a peer is, or the farthest a transport goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// The same process.
    Process,
    /// Another process of this host.
    Host,
    /// Another host.
    Network,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "this process",
            Self::Host => "this host",
            Self::Network => "the network",
        })
    }
}

/// A bound that may be unknown, which is not the same as none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Nobody has said. Treat as the smallest useful value.
    Unknown,
    /// At most this many.
    Max(u64),
    /// As many as memory allows.
    Unlimited,
}

impl Limit {
    /// The tighter of two bounds. Unknown wins: it promises least.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Unlimited, limit) | (limit, Self::Unlimited) => limit,
            (Self::Max(a), Self::Max(b)) => Self::Max(a.min(b)),
        }
    }

    /// Whether `amount` is known to be within the bound.
    #[must_use]
    pub fn admits(self, amount: u64) -> bool {
        match self {
            Self::Unknown => amount <= 1,
            Self::Max(max) => amount <= max,
            Self::Unlimited => true,
        }
    }
}

/// Kinds of memory a transport moves bytes from and to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryKinds {
    /// [`MemoryKind::Host`].
    pub host: bool,
    /// [`MemoryKind::HostShared`].
    pub host_shared: bool,
    /// [`MemoryKind::Device`].
    pub device: bool,
}

impl MemoryKinds {
    /// Whether `kind` is among them.
    #[must_use]
    pub fn has(self, kind: MemoryKind) -> bool {
        match kind {
            MemoryKind::Host => self.host,
            MemoryKind::HostShared => self.host_shared,
            MemoryKind::Device => self.device,
        }
    }
}

/// What one side of a transport can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caps {
    /// Which transport this is about.
    pub kind: TransportKind,
    /// The farthest peer it reaches.
    pub reach: Reach,
    /// Memory it can use as the side that posts.
    pub local: MemoryKinds,
    /// Memory it can offer to a peer that posts.
    pub remote: MemoryKinds,
    /// One-sided reads.
    pub read: bool,
    /// One-sided writes.
    pub write: bool,
    /// Local segments in one operation.
    pub segments_max: Limit,
    /// Bytes in one operation.
    pub op_bytes_max: Limit,
    /// Operations in flight per peer, expired ones that have not come to rest included.
    pub inflight_ops_max: u32,
    /// Digests come out of the copy itself instead of a second pass.
    pub digest_fused: bool,
    /// The peer's memory can be addressed by this CPU.
    pub direct: bool,
}

impl Caps {
    /// What both sides together can do, from the view of the side that posts. None for two different
    /// transports.
    #[must_use]
    pub fn intersect(&self, peer: &Self) -> Option<Self> {
        (self.kind == peer.kind).then(|| Self {
            kind: self.kind,
            reach: self.reach.min(peer.reach),
            local: self.local,
            remote: peer.remote,
            read: self.read && peer.read,
            write: self.write && peer.write,
            segments_max: self.segments_max,
            op_bytes_max: self.op_bytes_max.and(peer.op_bytes_max),
            inflight_ops_max: self.inflight_ops_max.min(peer.inflight_ops_max),
            digest_fused: self.digest_fused,
            direct: self.direct && peer.direct,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_promises_less_than_any_bound() {
        assert_eq!(Limit::Unknown.and(Limit::Unlimited), Limit::Unknown);
        assert_eq!(Limit::Max(7).and(Limit::Unlimited), Limit::Max(7));
        assert_eq!(Limit::Max(7).and(Limit::Max(3)), Limit::Max(3));
        assert!(!Limit::Unknown.admits(2));
        assert!(Limit::Unlimited.admits(u64::MAX));
    }
}
