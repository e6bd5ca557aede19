//! Slots that may be written, then sealed: dropping the guard gives them back at the node.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crc32fast::Hasher;
use hearth_proto::v1;
use hearth_transfer::{RegionSlice, copy_in_digest};

use crate::backend::{Failure, Op, Outcome};
use crate::error::{Miss, SealError, Violation, WriteError};
use crate::grant::Granted;
use crate::lease::Shared;
use crate::store::Permit;

/// How long after it was asked for a reservation may be written and sealed. The node keeps it a little longer, so a
/// slot is never written here after it was given to another client there.
pub const RESERVATION_VALID: Duration = Duration::from_secs(25);

/// What an acknowledgement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// The blocks are visible to readers.
    Memory,
    /// The blocks are on NVMe and survive the node's death.
    Nvme,
}

/// Blocks that the node acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// How many; those granted and written.
    pub blocks: usize,
}

/// Slots for blocks of a chain that the store does not hold yet.
///
/// Only what is written is sealed; nothing is visible before. Dropping the guard without
/// [`seal`](Self::seal) gives everything up; it sends a message and never blocks.
#[derive(Debug)]
pub struct Reservation {
    held: Option<Held>,
    granted: Vec<usize>,
    present: usize,
    refused: usize,
    payload_bytes: usize,
    miss: Option<Miss>,
}

/// A grant that has not been sealed or given back.
#[derive(Debug)]
struct Held {
    id: u64,
    slots: Vec<RegionSlice>,
    progress: Mutex<Vec<Progress>>,
    valid_until: Instant,
    shared: Shared,
    _permit: Permit,
}

/// How far one slot is.
#[derive(Debug)]
enum Progress {
    Empty,
    Writing,
    Written(Vec<u32>),
}

/// What was asked for and what the node counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    pub(crate) asked: usize,
    pub(crate) refused: usize,
    pub(crate) asked_at: Instant,
}

impl Reservation {
    /// Nothing was granted because the store could not be asked.
    pub(crate) fn missed(payload_bytes: usize, miss: Miss) -> Self {
        Self { held: None, granted: Vec::new(), present: 0, refused: 0, payload_bytes, miss: Some(miss) }
    }

    pub(crate) fn new(granted: Option<Granted>, tally: Tally, shared: Shared, permit: Permit) -> Self {
        let payload_bytes = shared.scope.payload_bytes;
        let granted_count = granted.as_ref().map_or(0, |granted| granted.indices.len());
        let present = tally.asked - tally.refused - granted_count;
        let (held, indices) = match granted {
            None => (None, Vec::new()),
            Some(granted) => {
                let progress = granted.slots.iter().map(|_| Progress::Empty).collect();
                let held = Held {
                    id: granted.id,
                    slots: granted.slots.iter().map(|slot| slot.payload().clone()).collect(),
                    progress: Mutex::new(progress),
                    valid_until: tally.asked_at + RESERVATION_VALID,
                    shared,
                    _permit: permit,
                };
                (Some(held), granted.indices)
            }
        };
        Self { held, granted: indices, present, refused: tally.refused, payload_bytes, miss: None }
    }

    /// Indices in the chain of the blocks to write, rising.
    pub fn granted(&self) -> &[usize] {
        &self.granted
    }

    /// Blocks asked for that are stored already or are being written by another client.
    pub fn present(&self) -> usize {
        self.present
    }

    /// Blocks asked for that the node has no room for.
    pub fn refused(&self) -> usize {
        self.refused
    }

    /// Why the store could not be asked.
    pub fn miss(&self) -> Option<Miss> {
        self.miss
    }

    /// Bytes of one block; 0 without a store.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Copies the payload of block `index` of the chain into its slot. The checksums are taken from `payload` in the
    /// same pass. Many threads may write different blocks at once.
    ///
    /// # Errors
    /// See [`WriteError`]. After [`WriteError::Stale`] the whole reservation is of no use.
    pub fn write(&self, index: usize, payload: &[u8]) -> Result<(), WriteError> {
        self.write_parts(index, &[payload])
    }

