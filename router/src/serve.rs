//! Wires the router's parts together, serves, and stops.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use hearth_prompt::{LoadError, Prompt};
use hearth_proto::tenant::{TenantSecret, TenantSecretError};
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::cli::Args;
use crate::feed::{self, FeedSettings};
use crate::fleet::{self, Fleet, FleetError};
use crate::gateway::{Gateway, Parts};
use crate::index::SharedIndex;
use crate::metrics::FeedMetrics;
use crate::request::{Model, Reader};

/// Longest wait at the start for the store's snapshot. Then the router serves, by load, until it has come.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(3);
/// Time for answers under way when the router is told to stop.
const GRACE: Duration = Duration::from_secs(10);
/// Bytes of a secret file: 64 digits and some white space.
const SECRET_FILE_BYTES_MAX: u64 = 4096;

/// The router cannot start, or cannot go on.
#[derive(Debug, Error)]
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
        "{0} is reachable from other hosts, and this listener has no TLS: use --listen 127.0.0.1:{port} behind a proxy \
         that does",
        port = .0.port()
    )]
    NotLoopback(SocketAddr),
    /// The list of engines cannot be used.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The model directory cannot be used.
    #[error("--model: {0}")]
    Model(#[from] LoadError),
    /// The model directory has no name of its own.
    #[error("{} has no name to serve the model by: give one with --served-model-name", .0.display())]
    Unnamed(PathBuf),
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
    #[error("cannot write --ready-file {}: {source}", path.display())]
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

/// Serves until `shutdown`, then gives answers under way ten seconds to end.
///
/// Everything it started ends when the future does, or is dropped.
///
/// # Errors
/// What keeps it from starting; see [`RunError`].
pub async fn run(args: Args, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), RunError> {
    let address = args.listen;
    if !address.ip().is_loopback() {
        return Err(RunError::NotLoopback(address));
    }
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    let address = listener.local_addr().map_err(|source| RunError::Listen { address, source })?;
    let fleet = Arc::new(Fleet::new(&args.engines)?);
    let secret = args.tenant_secret.as_deref().map(read_secret).transpose()?;
    let index = SharedIndex::default();
    let reader = Arc::new(Reader::new(load_models(&args).await?, secret.clone(), index.clone()));
    let mut registry = Registry::default();
    let mut tasks = JoinSet::new();
    if let (Some(store), Some(secret)) = (args.store_grpc, secret) {
        let settings = FeedSettings { store, tenant: args.tenant, secret };
        let (sender, mut following) = watch::channel(false);
        tasks.spawn(feed::follow(settings, index.clone(), FeedMetrics::register(&mut registry), sender));
        if timeout(SNAPSHOT_PATIENCE, following.wait_for(|following| *following)).await.is_err() {
            tracing::warn!("the store's snapshot has not come yet; routing by load until it has");
        }
    }
    fleet::probe_all(&fleet).await;
    for endpoint in fleet.snapshot() {
        tasks.spawn(fleet::watch(fleet.clone(), endpoint.id));
    }
    let seed = getrandom::u64().map_err(RunError::Random)?;
    let gateway = Gateway::new(Parts { fleet, reader, index, registry, seed });
    if let Some(path) = &args.ready_file {
        write_ready(path, address).map_err(|source| RunError::ReadyFile { path: path.clone(), source })?;
    }
    tracing::info!(http = %address, engines = args.engines.len(), "router serves");
    serve(listener, gateway.routes(), shutdown).await
}

async fn serve(
    listener: TcpListener,
    routes: axum::Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    let stopping = Arc::new(Notify::new());
    let told = Arc::clone(&stopping);
    let stop = async move {
        shutdown.await;
        told.notify_one();
    };
    let listener = listener.tap_io(|stream| {
        // Small pieces of a stream go out at once. Where that cannot be had, they go out a little later.
        let _ = stream.set_nodelay(true);
    });
    let out_of_patience = async {
        stopping.notified().await;
        sleep(GRACE).await;
    };
    tokio::select! {
        served = axum::serve(listener, routes).with_graceful_shutdown(stop).into_future() => served.map_err(RunError::Serve),
        () = out_of_patience => Ok(()),
    }
}

async fn load_models(args: &Args) -> Result<Vec<Model>, RunError> {
    let Some(dir) = args.model.clone() else {
        tracing::warn!("no --model is given: prompts are not tokenized, requests are routed by load alone");
        return Ok(Vec::new());
    };
    let mut names = args.served_model_names.clone();
    let load = tokio::task::spawn_blocking(move || {
        let prompt = Prompt::load(&dir)?;
        if names.is_empty() {
            names.push(own_name(&dir).ok_or(RunError::Unnamed(dir))?);
        }
        Ok(vec![Model { names, prompt }])
    });
    load.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// The last part of a directory's name, as an engine takes it for its model's.
fn own_name(dir: &Path) -> Option<String> {
    let canonical = dir.canonicalize();
    let name = canonical.as_deref().unwrap_or(dir).file_name()?;
    Some(name.to_string_lossy().into_owned())
}

fn read_secret(path: &Path) -> Result<TenantSecret, RunError> {
    let read = || {
        let mut text = String::new();
        io::Read::read_to_string(
            &mut io::Read::take(std::fs::File::open(path)?, SECRET_FILE_BYTES_MAX),
            &mut text,
        )?;
        Ok(text)
    };
    let text = read().map_err(|source| RunError::SecretFile { path: path.to_owned(), source })?;
    text.parse().map_err(|source| RunError::Secret { path: path.to_owned(), source })
}

/// Writes the whole file or none of it.
fn write_ready(path: &Path, address: SocketAddr) -> io::Result<()> {
    let text = serde_json::json!({ "http": address.to_string() }).to_string();
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".tmp");
    std::fs::write(&unfinished, text)?;
    std::fs::rename(&unfinished, path)
}
