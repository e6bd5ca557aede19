//! What a shard asks of its NVMe tier, and what it hears back.

use hearth_proto::header::{BlockHeader, Generation, HeaderError};
use hearth_proto::identity::Fingerprint;
use hearth_proto::key::BlockKey;
use hearth_proto::tenant::TenantId;
use hearth_transfer::RegionSlice;
use thiserror::Error;

use crate::io::IoFault;
use crate::slots::{Slot, SlotBytes};

/// Names a command to the shard; returned with its completion, not interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// When a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ack {
    /// When the device took it: it can be read, and a crash of the process keeps it, but a power cut may not.
    Written,
    /// When a power cut keeps it.
    Durable,
}

/// What to do. Commands on segments run in the order they are sent, so that a write may follow the creation of its
/// segment at once. Commands on slots run in any order: while a slot is being read it takes no write or erase, and
/// while it is being written or erased nothing else, or the second command fails with `Busy`.
#[derive(Debug)]
pub enum Command {
    /// Store a block.
    Write {
        /// The shard's name for it.
        tag: Tag,
        /// Where to.
        slot: Slot,
        /// The header; the tier puts the location in.
        header: BlockHeader,
        /// The payload with its padding, [`SlotBytes::payload_area`] bytes at a page boundary. Nobody changes it
        /// before the completion.
        payload: RegionSlice,
        /// When to answer.
        ack: Ack,
    },
    /// Load a block and check it.
    Read {
        /// The shard's name for it.
        tag: Tag,
        /// Where from.
        slot: Slot,
        /// What must be there.
        expect: BlockName,
        /// Where the payload with its padding lands, as in a write. The header is returned, not stored: its generation
        /// and location are those of the device.
        payload: RegionSlice,
    },
    /// Make a slot hold no block, so that a restart does not find it. A slot that will be written again needs none.
    Erase {
        /// The shard's name for it.
        tag: Tag,
        /// Which.
        slot: Slot,
        /// When to answer.
        ack: Ack,
    },
    /// Make a segment's file. One of that number that exists is deleted first, with all it holds.
    CreateSegment {
        /// The shard's name for it.
        tag: Tag,
        /// Its number.
        segment: u32,
        /// Bytes of its slots.
        class: SlotBytes,
    },
    /// Delete a segment's file, after what is in flight on it.
    DeleteSegment {
        /// The shard's name for it.
        tag: Tag,
        /// Its number.
        segment: u32,
    },
}

impl Command {
    /// The shard's name for it.
    #[must_use]
    pub fn tag(&self) -> Tag {
        match self {
            Self::Write { tag, .. }
            | Self::Read { tag, .. }
            | Self::Erase { tag, .. }
            | Self::CreateSegment { tag, .. }
            | Self::DeleteSegment { tag, .. } => *tag,
        }
    }
}

/// What a slot must hold for a read to be a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockName {
    /// Name of the block.
    pub key: BlockKey,
    /// Identity of its bytes.
    pub fingerprint: Fingerprint,
    /// Owner.
    pub tenant: TenantId,
    /// Generation it was written with.
    pub generation: Generation,
    /// Bytes of its payload.
    pub payload_bytes: u64,
}

impl From<&BlockHeader> for BlockName {
    fn from(header: &BlockHeader) -> Self {
        Self {
            key: header.key,
            fingerprint: header.fingerprint,
            tenant: header.tenant,
            generation: header.generation,
            payload_bytes: header.payload_bytes,
        }
    }
}

