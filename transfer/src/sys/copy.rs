//! Copy loops: plain, and fused with the digest of what they stored.
//!
//! Sources may be shared memory that another process changes under the loop. Therefore every byte that
//! is digested is read from the source once: it is either digested where it landed in private memory, or
//! loaded into a register once and stored both to the destination and to a private stage, and the stage
//! is digested.
//!
//! Expected: with streaming stores about as fast as the memory lets one thread read and write, which is
//! 1.4 times glibc `memcpy` on 1 MiB blocks out of cache (10.9 against 7.7 GB/s on a Sapphire Rapids
//! guest); with cached stores about 0.9 of `memcpy`.

use crate::copy::Stores;
use crate::region::RegionSlice;

/// Bytes between two digest steps of a cached copy: they still lie in L1 when they are digested, and are
/// enough for `memcpy` to make up for an unaligned destination. Where `memcpy` of whole 1 MiB blocks gave
/// 7.4 GB/s, steps of 4, 16 and 32 KiB gave 5.4, 6.8 and 6.6 at 16 bytes past a page, and 7.6, 7.6 and 7.2
/// at its start.
const CACHED_STEP_BYTES: usize = 16 * 1024;

/// Bytes between two digest steps of a streaming copy. Smaller steps overlap digest and memory better,
/// larger ones cost fewer digest set-ups: 512, 1024 and 2048 gave 9.4, 10.2 and 8.9 GB/s.
const STREAM_STEP_BYTES: usize = 1024;

/// How far ahead of itself a streaming copy asks for its source; 2, 3, 4, 6 and 8 KiB gave 9.4, 10.2,
/// 10.2, 9.4 and 10.0 GB/s.
const STREAM_AHEAD_BYTES: usize = 4096;

/// A vector store that bypasses the cache needs this alignment.
const STREAM_ALIGN: usize = 64;

/// Copies `len` bytes.
///
/// # Safety
/// `src` is readable and `dst` writable for `len` bytes, and they do not overlap.
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(src, dst, len) }
}

/// Copies one window to another of the same length.
pub(crate) fn region_move(dst: &RegionSlice, src: &RegionSlice) {
    let (dst, src) = (dst.raw(), src.raw());
    assert_eq!(dst.len, src.len, "lengths are checked before");
    // SAFETY: both windows are live for `len` bytes and `dst` is writable; overlap is allowed here.
    unsafe { std::ptr::copy(src.ptr, dst.ptr, src.len) }
}

/// Copies one window to another of the same length, and digests what was stored.
pub(crate) fn region_to_region(dst: &RegionSlice, src: &RegionSlice, stores: Stores) -> u32 {
    let (dst, src) = (dst.raw(), src.raw());
    assert_eq!(dst.len, src.len, "lengths are checked before");
    let kernel = if stores == Stores::Streaming { streaming_kernel() } else { staged_step };
    // SAFETY: both windows are live for `len` bytes and `dst` is writable. Should they overlap, bytes
    // still move through the private stage; the result is then what a forward copy gives.
    unsafe { through_stage(dst.ptr, src.ptr, src.len, kernel) }
}

