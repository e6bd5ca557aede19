//! Copies that say what they copied: the bytes and their CRC-32 in one pass.
//!
//! A digest is always of the bytes that landed in the destination, even when another process changes
//! the source meanwhile, so that what was verified is what was delivered. CRC-32 is the IEEE one, as
//! computed by zlib. A *range* is a fixed number of bytes; the last one of a copy may be shorter.

use std::num::NonZeroUsize;

use crate::error::Error;
use crate::region::RegionSlice;
use crate::sys::copy as raw;

/// Copies of at least this many bytes stream unless told otherwise.
pub const STREAM_BYTES_MIN: usize = 256 * 1024;

/// What becomes of the destination's cache lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stores {
    /// They stay in cache: for a destination that this CPU reads next, or that it reuses at once. A
    /// reused 1 MiB buffer that is read after each copy goes twice as fast as with streaming stores.
    Cached,
    /// They go past the cache, about 1.4 times as fast where the destination is out of cache: for large
    /// copies that are read later, by another core, or by a device.
    Streaming,
}

impl Stores {
    /// What usually suits a copy of so many bytes.
    #[must_use]
    pub fn for_bytes(bytes: usize) -> Self {
        if bytes >= STREAM_BYTES_MIN { Self::Streaming } else { Self::Cached }
    }
}

/// Copies `src` to `dst` and returns the CRC-32 of what landed.
///
/// # Errors
/// [`Error::LengthMismatch`] and [`Error::ReadOnly`]; nothing is copied then.
pub fn copy_digest(dst: &RegionSlice, src: &RegionSlice) -> Result<u32, Error> {
    dst.check_write(src.len())?;
    Ok(raw::region_to_region(dst, src, Stores::for_bytes(src.len())))
}

/// Copies `src` out to `dst` and returns the CRC-32 of each range of what landed. Stores as suit the
/// length; see [`copy_out_digest_with`].
///
/// # Errors
/// [`Error::LengthMismatch`]; nothing is copied then.
pub fn copy_out_digest(
    dst: &mut [u8],
    src: &RegionSlice,
    range_bytes: NonZeroUsize,
) -> Result<Vec<u32>, Error> {
    let stores = Stores::for_bytes(src.len());
    copy_out_digest_with(dst, src, range_bytes, stores)
}

/// [`copy_out_digest`] with the stores the caller knows to suit.
///
/// # Errors
/// [`Error::LengthMismatch`]; nothing is copied then.
pub fn copy_out_digest_with(
    dst: &mut [u8],
    src: &RegionSlice,
    range_bytes: NonZeroUsize,
    stores: Stores,
) -> Result<Vec<u32>, Error> {
    src.check_read(dst.len())?;
    let parts = dst.chunks_mut(range_bytes.get()).zip(src.ranges(range_bytes));
    Ok(parts.map(|(dst, src)| raw::region_to_bytes(dst, &src, stores)).collect())
}

/// Copies `src` in to `dst` and returns the CRC-32 of each range of it. Stores as suit the length.
///
/// # Errors
/// [`Error::LengthMismatch`] and [`Error::ReadOnly`]; nothing is copied then.
pub fn copy_in_digest(dst: &RegionSlice, src: &[u8], range_bytes: NonZeroUsize) -> Result<Vec<u32>, Error> {
    dst.check_write(src.len())?;
    let stores = Stores::for_bytes(src.len());
    let parts = dst.ranges(range_bytes).zip(src.chunks(range_bytes.get()));
    Ok(parts.map(|(dst, src)| raw::bytes_to_region(&dst, src, stores)).collect())
}

/// Copies `src` to `dst` and returns the CRC-32 of each range of what landed. Stores as suit the length.
///
/// # Errors
/// [`Error::LengthMismatch`] and [`Error::ReadOnly`]; nothing is copied then.
pub fn copy_digest_ranges(
    dst: &RegionSlice,
    src: &RegionSlice,
    range_bytes: NonZeroUsize,
) -> Result<Vec<u32>, Error> {
    dst.check_write(src.len())?;
    let stores = Stores::for_bytes(src.len());
    let parts = dst.ranges(range_bytes).zip(src.ranges(range_bytes));
    Ok(parts.map(|(dst, src)| raw::region_to_region(&dst, &src, stores)).collect())
}

/// Copies `src` to `dst`, without a digest. Windows of one region may overlap; what lands is then
/// unspecified.
///
/// # Errors
/// [`Error::LengthMismatch`] and [`Error::ReadOnly`]; nothing is copied then.
pub fn copy_window(dst: &RegionSlice, src: &RegionSlice) -> Result<(), Error> {
    dst.check_write(src.len())?;
    match Stores::for_bytes(src.len()) {
        Stores::Cached => raw::region_move(dst, src),
        // The digest comes free with streaming stores, and no faster copy is known.
        Stores::Streaming => drop(raw::region_to_region(dst, src, Stores::Streaming)),
    }
    Ok(())
}

/// The CRC-32 of a window.
#[must_use]
pub fn digest(slice: &RegionSlice) -> u32 {
    raw::region_digest(slice)
}

/// The CRC-32 of each range of a window.
#[must_use]
pub fn digest_ranges(slice: &RegionSlice, range_bytes: NonZeroUsize) -> Vec<u32> {
    slice.ranges(range_bytes).map(|range| digest(&range)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    #[test]
    fn ranges_are_digested_apart_and_the_last_may_be_short() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|i| (i * 7) as u8).collect();
        let range = NonZeroUsize::new(4096).expect("positive");
        let expected: Vec<u32> = bytes.chunks(4096).map(crc32fast::hash).collect();
        let there = Region::heap(bytes.len()).expect("memory").slice(..bytes.len()).expect("inside");
        assert_eq!(copy_in_digest(&there, &bytes, range).expect("same length"), expected);
        assert_eq!(digest_ranges(&there, range), expected);
        let copied = Region::heap(bytes.len()).expect("memory").slice(..bytes.len()).expect("inside");
        assert_eq!(copy_digest_ranges(&copied, &there, range).expect("same length"), expected);
        let mut out = vec![0; bytes.len()];
        assert_eq!(copy_out_digest(&mut out, &copied, range).expect("same length"), expected);
        assert_eq!(out, bytes);
    }

    #[test]
    fn unequal_lengths_copy_nothing() {
        let window = Region::heap(4096).expect("memory").whole();
        let mut out = vec![1; 4095];
        let range = NonZeroUsize::MIN;
        assert!(matches!(copy_out_digest(&mut out, &window, range), Err(Error::LengthMismatch { .. })));
        assert!(out.iter().all(|&byte| byte == 1));
        assert!(matches!(copy_in_digest(&window, &out, range), Err(Error::LengthMismatch { .. })));
    }
}
