//! Command line of `hearth router`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use hearth_proto::tenant::TenantName;

use crate::feed::StoreAddress;
use crate::fleet::EngineUrl;
pub use crate::serve::{RunError, run};

/// Runs the router as a gateway: one OpenAI endpoint in front of any number of engines.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Address to serve on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", env = "HEARTH_ROUTER_LISTEN")]
    pub listen: SocketAddr,
    /// An engine, as http://HOST:PORT; repeat for each
    #[arg(long = "engine", value_name = "URL", required = true)]
    pub engines: Vec<EngineUrl>,
    /// The store's control plane, as HOST:PORT or unix:/PATH. Without it requests are routed by load alone
    #[arg(long, value_name = "ADDR", requires = "tenant_secret")]
    pub store_grpc: Option<StoreAddress>,
    /// Whose blocks are looked up
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub tenant: TenantName,
    /// File with the tenant's secret, as the store keeps it in TENANTS/NAME.key
    #[arg(long, value_name = "FILE")]
    pub tenant_secret: Option<PathBuf>,
    /// Hugging Face directory of the model; its tokenizer and chat template are read. Without it requests are routed by
    /// load alone
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Name that users ask for the model by; repeat for several, in the engines' order [default: the directory's name]
    #[arg(long = "served-model-name", value_name = "NAME", requires = "model")]
    pub served_model_names: Vec<String>,
    /// Where to write the router's address once it serves, as JSON
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
}
