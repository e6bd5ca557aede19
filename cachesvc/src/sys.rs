//! The unsafe corner of the crate, together with `io/uring.rs`: system calls on raw memory.

#[cfg(test)]
pub(crate) mod seccomp;
pub(crate) mod vectored;
