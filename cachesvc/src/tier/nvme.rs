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

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::task::Waker;
use std::thread::JoinHandle;

use hearth_proto::header::Generation;

use crate::io::{self, BlockIo, IoConfig, IoMode, IoOpenError, IoPick, QUEUE_DEPTH_MAX};
use crate::slots::{SLOT_ALIGN_BYTES, Slot, SlotBytes, SlotsConfig};

pub mod command;
mod device;
mod error;
pub mod format;
pub mod lock;
pub mod meta;
mod recover;
mod segment;
mod survey;
#[cfg(test)]
mod tests;
mod verify;
mod worker;

use device::{Device, Pages};
use error::ConfigError;
use format::SEGMENT_BYTES_RANGE;
use recover::{Blocks, Scan};
use segment::{Place, errno};
use survey::Survey;
use worker::{Start, Worker};

pub use command::{Ack, BlockName, Command, Damage, Done, Misuse, ReadError, SegmentError, Tag, WriteError};
pub use error::{ConfigError as NvmeConfigError, NvmeError};
pub use format::StoreId;
pub use meta::{DataDir, DataDirError};

/// Commands that wait in the channel at most. A shard that keeps no more than this many unanswered never sees it full.
pub const COMMANDS_MAX: usize = 1024;

/// Segments of one tier at most: each is an open file.
pub const SEGMENTS_MAX: u64 = 1 << 16;

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
    /// Segments that may exist at one time: fewer than the budget has room for while files that were set aside take
    /// space, see [`crate::slots::Slots::limit_assigned`].
    pub segments_usable: u32,
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
    waker: Waker,
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
        Self::open_on(config, sink, io::open)
    }

    /// Opens on the block I/O that `open_io` makes.
    fn open_on<F>(config: NvmeConfig, sink: Sink, open_io: F) -> Result<(Self, Recovered), NvmeError>
    where
        F: FnOnce(&IoConfig) -> Result<Box<dyn BlockIo>, IoOpenError> + Send + 'static,
    {
        check(&config)?;
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        let (opened, outcome) = sync_channel(1);
        let dir = config.dir.clone();
        let builder = std::thread::Builder::new().name(format!("hearth-nvme-{}", config.shard));
        let thread = builder.spawn(move || {
            let outcome = start(&config, open_io).map(|(start, recovered)| {
                let (waker, pick) = (start.device.waker(), start.device.pick().clone());
                (Worker::new(start, sink), Opened { waker, pick, recovered })
            });
            match outcome {
                Err(error) => drop(opened.send(Err(error))),
                Ok((worker, tier)) => {
                    if opened.send(Ok(tier)).is_ok() {
                        worker.work(&inbox);
                    }
                }
            }
        });
        let thread = thread.map_err(NvmeError::Thread)?;
        let Opened { waker, pick, recovered } = outcome.recv().unwrap_or(Err(NvmeError::Gone(dir)))?;
        Ok((Self { commands: Some(commands), waker, pick, thread: Some(thread) }, recovered))
    }

    /// Hands a command to the tier. Never blocks.
    ///
    /// # Errors
    /// The command, when [`COMMANDS_MAX`] wait or the thread is gone.
    #[expect(clippy::result_large_err, reason = "a command that is refused goes back whole, and rarely")]
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

/// What the thread tells the handle once it is open.
struct Opened {
    waker: Waker,
    pick: IoPick,
    recovered: Recovered,
}

fn check(config: &NvmeConfig) -> Result<(), NvmeError> {
    let NvmeConfig { bytes_max, segment_bytes, queue_depth, .. } = *config;
    let whole = segment_bytes.is_multiple_of(SLOT_ALIGN_BYTES);
    if !whole || !SEGMENT_BYTES_RANGE.contains(&segment_bytes) {
        return Err(NvmeError::Config(ConfigError::SegmentBytes(segment_bytes)));
    }
    if bytes_max < segment_bytes {
        return Err(NvmeError::Config(ConfigError::Budget { bytes_max, segment_bytes }));
    }
    if bytes_max / segment_bytes > SEGMENTS_MAX {
        return Err(NvmeError::Config(ConfigError::Segments { bytes_max, segment_bytes }));
    }
    if !(1..=QUEUE_DEPTH_MAX).contains(&queue_depth) {
        return Err(NvmeError::Config(ConfigError::QueueDepth(queue_depth)));
    }
    Ok(())
}

/// Recovers a tier, on its thread.
fn start<F>(config: &NvmeConfig, open_io: F) -> Result<(Start, Recovered), NvmeError>
where
    F: FnOnce(&IoConfig) -> Result<Box<dyn BlockIo>, IoOpenError>,
{
    let at_dir = || NvmeError::at(&config.dir);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.dir)
        .map_err(|error| at_dir()(errno(&error)))?;
    let segments_max = u32::try_from(config.bytes_max / config.segment_bytes).expect("at most SEGMENTS_MAX");
    let geometry = format::geometry(config.segment_bytes, segments_max);
    let place = Place { dir: config.dir.clone(), store: config.store_id, shard: config.shard, geometry };
    let listing = survey::list(&place.dir)?;
    let found = u32::try_from(listing.segments.len()).unwrap_or(u32::MAX);
    let files_max = segments_max.max(found).saturating_add(FILES_SPARE);
    let (mode, queue_depth, dir) = (config.io, config.queue_depth, config.dir.clone());
    let io = open_io(&IoConfig { mode, dir, queue_depth, files_max })?;
    let mut device = Device::new(io, queue_depth);
    let mut pages = Pages::new(device.queue_depth()).map_err(at_dir())?;
    let zeros = recover::zero_page().map_err(at_dir())?;
    let page = pages.take().expect("at least one");
    let survey = survey::survey(&mut device, &place, &listing, &page)?;
    pages.give(page);
    let Survey { mut segments, generation_max: segment_generation, counts } = survey;
    let scan = Scan {
        device: &mut device,
        place: &place,
        segments: &segments,
        pages: &mut pages,
        zeros: &zeros,
        counts,
    };
    let Blocks { blocks, generation_max, counts } = scan.run();
    recover::sync(&mut device, &mut segments);
    let lost = listing.set_aside + u32::try_from(counts.segments_set_aside).unwrap_or(u32::MAX);
    let recovered = Recovered {
        slots: geometry,
        segments_usable: segments_max.saturating_sub(lost),
        segments: segments.iter().map(|(number, segment)| segment.recovered(*number)).collect(),
        blocks,
        generation_max,
        counts,
    };
    let segments = segments.into_iter().collect();
    let generation_next = segment_generation + 1;
    Ok((Start { device, place, pages, zeros, segments, generation_next }, recovered))
}

/// Files open beside the segments: one that is made, one that is probed.
const FILES_SPARE: u32 = 2;
