//! First half of recovery: which segments there are and what state they are in. The folder is looked at as a whole
//! before anything in it is changed, so that a folder that is refused is left as it was.

use std::path::{Path, PathBuf};

use hearth_transfer::RegionSlice;
use rustix::io::Errno;

use crate::io::{Buffers, FileId, IoFault, IoKind, Open};
use crate::tier::nvme::device::{Device, page_bytes};
use crate::tier::nvme::error::NvmeError;
use crate::tier::nvme::format::{Superblock, SuperblockError, segment_of};
use crate::tier::nvme::segment::{Place, UNFINISHED, errno, remove};
use crate::tier::nvme::worker::Segment;
use crate::tier::nvme::{RecoveryCounts, meta};

/// Middle of the name of a segment that was set aside.
const SET_ASIDE: &str = ".hearth.bad";
/// Names tried for a segment that is set aside.
const SET_ASIDE_MAX: u32 = 1000;

/// The files of a tier's folder, by name alone.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Segments, by number.
    pub(super) segments: Vec<u32>,
    /// Left by a crash: unfinished segments and probe files.
    leftovers: Vec<PathBuf>,
    /// Set aside earlier. They take space, and so part of the budget.
    pub(super) set_aside: u32,
}

/// Lists a folder.
pub(super) fn list(dir: &Path) -> Result<Listing, NvmeError> {
    let failed = |error: std::io::Error| NvmeError::at(dir)(errno(&error));
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if let Some(segment) = segment_of(&name) {
            listing.segments.push(segment);
        } else if name.starts_with("seg-") && name.contains(SET_ASIDE) {
            listing.set_aside += 1;
        } else if (name.starts_with("seg-") && name.ends_with(UNFINISHED))
            || (name.starts_with("probe-") && name.ends_with(".tmp"))
        {
            listing.leftovers.push(entry.path());
        }
    }
    listing.segments.sort_unstable();
    Ok(listing)
}

/// A segment that was looked at.
struct Found {
    segment: u32,
    file: FileId,
    /// The superblocks at both ends; None for a damaged one.
    superblocks: [Option<Superblock>; 2],
    bytes: u64,
}

/// Looks at every segment, then removes leftovers, sets damaged segments aside, deletes what is over the budget, and
/// repairs what can be repaired.
pub(super) fn survey(
    device: &mut Device,
    place: &Place,
    listing: &Listing,
    page: &RegionSlice,
) -> Result<Survey, NvmeError> {
    let mut found = Vec::with_capacity(listing.segments.len());
    for &segment in &listing.segments {
        found.push(look(device, place, segment, page)?);
    }
    let mut survey = Survey { segments: Vec::new(), generation_max: 0, counts: RecoveryCounts::default() };
    for leftover in &listing.leftovers {
        remove(leftover).map_err(NvmeError::at(leftover))?;
    }
    for found in found {
        survey.settle(device, place, found, page)?;
    }
    meta::sync_dir(&place.dir).map_err(|error| NvmeError::at(&place.dir)(errno(&error)))?;
    Ok(survey)
}

/// Reads both superblocks of a segment.
fn look(device: &mut Device, place: &Place, segment: u32, page: &RegionSlice) -> Result<Found, NvmeError> {
    let path = place.path(segment);
    let file = device.io().open(&path, Open::Existing).map_err(NvmeError::at(&path))?;
    let bytes = device.io().file_bytes(file).map_err(NvmeError::at(&path))?;
    let mut superblocks = [None, None];
    for (superblock, offset) in superblocks.iter_mut().zip(place.superblock_offsets()) {
        let read = device.run(file, IoKind::Read { offset, into: Buffers::one(page.clone()) });
        if let Err(fault) = read {
            tracing::warn!(path = %path.display(), offset, %fault, "a superblock cannot be read");
            continue;
        }
        match Superblock::decode(&page_bytes(page)) {
            Ok(decoded) => *superblock = Some(check(place, segment, decoded)?),
            Err(SuperblockError::Version(found)) => return Err(NvmeError::Version { path, found }),
            Err(SuperblockError::Damaged) => {}
        }
    }
    Ok(Found { segment, file, superblocks, bytes })
}

