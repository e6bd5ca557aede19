//! Why the copy of the store's knowledge is dropped.

use hearth_proto::identity::IdentityError;
use hearth_proto::key::{BlockKey, KeysError};
use thiserror::Error;

use super::{PLACES_MAX, SHARDS_MAX};

/// The copy cannot be right any more, or cannot be kept: drop it and join the feed again.
#[derive(Debug, Error)]
pub enum Rejoin {
    /// Events were lost.
    #[error("shard {shard} sent event {found} after event {last}: events were lost")]
    Gap {
        /// The shard.
        shard: u32,
        /// The last event that came.
        last: u64,
        /// The one that came now.
        found: u64,
    },
    /// The node restarted.
    #[error("the store node restarted: incarnation {found} after {ours}")]
    Incarnation {
        /// Whose events the copy is made of.
        ours: u64,
        /// Whose event came.
        found: u64,
    },
    /// Both sides count differently.
    #[error("shard {shard} holds {theirs} entries by its own count, {ours} by ours")]
    Digest {
        /// The shard.
        shard: u32,
        /// Entries of the copy.
        ours: u64,
        /// Entries of the shard.
        theirs: u64,
    },
    /// The store broke the rules of the feed.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The store holds more than the index may.
    #[error(
        "the store holds more than this index may: {blocks} blocks, {PLACES_MAX} holders; start more routers"
    )]
    Full {
        /// Blocks in the index.
        blocks: usize,
    },
}

impl Rejoin {
    /// A word for the metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Gap { .. } => "gap",
            Self::Incarnation { .. } => "incarnation",
            Self::Digest { .. } => "digest",
            Self::Protocol(_) => "protocol",
            Self::Full { .. } => "full",
        }
    }
}

/// A message that no store of this release sends.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// A message without a body.
    #[error(
        "a feed message is of a kind that this release does not know; run the same release on both sides"
    )]
    Kind,
    /// A shard number out of range.
    #[error("the feed speaks of shard {0}; a node has at most {SHARDS_MAX}")]
    Shard(u32),
    /// An event before the snapshot, or a snapshot's end without its begin.
    #[error("shard {0} sent an event outside of the order snapshot, then changes")]
    Order(u32),
    /// The keys are no list of keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The tier has no name.
    #[error("the feed names tier {0}, which this release does not know; run the same release on both sides")]
    Tier(i32),
    /// A block cannot be in two shards.
    #[error("shard {found} tells of block {key:?}, which belongs to shard {ours}")]
    Moved {
        /// The block.
        key: BlockKey,
        /// The shard that told of it first.
        ours: u32,
        /// The shard that tells of it now.
        found: u32,
    },
    /// The identity cannot be used.
    #[error("the feed names an unusable identity: {0}")]
    Identity(#[from] IdentityError),
    /// Both sides hash identities differently.
    #[error("the store hashes the identity of {0:?} differently; run the same release on both sides")]
    Fingerprint(String),
}
