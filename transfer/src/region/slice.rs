//! Bounds-checked windows onto region memory.

use std::num::NonZeroUsize;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use super::{Access, Memory, MemoryKind, RegionId};
use crate::error::Error;

/// A bounds-checked window onto a [`Region`](super::Region). It keeps the memory mapped while it lives, even when every
/// `Region` handle is gone, so it can stand behind an operation in flight.
///
/// Other processes may write shared memory at any time; therefore the bytes are copied in and out, and
/// no safe reference into them is handed out.
#[derive(Clone, Debug)]
pub struct RegionSlice {
    memory: Arc<Memory>,
    offset: usize,
    len: usize,
}

impl RegionSlice {
    pub(super) fn whole(memory: Arc<Memory>) -> Self {
        let len = memory.mapping.len();
        Self { memory, offset: 0, len }
    }

    /// Bytes of the window.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the window has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the window starts in its region, in bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The id of its region, at the owner.
    #[must_use]
    pub fn region_id(&self) -> RegionId {
        self.memory.identity.id
    }

    /// Where the bytes live.
    #[must_use]
    pub fn kind(&self) -> MemoryKind {
        self.memory.kind
    }

    /// Whether the window may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.memory.mapping.access() == Access::ReadWrite
    }

    /// A window inside this one; `range` counts from its first byte.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<Self, Error> {
        let (start, end) = checked(range, self.len as u64, |at| at as u64)?;
        let (start, end) = (start as usize, end as usize);
        Ok(Self { memory: Arc::clone(&self.memory), offset: self.offset + start, len: end - start })
    }

    /// The window cut into pieces of `range_bytes`; the last may be shorter.
    pub(crate) fn ranges(&self, range_bytes: NonZeroUsize) -> impl Iterator<Item = Self> {
        (0..self.len).step_by(range_bytes.get()).map(move |start| Self {
            memory: Arc::clone(&self.memory),
            offset: self.offset + start,
            len: range_bytes.get().min(self.len - start),
        })
    }

    /// Copies `src` into the window.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] unless both are of one length, [`Error::ReadOnly`].
    pub fn copy_from(&self, src: &[u8]) -> Result<(), Error> {
        self.check_write(src.len())?;
        self.write_bytes(src);
        Ok(())
    }

    /// Copies the window into `dst`.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] unless both are of one length.
    pub fn copy_to(&self, dst: &mut [u8]) -> Result<(), Error> {
        self.check_read(dst.len())?;
        self.read_bytes(dst);
        Ok(())
    }

    /// Sets each byte of the window.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub fn fill(&self, byte: u8) -> Result<(), Error> {
        self.check_write(self.len)?;
        self.fill_bytes(byte);
        Ok(())
    }

    /// The window's bytes in a new vector.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read_bytes(&mut bytes);
        bytes
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn check_write(&self, src: usize) -> Result<(), Error> {
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        if src != self.len {
            return Err(Error::LengthMismatch { src, dst: self.len });
        }
        Ok(())
    }

    pub(crate) fn check_read(&self, dst: usize) -> Result<(), Error> {
        if dst != self.len {
            return Err(Error::LengthMismatch { src: self.len, dst });
        }
        Ok(())
    }
}

/// First byte and one past the last of a range, if it lies within `len`.
pub(crate) fn checked<T: Copy>(
    range: impl RangeBounds<T>,
    len: u64,
    as_u64: fn(T) -> u64,
) -> Result<(u64, u64), Error> {
    let start = match range.start_bound() {
        Bound::Included(&start) => as_u64(start),
        Bound::Excluded(&before) => as_u64(before).saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => as_u64(last).saturating_add(1),
        Bound::Excluded(&end) => as_u64(end),
        Bound::Unbounded => len,
    };
    if start > end || end > len {
        return Err(Error::OutOfBounds { start, end, len });
    }
    Ok((start, end))
}
