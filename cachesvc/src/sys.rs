//! The unsafe corner of the crate, together with `io/uring.rs`: system calls on raw memory.

pub(crate) mod vectored;
