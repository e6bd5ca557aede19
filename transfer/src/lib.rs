//! Moves bytes between registered memory regions.

#![deny(unsafe_code)]

pub mod copy;
mod error;
mod region;
#[expect(unsafe_code, reason = "mappings and copy loops; every other module is safe")]
mod sys;

pub use copy::{
    Stores, copy_digest, copy_digest_ranges, copy_in_digest, copy_out_digest, copy_out_digest_with, digest,
    digest_ranges,
};
pub use error::{Error, ErrorKind};
pub use region::{
    Access, Export, Generation, MemoryKind, PAGE_BYTES, REGION_BYTES_MAX, Region, RegionId, RegionSlice,
    RegionTicket,
};
pub use sys::RawParts;
pub use sys::fds::{FDS_PER_MESSAGE_MAX, recv_with_fds, send_all_with_fds, send_with_fds};
