//! Second half of recovery: which blocks there are. Only headers are read, except where two slots claim one block.

use std::collections::HashMap;

use hearth_proto::header::{BlockHeader, Generation, HeaderError};
use hearth_proto::key::BlockKey;
use hearth_proto::tenant::TenantId;
use hearth_transfer::{Region, RegionSlice};
use rustix::io::Errno;

use crate::io::{Buffers, FileId, IoDone, IoKind, IoTag, Wait};
use crate::slots::Slot;
use crate::tier::nvme::command::{BlockName, Damage};
use crate::tier::nvme::device::{Device, Pages, page_bytes};
use crate::tier::nvme::segment::Place;
use crate::tier::nvme::worker::Segment;
use crate::tier::nvme::{RecoveredBlock, RecoveryCounts, verify};

/// Reads all headers.
pub(super) struct Scan<'a> {
    pub(super) device: &'a mut Device,
    pub(super) place: &'a Place,
    pub(super) segments: &'a [(u32, Segment)],
    pub(super) pages: &'a mut Pages,
    pub(super) zeros: &'a RegionSlice,
    pub(super) counts: RecoveryCounts,
}

/// The blocks of a tier.
pub(super) struct Blocks {
    pub(super) blocks: Vec<RecoveredBlock>,
    pub(super) generation_max: Generation,
    pub(super) counts: RecoveryCounts,
}

/// Makes everything durable that the segments hold: an earlier process may have been killed between writing a block
/// and syncing it, and what is recovered counts as stored. A segment that cannot be synced takes no writes.
pub(super) fn sync(device: &mut Device, segments: &mut [(u32, Segment)]) {
    let mut unsynced = segments.iter_mut();
    let mut syncing: HashMap<IoTag, &mut (u32, Segment)> = HashMap::new();
    loop {
        while device.has_room()
            && let Some(segment) = unsynced.next()
        {
            let tag = device.start(segment.1.file, IoKind::Sync);
            syncing.insert(tag, segment);
        }
        if syncing.is_empty() {
            return;
        }
        let mut done = Vec::new();
        device.reap(&mut done, Wait::Forever);
        for completion in done {
            let (number, segment) = syncing.remove(&completion.op.tag).expect("one sync per segment");
            if let Err(fault) = completion.result {
                tracing::error!(segment = *number, %fault, "a segment cannot be synced, so it is read only");
                segment.set_read_only();
            }
        }
    }
}

