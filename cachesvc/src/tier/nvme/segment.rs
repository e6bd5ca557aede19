//! Segment files: making, checking, deleting.

use std::path::{Path, PathBuf};

use hearth_transfer::RegionSlice;
use rustix::io::Errno;

use crate::io::{Buffers, FileId, IoFault, IoKind, Open};
use crate::slots::{SlotBytes, SlotsConfig};
use crate::tier::nvme::command::{Misuse, SegmentError};
use crate::tier::nvme::device::Device;
use crate::tier::nvme::format::{self, SUPERBLOCK_BYTES, StoreId, Superblock};
use crate::tier::nvme::meta::sync_dir;

/// Ending of the name of a segment that is being made. One that is found was left by a crash and holds no block.
pub(super) const UNFINISHED: &str = ".new";

/// Where the segments of a tier lie, and what they have in common.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) store: StoreId,
    pub(super) shard: u32,
    pub(super) geometry: SlotsConfig,
}

impl Place {
    pub(super) fn path(&self, segment: u32) -> PathBuf {
        self.dir.join(format::file_name(segment))
    }

    /// Where a segment's superblocks lie: the second is for the case that the first is damaged.
    pub(super) fn superblock_offsets(&self) -> [u64; 2] {
        [0, self.geometry.segment_bytes - SUPERBLOCK_BYTES as u64]
    }

    /// The superblock of a new segment.
    fn superblock(&self, segment: u32, class: SlotBytes, generation: u64) -> Superblock {
        Superblock {
            store: self.store,
            shard: self.shard,
            segment,
            generation,
            segment_bytes: self.geometry.segment_bytes,
            class,
            slots: self.geometry.slots_per_segment(class),
        }
    }

    /// Whether a segment may be made.
    pub(super) fn check(&self, segment: u32, class: SlotBytes) -> Result<(), SegmentError> {
        if segment >= self.geometry.segments_max {
            return Err(SegmentError::Misuse(Misuse::Budget));
        }
        if self.geometry.slots_per_segment(class) == 0 {
            return Err(SegmentError::Misuse(Misuse::Size));
        }
        Ok(())
    }
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewSegment {
    pub(super) segment: u32,
    pub(super) class: SlotBytes,
    pub(super) generation: u64,
}

/// Makes a segment under a temporary name, syncs it, and gives it its name: it exists whole or not at all. `page` is
/// scratch memory.
pub(super) fn create(
    device: &mut Device,
    place: &Place,
    new: NewSegment,
    page: &RegionSlice,
) -> Result<FileId, SegmentError> {
    place.check(new.segment, new.class)?;
    let path = place.path(new.segment);
    let unfinished = path.with_extension(format!("hearth{UNFINISHED}"));
    remove(&unfinished).map_err(refused)?;
    let file = device.io().open(&unfinished, Open::New).map_err(refused)?;
    let made = fill(device, place, new, (file, page)).and_then(|()| {
        std::fs::rename(&unfinished, &path).map_err(|error| refused(errno(&error)))?;
        sync_dir(&place.dir).map_err(|error| refused(errno(&error)))
    });
    if let Err(error) = made {
        device.io().close(file);
        for leftover in [&unfinished, &path] {
            if let Err(errno) = remove(leftover) {
                tracing::warn!(path = %leftover.display(), %errno, "an unfinished segment stays behind");
            }
        }
        return Err(error);
    }
    Ok(file)
}

fn fill(
    device: &mut Device,
    place: &Place,
    new: NewSegment,
    (file, page): (FileId, &RegionSlice),
) -> Result<(), SegmentError> {
    device.io().allocate(file, place.geometry.segment_bytes).map_err(refused)?;
    let superblock = place.superblock(new.segment, new.class, new.generation);
    page.copy_from(&superblock.encode()[..]).expect("a page has the bytes of a superblock");
    for offset in place.superblock_offsets() {
        device.run(file, IoKind::Write { offset, from: Buffers::one(page.clone()) }).map_err(failed)?;
    }
    device.run(file, IoKind::Sync).map_err(failed)
}

/// Deletes a segment's file, durably. One that does not exist is deleted.
pub(super) fn delete(place: &Place, segment: u32) -> Result<(), SegmentError> {
    remove(&place.path(segment)).map_err(refused)?;
    sync_dir(&place.dir).map_err(|error| refused(errno(&error)))
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> Result<(), Errno> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(errno(&error)),
        _ => Ok(()),
    }
}

/// Whether an error means that there is no room.
pub(super) fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::FBIG)
}

pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn refused(errno: Errno) -> SegmentError {
    match errno {
        errno if is_full(errno) => SegmentError::Full,
        Errno::MFILE | Errno::NFILE => SegmentError::FileLimit,
        errno => SegmentError::Io(IoFault::Os(errno)),
    }
}

fn failed(fault: IoFault) -> SegmentError {
    match fault {
        IoFault::Os(errno) => refused(errno),
        IoFault::Short => SegmentError::Io(fault),
    }
}
