//! The whole path, as a person runs it: the built program, its processes, real requests over HTTP.
//!
//! Every run carries a mark in its environment, which its children inherit; so what a run leaves behind is
//! found in /proc whatever its parent is. The checkpoint is a smaller one than the demo's own, and all
//! waits are for conditions, with a deadline that only a hang reaches.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checkpoint;
mod demo;
mod http;
mod refused;
mod run;
mod up;
