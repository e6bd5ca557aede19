//! What goes into a shard and what comes out of it.

use std::sync::Arc;
use std::time::Instant;

use hearth_proto::code::Code;
use hearth_proto::header::{BlockHeader, Generation};
use hearth_proto::identity::Fingerprint;
use hearth_proto::key::BlockKey;
use hearth_proto::v1::{Durability, FeedMessage, Identity, MissReason, SealedBlock, Tier};

use crate::slots::{Slot, SlotBytes};
use crate::tier::nvme::{Ack, BlockName, Done, Tag};

/// Index of a tenant in the node's list, fixed at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantIndex(pub u16);

/// A connection of the local protocol. Never used twice in one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A lease or reservation within one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId(pub u64);

/// A reader of the event feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriberId(pub u64);

/// Who asks, and for blocks of what shape. Fixed by the session's Hello.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The session.
    pub session: SessionId,
    /// Its tenant.
    pub tenant: TenantIndex,
    /// Its blocks.
    pub shape: Shape,
    /// Bytes of one checksum range of its blocks.
    pub range_bytes: u32,
    /// Its name in the event feed.
    pub holder: Arc<str>,
}

/// What blocks of one identity look like to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Identity of the bytes.
    pub fingerprint: Fingerprint,
    /// Bytes of a payload.
    pub payload_bytes: u64,
}

impl Shape {
    /// The slots that hold such blocks.
    pub fn class(&self) -> SlotBytes {
        SlotBytes::for_payload(self.payload_bytes)
    }
}

/// One block of a chain, as far as it concerns a shard. Its depth is its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Position in the chain, from the root.
    pub index: u32,
    /// Name.
    pub key: BlockKey,
    /// Block before it.
    pub parent: Option<BlockKey>,
}

/// Something that happened to a shard. `R` is where the answer goes.
#[expect(missing_docs, reason = "the line above each variant speaks of its fields")]
#[derive(Debug)]
pub enum Event<R> {
    /// How far these blocks are stored.
    Match { caller: Caller, links: Vec<Link>, reply: R },
    /// Lease these blocks, bringing them into the pinned tier.
    Acquire { caller: Caller, links: Vec<Link>, deadline: Instant, reply: R },
    /// End a lease; drop blocks whose bytes did not check.
    Release { session: SessionId, lease: GrantId, corrupt: Vec<BlockKey> },
    /// Slots for those of these blocks, from index `first` on, that are not stored and not being written. The links
    /// before it are the run's beginning: it is used, too.
    Reserve { caller: Caller, links: Vec<Link>, first: u32, reply: R },
    /// Make written blocks visible; the others of the reservation are given up.
    Seal {
        session: SessionId,
        reservation: GrantId,
        blocks: Vec<SealedBlock>,
        durability: Durability,
        reply: R,
    },
    /// Give up a reservation.
    Abort { session: SessionId, reservation: GrantId },
    /// The session's engine holds these blocks in its own pages.
    Advertise { caller: Caller, links: Vec<Link> },
    /// The session's engine holds these blocks no longer.
    Withdraw { caller: Caller, keys: Vec<BlockKey> },
    /// The connection is gone, and with it all that it held.
    CloseSession { session: SessionId },
    /// A reader joins the event feed of a tenant.
    Subscribe { tenant: TenantIndex, subscriber: SubscriberId },
    /// A reader left, or could not keep up.
    Unsubscribe { subscriber: SubscriberId },
    /// A client registered an identity. Sent to shard 0 only.
    Register { tenant: TenantIndex, identity: Box<Identity>, fingerprint: Fingerprint },
    /// What the shard holds.
    Status { reply: R },
    /// Answer when no write to NVMe is pending, or at the deadline.
    Flush { deadline: Instant, reply: R },
    /// The NVMe tier finished an operation.
    Nvme(Done),
}

/// Something the runner does on behalf of a shard, in order.
#[expect(missing_docs, reason = "the line above each variant speaks of its fields")]
#[derive(Debug)]
pub enum Effect<R> {
    /// Answer a caller.
    Reply(R, Result<Answer, Code>),
    /// Write a header into a slot of the pinned tier.
    SealSlot { tenant: TenantIndex, offset: u64, header: Box<BlockHeader> },
    /// Write a block from its pinned slot to NVMe.
    NvmeWrite { tag: Tag, slot: Slot, from: PinnedSpan, header: Box<BlockHeader>, ack: Ack },
    /// Read a block from NVMe into a pinned slot, and verify it.
    NvmeRead { tag: Tag, slot: Slot, into: PinnedSpan, expect: Box<BlockName> },
    /// Make a slot on NVMe hold no block.
    NvmeErase { tag: Tag, slot: Slot },
    /// Make a segment on NVMe, before the first write to it.
    NvmeCreate { tag: Tag, segment: u32, class: SlotBytes },
    /// Send to a reader of the feed: a change, or a whole snapshot.
    Publish(SubscriberId, Vec<FeedMessage>),
}

/// A slot of the pinned tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedSpan {
    /// Whose arena.
    pub tenant: TenantIndex,
    /// Offset of the slot's header in the arena.
    pub offset: u64,
    /// Bytes of the slot.
    pub class: SlotBytes,
}

/// The answer to an event that has one.
#[derive(Debug)]
pub enum Answer {
    /// Index and tier of each stored block, up to the first that is not.
    Matched(Vec<(u32, Tier)>),
    /// Blocks that may be read.
    Acquired(Acquired),
    /// Slots that may be written.
    Reserved(Reserved),
    /// Done.
    Done,
    /// What the shard holds.
    Status(ShardStatus),
    /// Writes to NVMe that are still pending.
    Flushed(u64),
}

/// Blocks that may be read until the lease ends.
#[derive(Debug, Default)]
pub struct Acquired {
    /// Absent when nothing was leased.
    pub lease: Option<GrantId>,
    /// The leased blocks, by index.
    pub blocks: Vec<Leased>,
    /// First block that was not leased, and why.
    pub miss: Option<(u32, MissReason)>,
}

/// One leased block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leased {
    /// Position in the chain.
    pub index: u32,
    /// Offset of its slot in the shard's arena of the tenant.
    pub offset: u64,
    /// Use of the slot.
    pub generation: Generation,
    /// Where it was found.
    pub tier: Tier,
}

/// Slots that may be written until the reservation ends.
#[derive(Debug, Default)]
pub struct Reserved {
    /// Absent when nothing was granted.
    pub reservation: Option<GrantId>,
    /// Index, offset and generation of each granted slot.
    pub slots: Vec<(u32, u64, Generation)>,
    /// Blocks for which there was no room.
    pub refused: u32,
}

/// What a shard holds.
#[derive(Clone, Debug, Default)]
pub struct ShardStatus {
    /// Blocks in the pinned tier.
    pub pinned_blocks: u64,
    /// Bytes of slots taken in the pinned tier.
    pub pinned_bytes_used: u64,
    /// Blocks on NVMe.
    pub nvme_blocks: u64,
    /// Bytes of slots taken on NVMe.
    pub nvme_bytes_used: u64,
    /// Writes to NVMe that are queued or under way.
    pub nvme_writes_pending: u64,
    /// What went wrong on NVMe last; empty while nothing did.
    pub nvme_degraded: String,
}
