//! Command line of `hearth engine`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args as ClapArgs, ValueEnum};
use hearth_connector::proto::tenant::TenantName;

mod error;
mod run;
mod serve;

pub use error::RunError;
pub use run::run;

/// Runs an engine: an OpenAI-compatible API over one model, whose KV blocks it shares through the store.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Hugging Face directory of the model: config.json, safetensors, tokenizer.json
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Name that users ask for the model by; repeat for several [default: the directory's name]
    #[arg(long = "served-model-name", value_name = "NAME")]
    pub served_model_names: Vec<String>,
    /// Name of the engine in its log
    #[arg(long, value_name = "NAME", default_value = "engine-0")]
    pub name: String,
    /// Address to serve on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000", env = "HEARTH_ENGINE_LISTEN")]
    pub listen: SocketAddr,
    /// Where to write the engine's address once it serves, as JSON
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,

    /// Whether KV blocks are shared through the store
    #[arg(long, value_enum, default_value_t = StoreUse::Auto, help_heading = "Store")]
    pub store: StoreUse,
    /// The store node's unix socket
    #[arg(long, value_name = "PATH", help_heading = "Store", requires = "tenant_secret")]
    pub store_socket: Option<PathBuf>,
    /// Whose blocks are read and written
    #[arg(long, value_name = "NAME", default_value = "default", help_heading = "Store")]
    pub tenant: TenantName,
    /// File with the tenant's secret, as the store keeps it in TENANTS/NAME.key
    #[arg(long, value_name = "FILE", help_heading = "Store")]
    pub tenant_secret: Option<PathBuf>,
    /// What a block must have reached before the store calls it written
    #[arg(long, value_enum, default_value_t = WriteTo::Nvme, help_heading = "Store")]
    pub durability: WriteTo,

    /// Memory for the KV of running requests and for what is kept of past ones
    #[arg(long, value_name = "SIZE", default_value = "1GiB", help_heading = "Sizes")]
    pub kv_bytes: ByteSize,
    /// Tokens in a KV block; engines that share blocks have the same
    #[arg(long, value_name = "N", default_value = "16", help_heading = "Sizes")]
    pub block_tokens: NonZeroUsize,
    /// Threads for computing [default: the number of cores]
    #[arg(long, value_name = "N", help_heading = "Sizes")]
    pub threads: Option<NonZeroUsize>,
    /// Requests computed together; further ones wait
    #[arg(long, value_name = "N", default_value = "32", help_heading = "Sizes")]
    pub running_max: NonZeroUsize,
    /// Tokens computed in one step, over all requests: more is faster prefill, fewer is smoother decode
    #[arg(long, value_name = "N", default_value = "256", help_heading = "Sizes")]
    pub step_tokens_max: NonZeroUsize,
    /// Requests held, waiting and running; further ones are told to retry
    #[arg(long, value_name = "N", default_value = "256", help_heading = "Sizes")]
    pub requests_max: NonZeroUsize,
}

/// Whether KV blocks are shared through the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreUse {
    /// When there is a store; without it everything is computed here
    Auto,
    /// Or do not start
    Require,
    /// Never
    Off,
}

/// What a block must have reached before the store calls it written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WriteTo {
    /// The store's memory: lost when the node restarts
    Memory,
    /// The store's disk
    Nvme,
}

#[cfg(test)]
mod tests;