/// Copies a window out to private memory of the same length, and digests what landed.
pub(crate) fn region_to_bytes(dst: &mut [u8], src: &RegionSlice, stores: Stores) -> u32 {
    let src = src.raw();
    assert_eq!(dst.len(), src.len, "lengths are checked before");
    if stores == Stores::Streaming {
        // SAFETY: the window is live for `len` bytes; `dst` is borrowed exclusively.
        return unsafe { through_stage(dst.as_mut_ptr(), src.ptr, src.len, streaming_kernel()) };
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    for dst in dst.chunks_mut(CACHED_STEP_BYTES) {
        // SAFETY: `done + dst.len()` is within the window, which is live; `dst` is borrowed exclusively.
        unsafe { copy(dst.as_mut_ptr(), src.ptr.add(done), dst.len()) };
        hasher.update(dst);
        done += dst.len();
    }
    hasher.finalize()
}

/// Copies private memory to a window of the same length, and digests it.
pub(crate) fn bytes_to_region(dst: &RegionSlice, src: &[u8], stores: Stores) -> u32 {
    let dst = dst.raw();
    assert_eq!(dst.len, src.len(), "lengths are checked before");
    if stores == Stores::Streaming {
        // SAFETY: the window is live and writable for `len` bytes; `src` is a shared borrow.
        return unsafe { through_stage(dst.ptr, src.as_ptr(), src.len(), streaming_kernel()) };
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    for src in src.chunks(CACHED_STEP_BYTES) {
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
    let mut stage = [0_u8; CACHED_STEP_BYTES];
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    while done < src.len {
        let step = CACHED_STEP_BYTES.min(src.len - done);
        // SAFETY: `done + step` is within the live window, and `step` within the stage.
        unsafe { copy(stage.as_mut_ptr(), src.ptr.add(done), step) };
        hasher.update(&stage[..step]);
        done += step;
    }
    hasher.finalize()
}

/// Moves one step: `(dst, stage, src, len)`. Each source byte is loaded once and stored to both.
///
/// Contract of all kernels: `dst` is aligned to [`STREAM_ALIGN`], `len` is a multiple of it, the stage
/// has that alignment and room for `len`, and none of the three overlap.
type Kernel = unsafe fn(*mut u8, *mut u8, *const u8, usize);

/// Private memory of one step.
#[repr(C, align(64))]
struct Stage([u8; STREAM_STEP_BYTES]);

const _: () = assert!(STREAM_STEP_BYTES.is_multiple_of(STREAM_ALIGN));
const _: () = assert!(align_of::<Stage>() == STREAM_ALIGN);

/// Copies `len` bytes step by step and digests what was stored.
///
/// # Safety
/// `src` is readable and `dst` writable for `len` bytes.
unsafe fn through_stage(dst: *mut u8, src: *const u8, len: usize, kernel: Kernel) -> u32 {
    let mut stage = Stage([0; STREAM_STEP_BYTES]);
    let mut hasher = crc32fast::Hasher::new();
    let head = dst.align_offset(STREAM_ALIGN).min(len);
    let mut done = 0;
    while done < len {
        let left = len - done;
        let (step, kernel) = match () {
            () if done < head => (head, staged_step as Kernel),
            () if left < STREAM_ALIGN => (left, staged_step as Kernel),
            () => (STREAM_STEP_BYTES.min(left - left % STREAM_ALIGN), kernel),
        };
        // SAFETY: `done + step` is within both ranges, `step` within the stage. Past the head `dst` is
        // aligned, and only whole vectors are given to a vector kernel.
        unsafe { kernel(dst.add(done), stage.0.as_mut_ptr(), src.add(done), step) };
        if done + STREAM_AHEAD_BYTES + step <= len {
            prefetch(src.wrapping_add(done + STREAM_AHEAD_BYTES), step);
        }
        hasher.update(&stage.0[..step]);
        done += step;
    }
    stores_done();
    hasher.finalize()
}

/// The kernel for any machine: cached stores through the stage. Needs no alignment.
///
/// # Safety
/// See [`Kernel`].
unsafe fn staged_step(dst: *mut u8, stage: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the contract of kernels.
    unsafe {
        copy(stage, src, len);
        copy(dst, stage, len);
    }
}

/// The best kernel of this machine whose stores bypass the cache.
fn streaming_kernel() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return x86::stream_avx512;
        }
        if std::is_x86_feature_detected!("avx2") {
            return x86::stream_avx2;
        }
    }
    staged_step
}

#[cfg(target_arch = "x86_64")]
use x86::{prefetch, stores_done};

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_from: *const u8, _len: usize) {}

#[cfg(not(target_arch = "x86_64"))]
fn stores_done() {}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm_sfence, _mm256_loadu_si256, _mm256_store_si256, _mm256_stream_si256,
        _mm512_loadu_si512, _mm512_store_si512, _mm512_stream_si512,
    };

    const LINE_BYTES: usize = 64;

    /// # Safety
    /// The machine has AVX-512F. See [`super::Kernel`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn stream_avx512(dst: *mut u8, stage: *mut u8, src: *const u8, len: usize) {
        for at in (0..len).step_by(64) {
            // SAFETY: `len` is a multiple of 64 and each range is valid for it; `dst` and the stage are
            // aligned to 64.
            unsafe {
                let line = _mm512_loadu_si512(src.add(at).cast());
                _mm512_store_si512(stage.add(at).cast(), line);
                _mm512_stream_si512(dst.add(at).cast(), line);
            }
        }
    }

    /// # Safety
    /// The machine has AVX2. See [`super::Kernel`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn stream_avx2(dst: *mut u8, stage: *mut u8, src: *const u8, len: usize) {
        for at in (0..len).step_by(64) {
            // SAFETY: as in `stream_avx512`.
            unsafe {
                let low = _mm256_loadu_si256(src.add(at).cast());
                let high = _mm256_loadu_si256(src.add(at + 32).cast());
                _mm256_store_si256(stage.add(at).cast(), low);
                _mm256_store_si256(stage.add(at + 32).cast(), high);
                _mm256_stream_si256(dst.add(at).cast(), low);
                _mm256_stream_si256(dst.add(at + 32).cast(), high);
            }
        }
    }

    /// Asks for source lines ahead of their use. An address nobody mapped is ignored by the machine.
    pub(super) fn prefetch(from: *const u8, len: usize) {
        for at in (0..len).step_by(LINE_BYTES) {
            // SAFETY: a prefetch reads nothing that the program can see and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(at).cast()) };
        }
    }

    /// Orders streaming stores before whatever this thread publishes next.
    pub(super) fn stores_done() {
        // SAFETY: every x86-64 machine has SSE.
        unsafe { _mm_sfence() };
    }
}

#[cfg(test)]
mod tests;
