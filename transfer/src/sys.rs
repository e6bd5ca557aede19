//! The only unsafe code of the crate: mappings, raw windows onto them, and copy loops.
//!
//! Who owns what until when: a [`map::Mapping`] owns its pages from creation to drop. Every window onto
//! it holds a reference count on it, so the pages outlive each pointer handed out.

mod bytes;
pub(crate) mod copy;
pub(crate) mod fds;
pub(crate) mod map;

pub use bytes::RawParts;
