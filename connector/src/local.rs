//! The path to blocks of a node on the same host: its memory is mapped here, and each read is checked.
//!
//! A slot is 4,096 bytes of header, written by the node when the block is sealed, then the payload. A reader copies
//! the header, checks that it is the one asked for, copies the payload while taking its checksums, compares them
//! with the header's, and sees at last that the header is still the same. Further reads under the same lease, such
//! as of one layer after another, keep the first header and compare with that.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use hearth_proto::header::{BlockHeader, Generation, HEADER_BYTES};
use hearth_proto::identity::{CacheIdentity, Fingerprint};
use hearth_proto::key::BlockKey;
use hearth_proto::layout::BlockLayout;
use hearth_proto::limit::FRAME_BYTES_MAX;
use hearth_proto::tenant::{TenantId, TenantName};
use hearth_transfer::{PAGE_BYTES, Region, RegionSlice, copy_out_digest, digest_ranges};

use crate::error::{Miss, Refusal, Violation};
use crate::lease::Lease;

/// The memory that one session was given, and whether that session still lives.
#[derive(Debug)]
pub(crate) struct SessionMemory {
    session: u64,
    alive: AtomicBool,
    regions: Vec<(u32, Region)>,
}

impl SessionMemory {
    /// `session` is this process's own number for it, never used twice.
    pub(crate) fn new(session: u64, regions: Vec<(u32, Region)>) -> Self {
        Self { session, alive: AtomicBool::new(true), regions }
    }

    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Whether leases and reservations of the session still hold.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// The session is over: its leases and reservations are void.
    pub(crate) fn end(&self) {
        self.alive.store(false, Ordering::Release);
    }

    /// The slot at a place that the node names.
    pub(crate) fn slot(&self, place: Place, payload_bytes: usize) -> Result<Slot, Violation> {
        let Place { region, offset, generation } = place;
        let found = self.regions.iter().find(|(id, _)| *id == region);
        let (_, memory) = found.ok_or(Violation::Region(region))?;
        let outside = || Violation::Slot { region, offset };
        let start = usize::try_from(offset).map_err(|_too_far| outside())?;
        let end = start.checked_add(HEADER_BYTES + payload_bytes).ok_or_else(outside)?;
        if !start.is_multiple_of(PAGE_BYTES) {
            return Err(outside());
        }
        let slice = |range: Range<usize>| memory.slice(range).map_err(|_outside| outside());
        Ok(Slot {
            header: slice(start..start + HEADER_BYTES)?,
            payload: slice(start + HEADER_BYTES..end)?,
            generation,
            sealed: OnceLock::new(),
        })
    }
}

/// Where a block lies, as a node names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) region: u32,
    pub(crate) offset: u64,
    pub(crate) generation: Generation,
}

/// A slot within the bounds of its region.
#[derive(Debug)]
pub(crate) struct Slot {
    header: RegionSlice,
    payload: RegionSlice,
    generation: Generation,
    sealed: OnceLock<Sealed>,
}

/// What the right header said when it was first read: later reads compare with it instead of reading it whole.
#[derive(Debug)]
struct Sealed {
    /// Everything in the header but the checksums of the ranges, which its own checksum covers.
    prefix: [u8; HEADER_PREFIX_BYTES],
    range_crcs: Vec<u32>,
}

/// Bytes of a header before the checksums of the ranges.
const HEADER_PREFIX_BYTES: usize = 256;

/// Bytes of one block in a Seal beside its checksums, and the message's own share.
const SEALED_BLOCK_BYTES: usize = 48;

/// What all blocks of one client have in common.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) tenant: TenantId,
    pub(crate) payload_bytes: usize,
    pub(crate) range_bytes: NonZeroUsize,
}

impl Scope {
    pub(crate) fn new(identity: &CacheIdentity, tenant: &TenantName) -> Result<Self, Refusal> {
        identity.validate()?;
        let layout = BlockLayout::new(identity)?;
        let range_bytes = NonZeroUsize::new(layout.layer_bytes()).expect("a layout has no empty layer");
        Ok(Self {
            fingerprint: identity.fingerprint(),
            tenant: tenant.id(),
            payload_bytes: layout.payload_bytes(),
            range_bytes,
        })
    }

    /// Blocks of one reservation, so that the message which seals them all fits in a frame.
    pub(crate) fn reserve_blocks_max(&self) -> usize {
        let crcs = self.payload_bytes.div_ceil(self.range_bytes.get());
        FRAME_BYTES_MAX / (SEALED_BLOCK_BYTES + size_of::<u32>() * crcs)
    }

    /// Whether `header` is the one of block `key` in a slot of this generation.
    fn check(&self, header: &BlockHeader, key: &BlockKey, generation: Generation) -> Result<(), Miss> {
        if header.generation != generation {
            return Err(Miss::Stale);
        }
        let same = header.key == *key
            && header.fingerprint == self.fingerprint
            && header.tenant == self.tenant
            && usize::try_from(header.payload_bytes) == Ok(self.payload_bytes)
            && usize::try_from(header.range_bytes) == Ok(self.range_bytes.get());
        if same { Ok(()) } else { Err(Miss::Corrupt) }
    }

