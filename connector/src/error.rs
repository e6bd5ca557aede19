//! Why something was not done, by what the caller does next.

use std::fmt;
use std::sync::Arc;

use hearth_proto::code::{Action, Code};
use hearth_proto::frame::FrameError;
use hearth_proto::identity::{IdentityError, IdentityMismatch};
use hearth_proto::layout::LayoutError;
use hearth_proto::v1;
use hearth_proto::version::VersionError;
use thiserror::Error;

/// Why a block is not served. Whatever the reason, the caller computes the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Miss {
    /// The store does not hold it.
    #[error("the store does not hold the block")]
    Absent,
    /// Its bytes or its header did not check. The node is told and drops it.
    #[error("the block's bytes did not check")]
    Corrupt,
    /// Not here by the deadline.
    #[error("the block was not here by the deadline")]
    Deadline,
    /// The node has no room to bring it into memory.
    #[error("the node has no room to bring the block into memory")]
    Full,
    /// The node's device failed.
    #[error("the node's device failed")]
    Io,
    /// The lease, the reservation or the slot is no longer what it was.
    #[error("the block's slot has been given to another block meanwhile")]
    Stale,
    /// There is no connection to the node, or it broke during the call.
    #[error("the store node is not reachable")]
    StoreDown,
    /// The node refuses this client; [`Store::state`](crate::Store::state) says why.
    #[error("the store node refuses this client")]
    Refused,
    /// This client holds as many leases and reservations as it may.
    #[error("this client holds as many leases as it may; drop some")]
    Busy,
    /// The node failed in a way that has no better name.
    #[error("the store node failed to answer; its log says why")]
    Internal,
    /// The call was wrong: an index or a length that does not fit the lease.
    #[error("the call does not fit the lease: check index and length")]
    Misuse,
    /// There is no store in this configuration.
    #[error("no store is configured")]
    Off,
}

impl Miss {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::Absent,
        Self::Corrupt,
        Self::Deadline,
        Self::Full,
        Self::Io,
        Self::Stale,
        Self::StoreDown,
        Self::Refused,
        Self::Busy,
        Self::Internal,
        Self::Misuse,
        Self::Off,
    ];

    /// Lower-case name for logs and metric labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Corrupt => "corrupt",
            Self::Deadline => "deadline",
            Self::Full => "full",
            Self::Io => "io",
            Self::Stale => "stale",
            Self::StoreDown => "store_down",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Internal => "internal",
            Self::Misuse => "misuse",
            Self::Off => "off",
        }
    }

    /// The reason that the node gives in an answer; `None` for a complete one.
    pub(crate) fn from_wire(reason: i32) -> Option<Self> {
        match v1::MissReason::try_from(reason) {
            Ok(v1::MissReason::MissNone) => None,
            Ok(v1::MissReason::MissAbsent) => Some(Self::Absent),
            Ok(v1::MissReason::MissCorrupt) => Some(Self::Corrupt),
            Ok(v1::MissReason::MissDeadline) => Some(Self::Deadline),
            Ok(v1::MissReason::MissFull) => Some(Self::Full),
            Ok(v1::MissReason::MissIo) => Some(Self::Io),
            Ok(v1::MissReason::MissStale) => Some(Self::Stale),
            Ok(v1::MissReason::MissStoreDown) => Some(Self::StoreDown),
            Err(_newer_than_this_build) => Some(Self::Internal),
        }
    }
}

impl From<Code> for Miss {
    fn from(code: Code) -> Self {
        match code {
            Code::Internal => Self::Internal,
            Code::InvalidArgument | Code::OutOfOrder | Code::TooLarge => Self::Misuse,
            Code::Unauthenticated | Code::IdentityMismatch | Code::VersionUnsupported => Self::Refused,
            Code::Full => Self::Full,
            Code::Stale => Self::Stale,
            Code::Deadline => Self::Deadline,
            Code::Unavailable | Code::Disconnected => Self::StoreDown,
            Code::Io => Self::Io,
        }
    }
}

/// Where a [`Store`](crate::Store) stands with its node.
#[derive(Clone, Debug)]
pub enum State {
    /// No store is configured. Permanent.
    Off,
    /// There is no session yet, or it broke; another is tried in the background.
    Connecting,
    /// Calls are answered by the node.
    Connected,
    /// The node refuses this client and a person has to act. It is tried again at long intervals, so that a
    /// corrected node is found without a restart of the engine.
    Refused(Arc<Refusal>),
}

impl State {
    /// Whether calls are answered by the node.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Connecting => f.write_str("connecting"),
            Self::Connected => f.write_str("connected"),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
        }
    }
}

