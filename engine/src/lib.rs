//! An engine pod: an OpenAI-compatible API over a Llama model whose KV lives in fixed pages, loaded from
//! and written back to the Hearth store.
//!
//! It talks to the store only through `hearth-connector`, and it never waits for it inside a step.
//!
//! The types to know: [`request::EngineHandle`] submits a [`request::GenRequest`] and gives back a
//! [`request::GenStream`] of events.

#![forbid(unsafe_code)]

pub mod batch;
pub mod checkpoint;
pub mod cli;
pub mod generate;
pub mod http;
pub mod kv;
mod metrics;
pub mod model;
pub mod request;
pub mod sample;
pub mod start;
mod step;
pub mod text;

#[cfg(test)]
mod testing;