/// A completion: exactly one per command.
#[derive(Debug)]
pub enum Done {
    /// Of a write.
    Written {
        /// Of the command.
        tag: Tag,
        /// Ok means what [`Ack`] said.
        result: Result<(), WriteError>,
    },
    /// Of a read.
    Read {
        /// Of the command.
        tag: Tag,
        /// The header as it lies on the device. Ok means that the payload landed and every checksum is right.
        result: Result<Box<BlockHeader>, ReadError>,
    },
    /// Of an erasure.
    Erased {
        /// Of the command.
        tag: Tag,
        /// How it went.
        result: Result<(), WriteError>,
    },
    /// Of a creation. Ok means that the segment is there after a power cut too.
    SegmentCreated {
        /// Of the command.
        tag: Tag,
        /// Which.
        segment: u32,
        /// How it went.
        result: Result<(), SegmentError>,
    },
    /// Of a deletion. A segment that did not exist is deleted.
    SegmentDeleted {
        /// Of the command.
        tag: Tag,
        /// Which.
        segment: u32,
        /// How it went.
        result: Result<(), SegmentError>,
    },
}

/// A block was not stored, or not made durable. What its slot holds is open until it is written or erased: the block
/// as it was, torn, or whole; a read of it, now or after a restart, is right or reported as damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// A write or sync of this segment failed, now or earlier. The shard closes it.
    #[error("segment {0} takes no more writes: a write or sync failed; what it holds is still served")]
    Poisoned(u32),
    /// The device is full, for a file system that takes space at the write.
    #[error("the device is full: free space, or lower --nvme-bytes")]
    Full,
    /// The segment does not exist, or its creation failed.
    #[error("segment {0} does not exist")]
    NoSegment(u32),
    /// The command contradicts itself or another one in flight: our own mistake.
    #[error("the command cannot be right: {0}")]
    Misuse(Misuse),
}

/// A block was not loaded. The payload's memory may hold any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// What lies there is not the block, or not whole: a miss, and the slot is free.
    #[error("the block is damaged: {0}")]
    Corrupt(#[from] Damage),
    /// The device failed to read it.
    #[error("the block cannot be read: {0}")]
    Io(IoFault),
    /// The segment does not exist.
    #[error("segment {0} does not exist")]
    NoSegment(u32),
    /// The command contradicts itself or another one in flight: our own mistake.
    #[error("the command cannot be right: {0}")]
    Misuse(Misuse),
}

/// Why bytes on the device are not the block that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// The header cannot be read.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// The header is of another place: a write or read went astray.
    #[error("its header names another place")]
    Misplaced,
    /// The header is of another block, or of another generation of this one.
    #[error("its header is of another block")]
    OtherBlock,
    /// Bytes of the payload differ from what was written.
    #[error("checksum range {range} of its payload does not match")]
    Payload {
        /// The first range that differs.
        range: u32,
    },
}

/// How a command contradicts itself or another one in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Misuse {
    /// Another command on the slot is in flight.
    #[error("another command on the slot is in flight")]
    Busy,
    /// The segment has no such slot.
    #[error("the segment has no such slot")]
    NoSlot,
    /// The payload does not fit the class of the segment.
    #[error("the payload is not of the slot's size")]
    Size,
    /// The header's ranges do not cover the payload.
    #[error("the header's checksum ranges do not cover the payload")]
    Ranges,
    /// The window does not start at a page boundary, or may not be written.
    #[error("the payload's memory is not page-aligned, or read-only")]
    Memory,
    /// The segment is over the budget.
    #[error("the segment is outside the tier's budget")]
    Budget,
}

/// A segment was not created or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SegmentError {
    /// No room on the device: the tier goes on with the segments it has. [`crate::slots::Slots::limit_assigned`].
    #[error("the device has no room for another segment: free space, or lower --nvme-bytes")]
    Full,
    /// The limit of open files is reached: the tier goes on with the segments it has, as when it is full.
    #[error(
        "the limit of open files is reached: raise it (ulimit -n, LimitNOFILE), or configure larger segments"
    )]
    FileLimit,
    /// The system failed.
    #[error("the segment's file cannot be made or deleted: {0}")]
    Io(IoFault),
    /// The number or class is impossible: our own mistake.
    #[error("the command cannot be right: {0}")]
    Misuse(Misuse),
}
