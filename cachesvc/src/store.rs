//! The store of one node, as shards.
//!
//! A shard owns part of the node's blocks: their index, the slots of its share of each tier, leases, reservations and
//! eviction order. [`shard::Shard`] is pure: it takes an event and a time and returns effects. [`runner`] is the thread
//! that feeds it and carries the effects out. Shards share nothing with each other.

pub mod block;
pub mod message;
pub mod metrics;
pub mod runner;
pub mod shard;
