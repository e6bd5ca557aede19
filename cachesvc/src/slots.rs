//! Which slots of a tier are taken: fixed-size slots in equal segments. Pure bookkeeping, no I/O.
//!
//! A segment holds slots of one size, its *class*, given to it when a slot of that class is first needed. A segment
//! whose last slot is given back keeps its class until another class needs it, so that a slot freed and taken again
//! costs nothing where a new segment means a new file.

use std::collections::{BTreeMap, BTreeSet};

use hearth_proto::header::HEADER_BYTES;
use thiserror::Error;

/// Slots start, and are sized, at multiples of this: the largest sector of a block device.
pub const SLOT_ALIGN_BYTES: u64 = 4096;

/// Bytes of one slot: a header, then the payload padded to [`SLOT_ALIGN_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotBytes(u64);

impl SlotBytes {
    /// The slot that holds a payload of so many bytes.
    #[must_use]
    pub fn for_payload(payload_bytes: u64) -> Self {
        Self(
            (HEADER_BYTES as u64).saturating_add(payload_bytes.div_ceil(SLOT_ALIGN_BYTES) * SLOT_ALIGN_BYTES),
        )
    }

    /// From a size that was stored. None unless it is a header and at least one page more, in whole pages.
    #[must_use]
    pub fn from_stored(bytes: u64) -> Option<Self> {
        let whole = bytes.is_multiple_of(SLOT_ALIGN_BYTES);
        (whole && bytes > HEADER_BYTES as u64).then_some(Self(bytes))
    }

    /// Bytes of the slot.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// Bytes after the header: the payload with its padding.
    #[must_use]
    pub fn payload_area(self) -> u64 {
        self.0 - HEADER_BYTES as u64
    }
}

/// Names a slot within a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Segment, below [`SlotsConfig::segments_max`].
    pub segment: u32,
    /// Index within the segment.
    pub index: u32,
}

/// Geometry of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsConfig {
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// Bytes at the start of a segment that belong to no slot.
    pub segment_head_bytes: u64,
    /// Bytes at the end of a segment that belong to no slot.
    pub segment_tail_bytes: u64,
    /// Segments that the tier's budget has room for.
    pub segments_max: u32,
}

impl SlotsConfig {
    /// Slots of one class that a segment has room for.
    #[must_use]
    pub fn slots_per_segment(&self, class: SlotBytes) -> u32 {
        let around = self.segment_head_bytes.saturating_add(self.segment_tail_bytes);
        let room = self.segment_bytes.saturating_sub(around) / class.get();
        u32::try_from(room).unwrap_or(u32::MAX)
    }

    /// Where a slot starts within its segment, in bytes.
    #[must_use]
    pub fn offset_in_segment(&self, index: u32, class: SlotBytes) -> u64 {
        self.segment_head_bytes + u64::from(index) * class.get()
    }
}

/// A slot that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The slot.
    pub slot: Slot,
    /// Whether its segment was given this class just now. On a device the segment must be created (or replaced)
    /// before the slot is written.
    pub segment_is_new: bool,
}

/// How full a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentUse {
    /// The segment.
    pub segment: u32,
    /// Its class.
    pub class: SlotBytes,
    /// Slots taken.
    pub used: u32,
    /// Slots in all.
    pub slots: u32,
    /// Whether it hands out no more slots.
    pub closed: bool,
}

/// A slot found on a device cannot be what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// No such segment or slot within the budget.
    #[error("segment {} slot {} is outside the tier's budget", .0.segment, .0.index)]
    OutOfRange(Slot),
    /// The segment has slots of another size.
    #[error("segment {segment} has slots of {has} bytes, not of {asked}")]
    Class {
        /// The segment.
        segment: u32,
        /// Slot bytes it has.
        has: u64,
        /// Slot bytes asked for.
        asked: u64,
    },
    /// The slot is taken already.
    #[error("segment {} slot {} was restored twice", .0.segment, .0.index)]
    Taken(Slot),
}

