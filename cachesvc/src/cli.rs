//! Command line of `hearth cachesvc`.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args as ClapArgs, ValueEnum};

use crate::config::NodeConfig;
use crate::io::IoMode;

/// Runs the store node of this host.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Where the node keeps its NVMe tier, its tenants' secrets and its socket
    #[arg(long, value_name = "DIR", default_value = ".hearth/store", env = "HEARTH_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Unix socket for engines of this host [default: DATA_DIR/hearth.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Address of the control plane (gRPC): status, flush, event feed
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7700")]
    pub grpc: SocketAddr,
    /// Address of /metrics and /health
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7701")]
    pub listen: SocketAddr,
    /// Memory for blocks, mapped by engines
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub pinned_bytes: ByteSize,
    /// Disk for blocks; 0 to have no NVMe tier
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    pub nvme_bytes: ByteSize,
    /// Size of one segment file; fixed when the store is made
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub nvme_segment_bytes: ByteSize,
    /// How the disk is driven
    #[arg(long, value_enum, default_value_t = NvmeIo::Auto)]
    pub nvme_io: NvmeIo,
    /// Owner loops; fixed when the store is made
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub shards: u32,
    /// Directory of tenants' secrets, NAME.key each; `default` is made when there is none [default: DATA_DIR/tenants]
    #[arg(long, value_name = "DIR")]
    pub tenants: Option<PathBuf>,
    /// Name of the node in logs and in the event feed
    #[arg(long, value_name = "NAME", default_value = "node-0")]
    pub name: String,
    /// Where to write the node's addresses once it serves, as JSON
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
}

/// How the disk is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NvmeIo {
    /// io_uring where the kernel allows it, else plain reads and writes
    Auto,
    /// io_uring, or do not start
    Uring,
    /// Plain reads and writes
    Psync,
}

impl Args {
    /// The settings.
    pub fn config(&self) -> NodeConfig {
        NodeConfig {
            name: self.name.clone(),
            data_dir: self.data_dir.clone(),
            socket: self.socket.clone().unwrap_or_else(|| self.data_dir.join("hearth.sock")),
            grpc: self.grpc,
            http: self.listen,
            tenants: self.tenants.clone().unwrap_or_else(|| self.data_dir.join("tenants")),
            pinned_bytes: self.pinned_bytes.as_u64(),
            nvme_bytes: self.nvme_bytes.as_u64(),
            nvme_segment_bytes: self.nvme_segment_bytes.as_u64(),
            nvme_io: match self.nvme_io {
                NvmeIo::Auto => IoMode::Auto,
                NvmeIo::Uring => IoMode::Uring,
                NvmeIo::Psync => IoMode::Psync,
            },
            shards: self.shards,
        }
    }
}
