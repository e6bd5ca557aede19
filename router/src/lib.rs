//! The router of Hearth: sends each request to the engine that will answer it first.
//!
//! It stands in front of any number of engines as one OpenAI endpoint. The store tells it who holds which KV blocks; it
//! tokenizes a request's prompt as the engines do, looks the blocks up, and predicts for each engine how much is left
//! to compute, to load and to wait for. It reads and forgets: any number of routers may run side by side, and one that
//! knows nothing routes by load.
//!
//! It moves no KV bytes, and builds without a tensor library, RDMA or CUDA.
//!
//! The way of a request, and where to read on:
//!
//! - [`gateway`]: the reverse proxy; the only part that speaks HTTP to clients and engines.
//! - [`request::Reader`]: from a body to the blocks that it needs and who holds them.
//! - [`decide::decide`]: the decision, a pure function of snapshots. Start here.
//! - [`load::Loads`]: what each engine has been given; decides and reserves in one step.
//! - [`index::Index`]: who has what, kept by [`feed::follow`] from the store's events alone.
//! - [`fleet::Fleet`]: the engines, and whether they can be picked.
//! - [`cli::Args`] and [`cli::run`]: the program.

#![forbid(unsafe_code)]

pub mod cli;
pub mod decide;
pub mod feed;
pub mod fleet;
pub mod gateway;
pub mod index;
pub mod load;
pub mod metrics;
pub mod request;
pub mod retry;
pub mod serve;

/// The control plane of the store, as generated from its schema.
#[expect(clippy::allow_attributes, clippy::missing_errors_doc, reason = "generated code")]
pub mod rpc {
    tonic::include_proto!("hearth.v1");
}