    /// The checksum ranges that `bytes` covers, if it begins and ends with whole ones.
    fn ranges(&self, bytes: &Range<usize>) -> Result<Range<usize>, Miss> {
        let range = self.range_bytes.get();
        let inside = bytes.start <= bytes.end && bytes.end <= self.payload_bytes;
        let whole = bytes.start.is_multiple_of(range)
            && (bytes.end.is_multiple_of(range) || bytes.end == self.payload_bytes);
        if inside && whole { Ok(bytes.start / range..bytes.end.div_ceil(range)) } else { Err(Miss::Misuse) }
    }
}

impl Slot {
    /// Copies `bytes` of the payload to `dst` and checks what landed.
    pub(crate) fn read(
        &self,
        scope: &Scope,
        key: &BlockKey,
        bytes: Range<usize>,
        dst: &mut [u8],
    ) -> Result<(), Miss> {
        let ranges = scope.ranges(&bytes)?;
        let source = self.payload.slice(bytes).map_err(|_outside| Miss::Misuse)?;
        let sealed = self.sealed(scope, key)?;
        let landed = copy_out_digest(dst, &source, scope.range_bytes).map_err(|_length| Miss::Misuse)?;
        self.compare(sealed, &sealed.range_crcs[ranges], &landed)
    }

    /// Checks the whole payload where it lies.
    pub(crate) fn verify(&self, scope: &Scope, key: &BlockKey) -> Result<(), Miss> {
        let sealed = self.sealed(scope, key)?;
        self.compare(sealed, &sealed.range_crcs, &digest_ranges(&self.payload, scope.range_bytes))
    }

    /// What the header says, if it is the right one.
    fn sealed(&self, scope: &Scope, key: &BlockKey) -> Result<&Sealed, Miss> {
        if let Some(sealed) = self.sealed.get() {
            return Ok(sealed);
        }
        let raw = self.header_bytes();
        let header = BlockHeader::decode(&raw).map_err(|_damaged| Miss::Corrupt)?;
        scope.check(&header, key, self.generation)?;
        let prefix = *raw.first_chunk().expect("a header is longer than its prefix");
        Ok(self.sealed.get_or_init(|| Sealed { prefix, range_crcs: header.range_crcs }))
    }

    /// Whether what landed is what was sealed, and its header is still there.
    fn compare(&self, sealed: &Sealed, stated: &[u32], landed: &[u32]) -> Result<(), Miss> {
        fence(Ordering::Acquire);
        let mut prefix = [0; HEADER_PREFIX_BYTES];
        let window = self.header.slice(..HEADER_PREFIX_BYTES).expect("a header is longer than its prefix");
        window.copy_to(&mut prefix).expect("the window has this length");
        if stated == landed && prefix == sealed.prefix {
            return Ok(());
        }
        // Another block under another generation is no fault of the memory.
        match BlockHeader::decode(&self.header_bytes()) {
            Ok(now) if now.generation != self.generation => Err(Miss::Stale),
            _ => Err(Miss::Corrupt),
        }
    }

    fn header_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        self.header.copy_to(&mut raw).expect("the window has the length of a header");
        raw
    }

    pub(crate) fn payload(&self) -> &RegionSlice {
        &self.payload
    }
}

/// A block's bytes where they lie, checked once.
///
/// The pages are shared with the node. They keep still while the lease holds; a lease ends when its session does,
/// which this process may learn a moment later. So whoever uses the bytes in place calls
/// [`confirm`](Self::confirm) after the last use and before relying on the result, and drops the view before the
/// lease. [`Lease::read`] needs none of that.
#[derive(Debug)]
pub struct VerifiedView<'a> {
    lease: &'a Lease,
    index: usize,
    payload: RegionSlice,
}

impl<'a> VerifiedView<'a> {
    pub(crate) fn new(lease: &'a Lease, index: usize, payload: RegionSlice) -> Self {
        Self { lease, index, payload }
    }

    /// The payload as a window of shared memory: address and length with
    /// [`RegionSlice::raw`], parts of it with [`RegionSlice::slice`].
    pub fn slice(&self) -> &RegionSlice {
        &self.payload
    }

    /// Copies the payload, or as much of it as `dst` takes, from `start` on. Not checked again; see
    /// [`confirm`](Self::confirm).
    ///
    /// # Errors
    /// [`Miss::Misuse`] when `start` and the length of `dst` do not lie within the payload.
    pub fn copy_to(&self, start: usize, dst: &mut [u8]) -> Result<(), Miss> {
        let end = start.checked_add(dst.len()).ok_or(Miss::Misuse)?;
        let part = self.payload.slice(start..end).map_err(|_outside| Miss::Misuse)?;
        part.copy_to(dst).map_err(|_length| Miss::Misuse)
    }

    /// Checks header and bytes once more: what was read in place between the view's creation and this call was
    /// right. Costs one pass over the payload.
    ///
    /// # Errors
    /// The miss that the block has become.
    pub fn confirm(&self) -> Result<(), Miss> {
        self.lease.check_in_place(self.index)
    }
}
