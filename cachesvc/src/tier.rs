//! Where the bytes of blocks lie.

pub mod nvme;
