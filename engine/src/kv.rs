//! The KV memory of the engine.

pub mod pages;