/// The slots of one tier. Owned by one shard.
#[derive(Debug)]
pub struct Slots {
    config: SlotsConfig,
    segments: Vec<Segment>,
    /// Segments without a class.
    unassigned: BTreeSet<u32>,
    /// By class, the segments that can hand out a slot.
    open: BTreeMap<SlotBytes, BTreeSet<u32>>,
    /// Segments with a class and no slot taken; every one is in `open` too.
    empty: BTreeSet<u32>,
    /// Segments that may have a class at one time.
    assigned_max: u32,
    used_bytes: u64,
}

#[derive(Clone, Debug, Default)]
struct Segment {
    class: Option<SlotBytes>,
    taken: Vec<u64>,
    used: u32,
    slots: u32,
    closed: bool,
}

impl Slots {
    /// All slots free.
    #[must_use]
    pub fn new(config: SlotsConfig) -> Self {
        let count = usize::try_from(config.segments_max).expect("a segment number fits a usize");
        Self {
            config,
            segments: vec![Segment::default(); count],
            unassigned: (0..config.segments_max).collect(),
            open: BTreeMap::new(),
            empty: BTreeSet::new(),
            assigned_max: config.segments_max,
            used_bytes: 0,
        }
    }

    /// The geometry.
    #[must_use]
    pub fn config(&self) -> &SlotsConfig {
        &self.config
    }

    /// Takes a free slot: from a segment of the class, else from a segment without a class, else from an empty segment
    /// of another class. None when all are full, or a segment is too small for the class: evict, see
    /// [`Slots::emptiest_segment_of_other_class`].
    pub fn take(&mut self, class: SlotBytes) -> Option<Taken> {
        if let Some(&segment) = self.open.get(&class).and_then(BTreeSet::first) {
            return Some(Taken { slot: self.take_in(segment), segment_is_new: false });
        }
        if self.config.slots_per_segment(class) == 0 {
            return None;
        }
        let segment = self.assignable()?;
        self.unassign(segment);
        self.assign(segment, class);
        Some(Taken { slot: self.take_in(segment), segment_is_new: true })
    }

    /// Gives a slot back. Panics when it is not taken: the caller owns every slot it gives.
    pub fn give(&mut self, slot: Slot) {
        let segment = self.segment_mut(slot.segment);
        assert!(segment.is_taken(slot.index), "{slot:?} is given back once, by who took it");
        segment.clear(slot.index);
        let class = segment.class.expect("a taken slot has a class");
        let (closed, empty) = (segment.closed, segment.used == 0);
        self.used_bytes -= class.get();
        match (closed, empty) {
            (true, true) => self.unassign(slot.segment),
            (true, false) => {}
            (false, _) => {
                self.open.entry(class).or_default().insert(slot.segment);
                if empty {
                    self.empty.insert(slot.segment);
                }
            }
        }
    }

    /// Where a slot starts, in bytes from the start of the tier's first segment. Panics unless its segment has a
    /// class.
    #[must_use]
    pub fn offset(&self, slot: Slot) -> u64 {
        let class = self.class_of(slot.segment).expect("a slot lies in a segment with a class");
        u64::from(slot.segment) * self.config.segment_bytes + self.config.offset_in_segment(slot.index, class)
    }

    /// The slot that holds byte `offset` of the tier, when its segment has a class.
    #[must_use]
    pub fn slot_at(&self, offset: u64) -> Option<Slot> {
        let segment = u32::try_from(offset / self.config.segment_bytes).ok()?;
        let class = self.class_of(segment)?;
        let within = (offset % self.config.segment_bytes).checked_sub(self.config.segment_head_bytes)?;
        let index = u32::try_from(within / class.get()).ok()?;
        (index < self.segment(segment).slots).then_some(Slot { segment, index })
    }

    /// The class of a segment, if it has one.
    #[must_use]
    pub fn class_of(&self, segment: u32) -> Option<SlotBytes> {
        self.segments.get(usize::try_from(segment).ok()?)?.class
    }

