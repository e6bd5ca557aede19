//! Slots of one size in one region.

use hearth_proto::header::HEADER_BYTES;
use hearth_transfer::{PAGE_BYTES, Region};

/// Slots of one payload size. Memory is taken when a slot is first written.
#[derive(Debug)]
pub(super) struct Arena {
    region: Region,
    slot_bytes: usize,
    fresh: usize,
    free: Vec<usize>,
}

impl Arena {
    /// Room for `capacity_bytes` of slots, at least one.
    pub(super) fn new(payload_bytes: usize, capacity_bytes: usize) -> Result<Self, hearth_transfer::Error> {
        let slot_bytes = Self::slot_bytes(payload_bytes);
        let slots = (capacity_bytes / slot_bytes).max(1);
        Ok(Self { region: Region::heap(slots * slot_bytes)?, slot_bytes, fresh: 0, free: Vec::new() })
    }

    /// Bytes that a slot takes: header and payload, in whole pages.
    pub(super) fn slot_bytes(payload_bytes: usize) -> usize {
        (HEADER_BYTES + payload_bytes).next_multiple_of(PAGE_BYTES)
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Offset of a free slot.
    pub(super) fn take(&mut self) -> Option<usize> {
        if let Some(offset) = self.free.pop() {
            return Some(offset);
        }
        let offset = self.fresh;
        if offset + self.slot_bytes > self.region.len() {
            return None;
        }
        self.fresh += self.slot_bytes;
        Some(offset)
    }

    /// The slot at this offset is free again.
    pub(super) fn give_back(&mut self, offset: usize) {
        assert!(offset < self.fresh && offset.is_multiple_of(self.slot_bytes), "a slot of this arena");
        self.free.push(offset);
    }

    /// Overwrites part of a slot.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        let window = self.region.slice(offset..offset + bytes.len()).expect("a slot of this arena");
        window.copy_from(bytes).expect("own memory is writable");
    }

    /// Flips every bit of one byte.
    pub(super) fn flip(&self, offset: usize) {
        let window = self.region.slice(offset..=offset).expect("a slot of this arena");
        let byte = window.to_vec()[0];
        window.fill(!byte).expect("own memory is writable");
    }
}
