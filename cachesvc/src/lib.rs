//! The KV block store of one node.
//!
//! One process per host holds the blocks of all engines on it, in pinned memory that they map and on NVMe, so that an
//! engine that dies keeps its cache. It answers and publishes; it never calls its users, and links none of them.
//!
//! The parts, from the bytes up:
//!
//! - [`io`]: block device I/O, by io_uring or plain system calls. [`tier`]: where bytes lie. [`slots`]: which slots are
//!   taken.
//! - [`store`]: shards, each an owner loop around a pure state machine: index, leases, reservations, eviction.
//! - [`serve`]: the local protocol on a unix socket. [`control`]: gRPC. [`http`]: metrics and health.
//! - [`config`], [`cli`], [`node`]: from settings to a running node.

pub mod cli;
pub mod config;
pub mod control;
pub mod error;
pub mod http;
pub mod io;
pub mod node;
pub mod serve;
pub mod slots;
pub mod store;
#[expect(unsafe_code, reason = "system calls on raw memory; every other module but io::uring is safe")]
mod sys;
pub mod tenants;
pub mod tier;

pub use cli::Args;
pub use node::run;