    /// Classes that hold segments, smallest first.
    pub fn classes(&self) -> impl Iterator<Item = SlotBytes> {
        let classes: BTreeSet<_> = self.segments.iter().filter_map(|segment| segment.class).collect();
        classes.into_iter()
    }

    /// Every segment with a class.
    pub fn segments(&self) -> impl Iterator<Item = SegmentUse> + '_ {
        (0..self.config.segments_max).filter_map(|segment| self.usage(segment))
    }

    /// The slots taken in a segment, in order. None for a segment that does not exist.
    pub fn taken_in(&self, segment: u32) -> impl Iterator<Item = Slot> + '_ {
        let known = usize::try_from(segment).ok().and_then(|at| self.segments.get(at));
        known.into_iter().flat_map(move |state| {
            (0..state.slots).filter(|&index| state.is_taken(index)).map(move |index| Slot { segment, index })
        })
    }

    /// The segment of another class with the fewest bytes taken: what to empty when [`Slots::take`] fails while other
    /// classes hold the tier. Once its slots are given back it serves any class.
    #[must_use]
    pub fn emptiest_segment_of_other_class(&self, class: SlotBytes) -> Option<SegmentUse> {
        self.segments()
            .filter(|segment| segment.class != class)
            .min_by_key(|segment| u64::from(segment.used) * segment.class.get())
    }

    /// Bytes of all slots taken.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Bytes of all segments with a class: what a device or an arena holds for them.
    #[must_use]
    pub fn assigned_bytes(&self) -> u64 {
        u64::from(self.assigned()) * self.config.segment_bytes
    }

    /// Segments with a class.
    #[must_use]
    pub fn assigned(&self) -> u32 {
        self.config.segments_max - u32::try_from(self.unassigned.len()).expect("at most segments_max")
    }

    /// Bounds the segments that may have a class at one time, for a device that turned out to be full; at most
    /// `segments_max`. Segments above the bound are kept, and none is added.
    pub fn limit_assigned(&mut self, assigned_max: u32) {
        self.assigned_max = assigned_max.min(self.config.segments_max);
    }

    /// Hands out no more slots of a segment, because writes to it fail. When its last slot is given back, it loses its
    /// class and may be taken as a new segment.
    pub fn close(&mut self, segment: u32) {
        let state = self.segment_mut(segment);
        let Some(class) = state.class else { return };
        state.closed = true;
        if state.used == 0 {
            self.unassign(segment);
        } else if let Some(open) = self.open.get_mut(&class) {
            open.remove(&segment);
        }
    }

    /// Gives back every slot of a segment and takes its class away: it could not be created, or was deleted.
    pub fn clear(&mut self, segment: u32) {
        let state = self.segment(segment);
        let bytes = state.class.map_or(0, |class| u64::from(state.used) * class.get());
        self.used_bytes -= bytes;
        self.unassign(segment);
    }

    /// Gives a segment its class, as found on the device.
    ///
    /// # Errors
    /// When it is outside the budget or has another class.
    pub fn restore_segment(&mut self, segment: u32, class: SlotBytes) -> Result<(), RestoreError> {
        let outside = RestoreError::OutOfRange(Slot { segment, index: 0 });
        if segment >= self.config.segments_max || self.config.slots_per_segment(class) == 0 {
            return Err(outside);
        }
        match self.class_of(segment) {
            None => {
                self.unassign(segment);
                self.assign(segment, class);
                Ok(())
            }
            Some(has) if has == class => Ok(()),
            Some(has) => Err(RestoreError::Class { segment, has: has.get(), asked: class.get() }),
        }
    }

    /// Takes a certain slot, as found on the device.
    ///
    /// # Errors
    /// When there is no such slot, its segment has another class, or it is taken.
    pub fn restore(&mut self, slot: Slot, class: SlotBytes) -> Result<(), RestoreError> {
        self.restore_segment(slot.segment, class)?;
        let state = self.segment(slot.segment);
        if slot.index >= state.slots {
            return Err(RestoreError::OutOfRange(slot));
        }
        if state.is_taken(slot.index) {
            return Err(RestoreError::Taken(slot));
        }
        self.mark_taken(slot, class);
        Ok(())
    }

    /// A segment that may be given a class: one without, within the bound, else an empty one.
    fn assignable(&self) -> Option<u32> {
        let unassigned = if self.assigned() < self.assigned_max { self.unassigned.first() } else { None };
        unassigned.or_else(|| self.empty.first()).copied()
    }

    fn assign(&mut self, segment: u32, class: SlotBytes) {
        let slots = self.config.slots_per_segment(class);
        let words = usize::try_from(slots.div_ceil(u64::BITS)).expect("a slot number fits a usize");
        *self.segment_mut(segment) =
            Segment { class: Some(class), taken: vec![0; words], used: 0, slots, closed: false };
        self.unassigned.remove(&segment);
        self.open.entry(class).or_default().insert(segment);
        self.empty.insert(segment);
    }

    fn unassign(&mut self, segment: u32) {
        let state = std::mem::take(self.segment_mut(segment));
        if let Some(class) = state.class
            && let Some(open) = self.open.get_mut(&class)
        {
            open.remove(&segment);
            if open.is_empty() {
                self.open.remove(&class);
            }
        }
        self.empty.remove(&segment);
        self.unassigned.insert(segment);
    }

    /// Takes the first free slot of a segment that has one.
    fn take_in(&mut self, segment: u32) -> Slot {
        let state = self.segment(segment);
        let class = state.class.expect("an open segment has a class");
        let slot = Slot { segment, index: state.first_free().expect("an open segment has a free slot") };
        self.mark_taken(slot, class);
        slot
    }

    fn mark_taken(&mut self, slot: Slot, class: SlotBytes) {
        let state = self.segment_mut(slot.segment);
        state.set(slot.index);
        let full = state.used == state.slots;
        self.empty.remove(&slot.segment);
        if full && let Some(open) = self.open.get_mut(&class) {
            open.remove(&slot.segment);
        }
        self.used_bytes += class.get();
        assert!(self.used_bytes <= self.assigned_bytes(), "slots lie inside their segments");
    }

    fn usage(&self, segment: u32) -> Option<SegmentUse> {
        let state = self.segment(segment);
        let class = state.class?;
        Some(SegmentUse { segment, class, used: state.used, slots: state.slots, closed: state.closed })
    }

    fn segment(&self, segment: u32) -> &Segment {
        &self.segments[usize::try_from(segment).expect("a segment number fits a usize")]
    }

    fn segment_mut(&mut self, segment: u32) -> &mut Segment {
        &mut self.segments[usize::try_from(segment).expect("a segment number fits a usize")]
    }
}

impl Segment {
    fn is_taken(&self, index: u32) -> bool {
        let (word, bit) = place(index);
        self.taken.get(word).is_some_and(|word| word & bit != 0)
    }

    fn set(&mut self, index: u32) {
        assert!(index < self.slots && !self.is_taken(index), "a slot is taken once");
        let (word, bit) = place(index);
        self.taken[word] |= bit;
        self.used += 1;
    }

    fn clear(&mut self, index: u32) {
        let (word, bit) = place(index);
        self.taken[word] &= !bit;
        self.used -= 1;
    }

    fn first_free(&self) -> Option<u32> {
        let (at, word) = self.taken.iter().enumerate().find(|(_, word)| **word != u64::MAX)?;
        let index = u32::try_from(at).ok()? * u64::BITS + word.trailing_ones();
        (index < self.slots).then_some(index)
    }
}

/// Word and bit of a slot in a segment's map.
fn place(index: u32) -> (usize, u64) {
    (usize::try_from(index / u64::BITS).expect("a slot number fits a usize"), 1 << (index % u64::BITS))
}

#[cfg(test)]
mod tests;