/// Whether a superblock is of this store, shard, number and size.
fn check(place: &Place, segment: u32, superblock: Superblock) -> Result<Superblock, NvmeError> {
    let path = place.path(segment);
    if superblock.store != place.store {
        return Err(NvmeError::Foreign { path, found: superblock.store, ours: place.store });
    }
    if superblock.shard != place.shard || superblock.segment != segment {
        let Superblock { segment, shard, .. } = superblock;
        return Err(NvmeError::Misnamed { path, segment, shard });
    }
    let (found, configured) = (superblock.segment_bytes, place.geometry.segment_bytes);
    if found != configured {
        return Err(NvmeError::SegmentBytes { path, found, configured });
    }
    Ok(superblock)
}

/// What a folder holds.
pub(super) struct Survey {
    /// The segments that are usable.
    pub(super) segments: Vec<(u32, Segment)>,
    /// Highest generation of a segment.
    pub(super) generation_max: u64,
    /// What was passed over so far.
    pub(super) counts: RecoveryCounts,
}

impl Survey {
    /// Decides about one segment.
    fn settle(
        &mut self,
        device: &mut Device,
        place: &Place,
        found: Found,
        page: &RegionSlice,
    ) -> Result<(), NvmeError> {
        let Found { segment, file, superblocks, bytes } = found;
        let path = place.path(segment);
        let [head, tail] = superblocks;
        let Some(superblock) = head.or(tail) else {
            device.io().close(file);
            let aside = set_aside(&path)?;
            tracing::error!(
                path = %path.display(), renamed = %aside.display(),
                "both superblocks of a segment are damaged: its blocks are lost; delete the renamed file when it was \
                 looked at, it takes up space of the budget"
            );
            self.counts.segments_set_aside += 1;
            return Ok(());
        };
        self.generation_max = self.generation_max.max(superblock.generation);
        if segment >= place.geometry.segments_max {
            device.io().close(file);
            remove(&path).map_err(NvmeError::at(&path))?;
            tracing::warn!(path = %path.display(), "a segment is over the configured bytes and was deleted");
            self.counts.segments_over_budget += 1;
            return Ok(());
        }
        let mut writable = true;
        if bytes < place.geometry.segment_bytes {
            self.counts.segments_truncated += 1;
            writable = lengthen(device, place, (segment, file));
        }
        if writable && (head.is_none() || tail.is_none()) {
            self.counts.segments_repaired += 1;
            writable = repair(device, place, (file, &superblock), page);
        }
        let mut open = Segment::new(file, superblock.class, superblock.slots);
        if !writable {
            open.set_read_only();
        }
        self.segments.push((segment, open));
        Ok(())
    }
}

/// Makes a segment whole that is shorter than it should be, and says whether that worked.
fn lengthen(device: &mut Device, place: &Place, (segment, file): (u32, FileId)) -> bool {
    let path = place.path(segment);
    tracing::error!(path = %path.display(), "a segment is too short: the blocks at its end are lost");
    match device.io().allocate(file, place.geometry.segment_bytes) {
        Ok(()) => true,
        Err(errno) => {
            tracing::error!(path = %path.display(), %errno, "it cannot be made whole, so it is read only");
            false
        }
    }
}

/// Writes both superblocks again, and says whether that worked.
fn repair(
    device: &mut Device,
    place: &Place,
    (file, superblock): (FileId, &Superblock),
    page: &RegionSlice,
) -> bool {
    page.copy_from(&superblock.encode()[..]).expect("a page has the bytes of a superblock");
    let mut written = Ok(());
    for offset in place.superblock_offsets() {
        written = written
            .and_then(|()| device.run(file, IoKind::Write { offset, from: Buffers::one(page.clone()) }));
    }
    let written = written.and_then(|()| device.run(file, IoKind::Sync));
    let path = place.path(superblock.segment);
    match &written {
        Ok(()) => {
            tracing::warn!(path = %path.display(), "a damaged superblock was written again from the other one")
        }
        Err(fault) => {
            tracing::error!(path = %path.display(), %fault, "a damaged superblock cannot be repaired");
        }
    }
    written.is_ok()
}

/// Renames a file so that it is out of the way and nothing is lost.
fn set_aside(path: &Path) -> Result<PathBuf, NvmeError> {
    for number in 0..SET_ASIDE_MAX {
        let suffix = if number == 0 { "hearth.bad".to_owned() } else { format!("hearth.bad{number}") };
        let aside = path.with_extension(suffix);
        if !aside.exists() {
            std::fs::rename(path, &aside).map_err(|error| NvmeError::at(path)(errno(&error)))?;
            return Ok(aside);
        }
    }
    Err(NvmeError::Path { path: path.to_owned(), fault: IoFault::Os(Errno::EXIST) })
}