/// Why the node refuses this client, or this client cannot use the node: a person has to act.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The node knows another identity for this model.
    #[error(transparent)]
    Identity(IdentityMismatch),
    /// The tenant is unknown there, or the secret is another.
    #[error(
        "the node does not accept tenant {tenant:?} with this secret ({message}): give this client the tenant's secret file of the node"
    )]
    Secret {
        /// The tenant's name.
        tenant: String,
        /// What the node says.
        message: String,
    },
    /// The two sides speak different protocols.
    #[error(transparent)]
    Version(VersionError),
    /// The node says that it speaks another protocol.
    #[error(
        "the node does not speak this client's protocol ({0}): run the same release of Hearth on both sides"
    )]
    VersionThere(String),
    /// The identity in the configuration cannot be used.
    #[error("the cache identity cannot be used: {0}")]
    Invalid(#[from] IdentityError),
    /// No block layout can be made for the identity.
    #[error("the cache identity cannot be used: {0}")]
    Layout(#[from] LayoutError),
    /// The node finds the request for a session wrong.
    #[error("the node refuses the session ({code}): {message}")]
    Session {
        /// Its code.
        code: Code,
        /// What it says.
        message: String,
    },
}

/// A block was not written. The reservation's other blocks are not touched.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// The index is not among the granted ones.
    #[error("block {0} was not granted; write the indices that granted() lists")]
    NotGranted(usize),
    /// The block is written already, or another thread writes it now.
    #[error("block {0} is written already")]
    Twice(usize),
    /// The payload's length is another.
    #[error("a payload of {given} bytes was given; blocks of this identity have {expected}")]
    Length {
        /// Bytes given.
        given: usize,
        /// Bytes of a block.
        expected: usize,
    },
    /// The reservation is too old, or its session is gone: its slots may be another's by now.
    #[error("the reservation is no longer valid; reserve again")]
    Stale,
}

impl WriteError {
    /// What to do next.
    pub fn action(&self) -> Action {
        match self {
            Self::NotGranted(_) | Self::Twice(_) | Self::Length { .. } => Action::FixCall,
            Self::Stale => Action::Retry,
        }
    }
}

/// Written blocks were not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// The node has not answered by the deadline. The blocks may be stored or not; both are safe.
    #[error("the node did not acknowledge by the deadline; the blocks may be stored or not")]
    Deadline,
    /// The connection broke. The blocks may be stored or not; both are safe.
    #[error("the connection broke; the blocks may be stored or not")]
    StoreDown,
    /// The reservation expired, or its session is gone. Nothing is stored.
    #[error("the reservation is no longer valid; reserve and write again")]
    Stale,
    /// The node refused.
    #[error("the node did not store the blocks ({code}): {message}")]
    Node {
        /// Its code.
        code: Code,
        /// What it says.
        message: String,
    },
}

impl SealError {
    /// What to do next. Losing a block is never worse than computing it again.
    pub fn action(&self) -> Action {
        match self {
            Self::Deadline => Action::TreatAsMiss,
            Self::StoreDown => Action::Reconnect,
            Self::Stale => Action::Retry,
            Self::Node { code, .. } => code.action(),
        }
    }
}

/// The node said something that no honest node says: the connection is closed and another is opened.
#[derive(Debug, Error)]
pub(crate) enum Violation {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a frame carries {0} descriptors where it should carry {1}")]
    Descriptors(usize, usize),
    #[error("an answer is of another kind than its request")]
    WrongAnswer,
    #[error("request {id} is not in flight")]
    UnknownRequest { id: u64 },
    #[error("the columns of an answer differ in length or are more than was asked")]
    Columns,
    #[error("an answer grants without a name, or names without a grant")]
    Nameless,
    #[error("tier {0} is not known in this protocol version")]
    Tier(i32),
    #[error("an answer names block {0}, which was not asked for in this place")]
    Index(u32),
    #[error("region {0} is not one of this session")]
    Region(u32),
    #[error("a block at offset {offset} does not lie on a page within region {region}, or overlaps another")]
    Slot { region: u32, offset: u64 },
    #[error("blocks have {theirs} bytes there and {ours} here, though the identity is the same")]
    PayloadBytes { ours: usize, theirs: u64 },
    #[error("a shared region cannot be mapped: {0}")]
    Memory(#[from] hearth_transfer::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_a_miss_and_every_miss_has_its_own_label() {
        for &code in Code::ALL {
            let _ = Miss::from(code);
        }
        let labels: std::collections::BTreeSet<_> = Miss::ALL.iter().map(|miss| miss.label()).collect();
        assert_eq!(labels.len(), Miss::ALL.len());
    }

    #[test]
    fn unknown_reasons_from_a_newer_node_are_misses_too() {
        assert_eq!(Miss::from_wire(0), None);
        assert_eq!(Miss::from_wire(1), Some(Miss::Absent));
        assert_eq!(Miss::from_wire(9_999), Some(Miss::Internal));
        assert_eq!(Miss::from_wire(-1), Some(Miss::Internal));
    }
}
