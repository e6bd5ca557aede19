//! Why a node does not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use crate::tenants::TenantsError;
use crate::tier::nvme::{DataDirError, NvmeError};

/// A node cannot start. The message says what to do.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The settings contradict each other or the machine.
    #[error("{0}")]
    Config(#[from] crate::config::ConfigError),
    /// The data directory cannot be used.
    #[error("{0}")]
    DataDir(#[from] DataDirError),
    /// The NVMe tier cannot be opened.
    #[error("{0}")]
    Nvme(#[from] NvmeError),
    /// The tenants' secrets cannot be read.
    #[error("{0}")]
    Tenants(#[from] TenantsError),
    /// Memory for the pinned tier cannot be had.
    #[error(
        "no memory for the pinned tier ({bytes} bytes for each tenant and shard): {source}; lower --pinned-bytes"
    )]
    Memory {
        /// Bytes of one arena.
        bytes: u64,
        /// What the system said.
        source: hearth_transfer::Error,
    },
    /// The socket's path cannot be used.
    #[error("the socket {path} cannot be made: {source}; choose another path with --socket")]
    Socket {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another store listens on the socket.
    #[error("another store node listens on {0}: stop it, or choose another path with --socket")]
    SocketInUse(PathBuf),
    /// A TCP address cannot be bound.
    #[error(
        "{flag} {address} cannot be used: {source}; stop what listens there, or choose another port (0 picks one)"
    )]
    Listen {
        /// The flag that sets it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The ready file cannot be written.
    #[error("the ready file {path} cannot be written: {source}")]
    ReadyFile {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system gives no thread or random numbers.
    #[error("the system refuses {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}
