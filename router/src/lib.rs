//! The router of Hearth: sends each request to the engine that will answer it first.
#![forbid(unsafe_code)]

pub mod index;
