//! Blocks that may be read: dropping the guard releases them at the node.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hearth_proto::key::{self, BlockKey};
use hearth_proto::v1;

use crate::backend::{Backend, Op};
use crate::error::Miss;
use crate::grant::Leased;
use crate::local::{Scope, SessionMemory, VerifiedView};
use crate::metrics::Metrics;
use crate::store::{Permit, Tier};

/// Consecutive blocks of a chain that the node keeps in place while this guard lives.
///
/// Reads take `&self` and may run on many threads. Blocks are counted from the first one leased, so block `i` is
/// block `first() + i` of the chain. Dropping the guard releases the lease; it sends a message and never blocks.
#[derive(Debug)]
pub struct Lease {
    leased: Leased,
    first: usize,
    keys: Vec<BlockKey>,
    corrupt: Mutex<Vec<BlockKey>>,
    shared: Shared,
    _permit: Permit,
}

/// What a guard needs of its client.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) memory: Arc<SessionMemory>,
    pub(crate) scope: Arc<Scope>,
    pub(crate) metrics: Metrics,
}

impl Lease {
    /// `chain` is the chain asked for and `first` the index of the first leased block in it.
    pub(crate) fn new(
        leased: Leased,
        chain: &[BlockKey],
        first: usize,
        shared: Shared,
        permit: Permit,
    ) -> Self {
        let keys = chain[first..first + leased.slots.len()].to_vec();
        Self { leased, first, keys, corrupt: Mutex::default(), shared, _permit: permit }
    }

    /// Number of blocks; never none.
    #[expect(clippy::len_without_is_empty, reason = "a lease is never empty")]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Index in the chain of the first block.
    pub fn first(&self) -> usize {
        self.first
    }

    /// The blocks' indices in the chain.
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.len()
    }

    /// Keys of the blocks.
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// Where each block was found.
    pub fn tiers(&self) -> &[Tier] {
        &self.leased.tiers
    }

    /// Bytes of one block.
    pub fn payload_bytes(&self) -> usize {
        self.shared.scope.payload_bytes
    }

    /// Bytes of one checksum range, which is one layer.
    pub fn range_bytes(&self) -> usize {
        self.shared.scope.range_bytes.get()
    }

    /// Copies block `i` to `dst`, which has [`payload_bytes`](Self::payload_bytes) bytes, and checks what landed.
    ///
    /// # Errors
    /// The miss that the block has become. `dst` then holds bytes of no meaning and must not be used.
    pub fn read(&self, i: usize, dst: &mut [u8]) -> Result<(), Miss> {
        self.read_range(i, 0..self.payload_bytes(), dst)
    }

    /// Copies `bytes` of block `i` to `dst` of the same length and checks what landed. The range begins and ends on
    /// multiples of [`range_bytes`](Self::range_bytes), so that it has checksums of its own.
    ///
    /// # Errors
    /// The miss that the block has become. `dst` then holds bytes of no meaning and must not be used.
    pub fn read_range(&self, i: usize, bytes: Range<usize>, dst: &mut [u8]) -> Result<(), Miss> {
        let (Some(slot), Some(key)) = (self.leased.slots.get(i), self.keys.get(i)) else {
            return Err(Miss::Misuse);
        };
        if bytes.len() != dst.len() {
            return Err(Miss::Misuse);
        }
        let start = Instant::now();
        self.holding(key, || slot.read(&self.shared.scope, key, bytes, dst))?;
        self.shared.metrics.loaded(self.leased.tiers[i], dst.len(), start.elapsed());
        Ok(())
    }

    /// Block `i` where it lies, checked once, without a copy. See [`VerifiedView`] for what the caller owes.
    ///
    /// # Errors
    /// The miss that the block has become.
    pub fn view(&self, i: usize) -> Result<VerifiedView<'_>, Miss> {
        self.check_in_place(i)?;
        Ok(VerifiedView::new(self, i, self.leased.slots[i].payload().clone()))
    }

    pub(crate) fn check_in_place(&self, i: usize) -> Result<(), Miss> {
        let (Some(slot), Some(key)) = (self.leased.slots.get(i), self.keys.get(i)) else {
            return Err(Miss::Misuse);
        };
        self.holding(key, || slot.verify(&self.shared.scope, key))
    }

    /// Runs a read while the lease holds, and remembers the block when it is found corrupt.
    fn holding(&self, key: &BlockKey, read: impl FnOnce() -> Result<(), Miss>) -> Result<(), Miss> {
        let memory = &self.shared.memory;
        if !memory.is_alive() {
            return Err(Miss::StoreDown);
        }
        let outcome = read();
        if !memory.is_alive() {
            return Err(Miss::StoreDown);
        }
        if outcome == Err(Miss::Corrupt) {
            self.note_corrupt(key);
        }
        outcome
    }

    fn note_corrupt(&self, key: &BlockKey) {
        let mut corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
        if !corrupt.contains(key) {
            corrupt.push(*key);
            self.shared.metrics.corrupt();
            tracing::warn!(
                key = key.short(),
                "a block did not check; it is a miss and the node will drop it"
            );
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let corrupt = self.corrupt.get_mut().unwrap_or_else(PoisonError::into_inner);
        let release = v1::Release { lease: self.leased.id, corrupt_keys: key::pack(corrupt) };
        self.shared.backend.give_back(&self.shared.memory, Op::Release(release));
    }
}
