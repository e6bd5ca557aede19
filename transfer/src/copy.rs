//! Copies that say what they copied: the bytes and their CRC-32 in one pass.
//!
//! A digest is always of the bytes that landed in the destination, even when another process changes
//! the source meanwhile, so that what was verified is what was delivered. CRC-32 is the IEEE one, as
//! computed by zlib. A *range* is a fixed number of bytes; the last one of a copy may be shorter.

use std::num::NonZeroUsize;

use crate::error::Error;
use crate::region::RegionSlice;
use crate::sys::copy as raw;

/// Copies `src` to `dst` and returns the CRC-32 of what landed.
///
/// # Errors
/// [`Error::LengthMismatch`] and [`Error::ReadOnly`]; nothing is copied then.
pub fn copy_digest(dst: &RegionSlice, src: &RegionSlice) -> Result<u32, Error> {
    dst.check_write(src.len())?;
    Ok(raw::region_to_region(dst, src))
}

/// Copies `src` out to `dst` and returns the CRC-32 of each range of what landed.
///
/// # Errors
/// [`Error::LengthMismatch`]; nothing is copied then.
pub fn copy_out_digest(
    dst: &mut [u8],
    src: &RegionSlice,
    range_bytes: NonZeroUsize,
) -> Result<Vec<u32>, Error> {
    src.check_read(dst.len())?;
    let mut digests = Vec::with_capacity(src.len().div_ceil(range_bytes.get()));
    for (start, dst) in (0..).step_by(range_bytes.get()).zip(dst.chunks_mut(range_bytes.get())) {
        let end = start + dst.len();
        digests.push(raw::region_to_bytes(dst, &src.slice(start..end)?));
    }
    Ok(digests)
}

/// Copies `src` in to `dst` and returns the CRC-32 of each range of it.
///
/// # Errors
/// [`Error::LengthMismatch`] and [`Error::ReadOnly`]; nothing is copied then.
pub fn copy_in_digest(dst: &RegionSlice, src: &[u8], range_bytes: NonZeroUsize) -> Result<Vec<u32>, Error> {
    dst.check_write(src.len())?;
    let mut digests = Vec::with_capacity(src.len().div_ceil(range_bytes.get()));
    for (start, src) in (0..).step_by(range_bytes.get()).zip(src.chunks(range_bytes.get())) {
        let end = start + src.len();
        digests.push(raw::bytes_to_region(&dst.slice(start..end)?, src));
    }
    Ok(digests)
}

/// The CRC-32 of a window.
#[must_use]
pub fn digest(slice: &RegionSlice) -> u32 {
    raw::region_digest(slice)
}

/// The CRC-32 of each range of a window.
#[must_use]
pub fn digest_ranges(slice: &RegionSlice, range_bytes: NonZeroUsize) -> Vec<u32> {
    let starts = (0..slice.len()).step_by(range_bytes.get());
    starts
        .map(|start| {
            let end = slice.len().min(start + range_bytes.get());
            digest(&slice.slice(start..end).expect("ranges of a window lie inside it"))
        })
        .collect()
}
