//! Raw windows onto region memory.

use crate::region::RegionSlice;

/// Address and length of a window, for code that hands buffers to the kernel or to a device.
///
/// The address is valid as long as the [`RegionSlice`] it came from, or a clone of it, lives. Keep one
/// beside the posted operation until that has completed. It never goes on a wire.
#[derive(Clone, Copy, Debug)]
pub struct RawParts {
    /// First byte of the window.
    pub ptr: *mut u8,
    /// Bytes of the window.
    pub len: usize,
}

impl RegionSlice {
    /// The bytes of the window, in place.
    ///
    /// # Safety
    /// While the returned slice lives nobody may write these bytes: no thread, no posted operation, and
    /// no other process that maps the region. For shared memory that is a promise about a peer's
    /// behaviour; prefer [`RegionSlice::copy_to`] unless a lease gives it.
    #[must_use]
    pub unsafe fn as_bytes(&self) -> &[u8] {
        let raw = self.raw();
        // SAFETY: the window lies inside a live mapping (checked when it was made, kept by its count);
        // the caller promises that nobody writes it meanwhile.
        unsafe { std::slice::from_raw_parts(raw.ptr, raw.len) }
    }

    /// Address and length of the window. Valid while this slice or a clone of it lives. Writing through
    /// the address needs [`RegionSlice::is_writable`].
    #[must_use]
    pub fn raw(&self) -> RawParts {
        let start = self.memory().mapping().start();
        // SAFETY: offset and length were checked against the mapping when the slice was made.
        let ptr = unsafe { start.add(self.offset()) };
        RawParts { ptr: ptr.as_ptr(), len: self.len() }
    }

    /// Copies `src` into the window. Lengths and access were checked by the caller.
    pub(crate) fn write_bytes(&self, src: &[u8]) {
        let dst = self.raw();
        assert_eq!(dst.len, src.len(), "lengths are checked before");
        // SAFETY: both ranges are live and of equal length; `src` is a shared borrow of memory that the
        // window cannot overlap unless `as_bytes` was misused.
        unsafe { super::copy::copy(dst.ptr, src.as_ptr(), dst.len) }
    }

    /// Copies the window into `dst`. Lengths were checked by the caller.
    pub(crate) fn read_bytes(&self, dst: &mut [u8]) {
        let src = self.raw();
        assert_eq!(dst.len(), src.len, "lengths are checked before");
        // SAFETY: both ranges are live and of equal length; `dst` is an exclusive borrow, so it does not
        // overlap the window.
        unsafe { super::copy::copy(dst.as_mut_ptr(), src.ptr, src.len) }
    }

    /// Sets each byte of the window. Access was checked by the caller.
    pub(crate) fn fill_bytes(&self, byte: u8) {
        let dst = self.raw();
        // SAFETY: the window is live and writable.
        unsafe { std::ptr::write_bytes(dst.ptr, byte, dst.len) }
    }
}
