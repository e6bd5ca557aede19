//! Copy loops.

use crate::region::RegionSlice;

/// Copies `len` bytes.
///
/// # Safety
/// `src` is readable and `dst` writable for `len` bytes, and they do not overlap.
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(src, dst, len) }
}

/// Bytes copied before they are digested: half of a small L1 cache, so the digest reads from there.
const STEP_BYTES: usize = 4096;

/// Copies one window to another of the same length, and digests what landed.
pub(crate) fn region_to_region(dst: &RegionSlice, src: &RegionSlice) -> u32 {
    let (dst, src) = (dst.raw(), src.raw());
    assert_eq!(dst.len, src.len, "lengths are checked before");
    let mut staged = [0_u8; STEP_BYTES];
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    while done < src.len {
        let step = STEP_BYTES.min(src.len - done);
        // SAFETY: `done + step` is within both windows, which are live, and within the stage.
        unsafe {
            copy(staged.as_mut_ptr(), src.ptr.add(done), step);
            copy(dst.ptr.add(done), staged.as_ptr(), step);
        }
        hasher.update(&staged[..step]);
        done += step;
    }
    hasher.finalize()
}

/// Copies a window out to private memory of the same length, and digests what landed.
pub(crate) fn region_to_bytes(dst: &mut [u8], src: &RegionSlice) -> u32 {
    let src = src.raw();
    assert_eq!(dst.len(), src.len, "lengths are checked before");
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    for dst in dst.chunks_mut(STEP_BYTES) {
        // SAFETY: `done + dst.len()` is within the window, which is live; `dst` is borrowed exclusively.
        unsafe { copy(dst.as_mut_ptr(), src.ptr.add(done), dst.len()) };
        hasher.update(dst);
        done += dst.len();
    }
    hasher.finalize()
}

/// Copies private memory to a window of the same length, and digests it.
pub(crate) fn bytes_to_region(dst: &RegionSlice, src: &[u8]) -> u32 {
    let dst = dst.raw();
    assert_eq!(dst.len, src.len(), "lengths are checked before");
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    for src in src.chunks(STEP_BYTES) {
        hasher.update(src);
        // SAFETY: `done + src.len()` is within the window, which is live and writable.
        unsafe { copy(dst.ptr.add(done), src.as_ptr(), src.len()) };
        done += src.len();
    }
    hasher.finalize()
}

/// Digests a window, step by step through a private stage.
pub(crate) fn region_digest(src: &RegionSlice) -> u32 {
    let src = src.raw();
    let mut staged = [0_u8; STEP_BYTES];
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    while done < src.len {
        let step = STEP_BYTES.min(src.len - done);
        // SAFETY: `done + step` is within the live window, and `step` within the stage.
        unsafe { copy(staged.as_mut_ptr(), src.ptr.add(done), step) };
        hasher.update(&staged[..step]);
        done += step;
    }
    hasher.finalize()
}
