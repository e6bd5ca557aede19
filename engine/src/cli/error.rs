//! Why an engine does not start, or does not go on.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use hearth_connector::proto::tenant::TenantSecretError;
use hearth_prompt::LoadError;

use crate::checkpoint::CheckpointError;
use crate::start::StartError;

/// Why an engine does not start, or does not go on. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}{}", listen_advice(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Beyond this host everything must be encrypted, and this listener is not.
    #[error(
        "{0} is reachable from other hosts, and this listener has no TLS; use --listen 127.0.0.1:{port} behind a \
         proxy that has",
        port = .0.port()
    )]
    NotLoopback(SocketAddr),
    /// The checkpoint cannot be run.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer or the chat template cannot be used.
    #[error(transparent)]
    Prompt(#[from] LoadError),
    /// The engine does not start with these settings.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The store is wanted and not named.
    #[error(
        "--store require needs --store-socket and --tenant-secret; name the store node's, or use --store auto"
    )]
    StoreUnnamed,
    /// The store is wanted and does not answer.
    #[error(
        "--store require: the store at {} is {state}; start it with `hearth cachesvc`, or use --store auto to \
         start without",
        socket.display()
    )]
    StoreAbsent {
        /// Its socket.
        socket: PathBuf,
        /// What is known of it.
        state: String,
    },
    /// The secret file cannot be read.
    #[error(
        "cannot read --tenant-secret {}: {source}; the store keeps it in its tenants directory, and makes \
         default.key there when it starts",
        path.display()
    )]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The secret file holds no secret.
    #[error("--tenant-secret {}: {source}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        source: TenantSecretError,
    },
    /// The ready file cannot be written.
    #[error("cannot write --ready-file {}: {source}; name a path in a directory that exists", path.display())]
    ReadyFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// Serving ended by itself.
    #[error("serving failed: {0}")]
    Serve(#[source] io::Error),
    /// A part of the start panicked. Our bug.
    #[error("the engine broke while it started; its log says where")]
    Broken,
}

fn listen_advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program listens there: stop it, or choose another port with --listen (0 takes a free one)"
        }
        io::ErrorKind::PermissionDenied => "; choose a port above 1023 with --listen",
        io::ErrorKind::AddrNotAvailable => "; choose an address of this host with --listen",
        _ => "",
    }
}