impl Scan<'_> {
    /// Reads the headers of all slots, many at a time, and settles which of two slots with one block has it.
    pub(super) fn run(mut self) -> Blocks {
        let segments = self.segments;
        let mut slots = segments.iter().enumerate().flat_map(|(at, (number, segment))| {
            (0..segment.slots).map(move |index| (at, Slot { segment: *number, index }))
        });
        let mut reading: HashMap<IoTag, (usize, Slot, RegionSlice)> = HashMap::new();
        let mut blocks = Vec::new();
        let mut generation_max = Generation(0);
        loop {
            while self.device.has_room()
                && let Some((at, slot)) = slots.next()
            {
                let page = self.pages.take().expect("a page per operation");
                let (file, offset) = self.position(at, slot);
                let tag = self.device.start(file, IoKind::Read { offset, into: Buffers::one(page.clone()) });
                reading.insert(tag, (at, slot, page));
            }
            if reading.is_empty() {
                break;
            }
            let mut done: Vec<IoDone> = Vec::new();
            self.device.reap(&mut done, Wait::Forever);
            for completion in done {
                let (at, slot, page) = reading.remove(&completion.op.tag).expect("a page per operation");
                if completion.result.is_err() {
                    self.counts.headers_unreadable += 1;
                } else if let Some(header) = self.judge(at, slot, &page) {
                    generation_max = generation_max.max(header.generation);
                    blocks.push(block(slot, &header));
                }
                self.pages.give(page);
            }
        }
        let blocks = self.settle(blocks);
        Blocks { blocks, generation_max, counts: self.counts }
    }

    /// The header in a page, if it is one that belongs there.
    fn judge(&mut self, at: usize, slot: Slot, page: &RegionSlice) -> Option<BlockHeader> {
        let bytes = page_bytes(page);
        match verify::header(&bytes, slot, self.segments[at].1.class) {
            Ok(header) => return Some(header),
            Err(Damage::Header(HeaderError::Magic)) if bytes.iter().all(|byte| *byte == 0) => {
                self.counts.slots_empty += 1;
            }
            Err(Damage::Misplaced) => self.counts.headers_misplaced += 1,
            Err(_) => self.counts.headers_damaged += 1,
        }
        None
    }

    /// Leaves one block per key: of several, the newest that is whole. A crash may have cut short the writing of a
    /// newer copy while an older one was still there, so generations alone do not tell.
    fn settle(&mut self, blocks: Vec<RecoveredBlock>) -> Vec<RecoveredBlock> {
        let mut by_key: HashMap<(TenantId, BlockKey), Vec<RecoveredBlock>> =
            HashMap::with_capacity(blocks.len());
        for block in blocks {
            by_key.entry((block.name.tenant, block.name.key)).or_default().push(block);
        }
        let mut kept = Vec::with_capacity(by_key.len());
        for mut rivals in by_key.into_values() {
            if rivals.len() == 1 {
                kept.extend(rivals);
                continue;
            }
            rivals.sort_unstable_by_key(|block| std::cmp::Reverse(block.name.generation));
            let whole = rivals.iter().position(|block| self.is_whole(block));
            for (rank, block) in rivals.into_iter().enumerate() {
                if Some(rank) == whole {
                    kept.push(block);
                } else {
                    self.counts.headers_superseded += 1;
                    self.erase(block.slot);
                }
            }
        }
        kept
    }

    /// Reads a block whole and checks it.
    fn is_whole(&mut self, block: &RecoveredBlock) -> bool {
        let Some(at) = self.segments.iter().position(|(number, _)| *number == block.slot.segment) else {
            return false;
        };
        let class = self.segments[at].1.class;
        let Ok(area) =
            usize::try_from(class.payload_area()).map_err(drop).and_then(|n| Region::heap(n).map_err(drop))
        else {
            return false;
        };
        let payload = area.whole();
        let page = self.pages.take().expect("a page per operation");
        let (file, offset) = self.position(at, block.slot);
        let into = Buffers::two(page.clone(), payload.clone());
        let read = self.device.run(file, IoKind::Read { offset, into });
        let whole = read.is_ok()
            && verify::header(&page_bytes(&page), block.slot, class).is_ok_and(|header| {
                verify::named(&header, &block.name).is_ok() && verify::payload(&header, &payload).is_ok()
            });
        self.pages.give(page);
        whole
    }

    /// Makes a slot hold no block. When that fails the copy is found again at the next start, and passed over again.
    fn erase(&mut self, slot: Slot) {
        let at = self.segments.iter().position(|(number, _)| *number == slot.segment);
        let Some(at) = at.filter(|at| self.segments[*at].1.is_writable()) else { return };
        let (file, offset) = self.position(at, slot);
        let from = Buffers::one(self.zeros.clone());
        if let Err(fault) = self.device.run(file, IoKind::Write { offset, from }) {
            tracing::warn!(?slot, %fault, "an outdated copy of a block cannot be erased");
        }
    }

    fn position(&self, at: usize, slot: Slot) -> (FileId, u64) {
        let segment = &self.segments[at].1;
        (segment.file, self.place.geometry.offset_in_segment(slot.index, segment.class))
    }
}

fn block(slot: Slot, header: &BlockHeader) -> RecoveredBlock {
    RecoveredBlock { slot, name: BlockName::from(header), parent: header.parent, depth: header.depth }
}

/// A page of zeros.
pub(super) fn zero_page() -> Result<RegionSlice, Errno> {
    Ok(Region::heap(hearth_proto::header::HEADER_BYTES).map_err(|_| Errno::NOMEM)?.whole())
}