    /// As [`write`](Self::write), from a payload in parts: consecutive, in payload order, cut anywhere.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_parts(&self, index: usize, parts: &[&[u8]]) -> Result<(), WriteError> {
        let given = parts.iter().map(|part| part.len()).sum();
        let at = self.granted.binary_search(&index).map_err(|_absent| WriteError::NotGranted(index))?;
        let held = self.held.as_ref().ok_or(WriteError::Stale)?;
        if given != self.payload_bytes {
            return Err(WriteError::Length { given, expected: self.payload_bytes });
        }
        if !held.is_valid() {
            return Err(WriteError::Stale);
        }
        held.advance(at, |progress| match progress {
            Progress::Empty => Ok(Progress::Writing),
            Progress::Writing | Progress::Written(_) => Err(WriteError::Twice(index)),
        })?;
        let copied = copy_parts(&held.slots[at], parts, held.shared.scope.range_bytes);
        held.advance(at, |_writing| match copied {
            Ok(crcs) => Ok(Progress::Written(crcs)),
            Err(_read_only) => Ok(Progress::Empty),
        })?;
        if held.written(at) { Ok(()) } else { Err(WriteError::Stale) }
    }

    /// Makes what was written visible to readers, and waits until the node acknowledges this much durability.
    /// Granted blocks that were not written are given up.
    ///
    /// # Errors
    /// See [`SealError`]. In no case can a reader get wrong bytes.
    pub fn seal(mut self, durability: Durability, deadline: Instant) -> Result<Sealed, SealError> {
        let Some(held) = &self.held else { return Ok(Sealed { blocks: 0 }) };
        let blocks = held.sealed_blocks(&self.granted);
        if blocks.is_empty() {
            return Ok(Sealed { blocks: 0 });
        }
        if !held.is_valid() {
            return Err(SealError::Stale);
        }
        let count = blocks.len();
        let durability = match durability {
            Durability::Memory => v1::Durability::Memory,
            Durability::Nvme => v1::Durability::Nvme,
        };
        let seal = v1::Seal { reservation: held.id, blocks, durability: durability.into() };
        let memory = &held.shared.memory;
        let answer = held.shared.backend.call(Op::Seal(seal), Some(memory), deadline);
        let outcome = match answer.map(|answer| answer.outcome) {
            Ok(Outcome::Done(v1::Done {})) => Ok(Sealed { blocks: count }),
            Ok(_other) => {
                held.shared.backend.distrust(memory, Violation::WrongAnswer);
                Err(SealError::StoreDown)
            }
            Err(failure) => Err(failure.into()),
        };
        if outcome.is_ok() {
            self.held = None;
        }
        outcome
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            let abort = v1::Abort { reservation: held.id };
            held.shared.backend.give_back(&held.shared.memory, Op::Abort(abort));
        }
    }
}

impl Held {
    fn is_valid(&self) -> bool {
        self.shared.memory.is_alive() && Instant::now() < self.valid_until
    }

    fn advance(
        &self,
        at: usize,
        step: impl FnOnce(&Progress) -> Result<Progress, WriteError>,
    ) -> Result<(), WriteError> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress[at] = step(&progress[at])?;
        Ok(())
    }

    fn written(&self, at: usize) -> bool {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(progress[at], Progress::Written(_))
    }

    fn sealed_blocks(&self, granted: &[usize]) -> Vec<v1::SealedBlock> {
        let range_bytes = u32::try_from(self.shared.scope.range_bytes.get()).expect("a layer is under 4 GiB");
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let written = granted.iter().zip(progress.iter()).filter_map(|(&index, progress)| match progress {
            Progress::Written(crcs) => Some((index, crcs.clone())),
            Progress::Empty | Progress::Writing => None,
        });
        written
            .map(|(index, range_crcs)| v1::SealedBlock {
                index: u32::try_from(index).expect("a chain is under 2^32 blocks"),
                range_bytes,
                range_crcs,
            })
            .collect()
    }
}

impl From<Failure> for SealError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Deadline => Self::Deadline,
            Failure::StoreDown | Failure::Refused | Failure::Off => Self::StoreDown,
            Failure::Node { code, message } => Self::Node { code, message },
        }
    }
}

/// Copies the parts one after another to `dst` and returns the CRC-32 of each range of what they hold.
fn copy_parts(
    dst: &RegionSlice,
    parts: &[&[u8]],
    range_bytes: NonZeroUsize,
) -> Result<Vec<u32>, hearth_transfer::Error> {
    if let [payload] = parts {
        return copy_in_digest(dst, payload, range_bytes);
    }
    let mut crcs = Vec::with_capacity(dst.len().div_ceil(range_bytes.get()));
    let mut open = Hasher::new();
    let mut at = 0;
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let room = range_bytes.get() - at % range_bytes.get();
            let (piece, after) = rest.split_at(room.min(rest.len()));
            let piece_bytes = NonZeroUsize::new(piece.len()).expect("neither room nor rest is empty");
            let [crc] = copy_in_digest(&dst.slice(at..at + piece.len())?, piece, piece_bytes)?[..] else {
                unreachable!("one range is digested to one checksum")
            };
            open.combine(&Hasher::new_with_initial_len(crc, piece.len() as u64));
            at += piece.len();
            rest = after;
            if at.is_multiple_of(range_bytes.get()) || at == dst.len() {
                crcs.push(std::mem::take(&mut open).finalize());
            }
        }
    }
    Ok(crcs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_transfer::Region;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cut_anywhere_give_the_checksums_of_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 1..9000),
            cuts in prop::collection::vec(0usize..9000, 0..8),
            range in 1usize..5000,
        ) {
            let range = NonZeroUsize::new(range).expect("positive");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let dst = Region::heap(bytes.len()).expect("memory").slice(..bytes.len()).expect("inside");
            let crcs = copy_parts(&dst, &parts, range).expect("same length");
            let expected: Vec<u32> = bytes.chunks(range.get()).map(crc32fast::hash).collect();
            prop_assert_eq!(crcs, expected);
            prop_assert_eq!(dst.to_vec(), bytes);
        }
    }
}
