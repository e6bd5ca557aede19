//! One store node, some engines and a router as processes of this machine.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::signal::Shutdown;
use crate::supervise::{self, Job, Process, SuperviseError};

/// How long a part may take to be ready: an engine reads its weights, a store rebuilds its index.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How long a part may take to finish what it does when asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// The tenant that all parts of a local stack act for.
const TENANT: &str = "default";
/// Any free port of loopback.
const ANY_PORT: &str = "127.0.0.1:0";

/// Where a stack keeps its files.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    /// What lives longer than a run: blocks, the tenant's secret, logs.
    pub(crate) data: PathBuf,
    /// What lives as long as a run: sockets and ready files. Its path is short.
    pub(crate) run: PathBuf,
}

impl Dirs {
    /// The store node's blocks.
    pub(crate) fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    /// The logs of all parts.
    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    fn tenants(&self) -> PathBuf {
        self.data.join("tenants")
    }

    fn tenant_secret(&self) -> PathBuf {
        self.tenants().join(format!("{TENANT}.key"))
    }

    fn socket(&self) -> PathBuf {
        self.run.join("store.sock")
    }

    fn create(&self) -> Result<(), StackError> {
        for dir in [self.store(), self.logs(), self.tenants()] {
            fs::create_dir_all(&dir).map_err(|source| StackError::Dir { path: dir, source })?;
        }
        Ok(())
    }
}

/// How much a stack takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Sizes")]
pub(crate) struct Sizes {
    /// Memory of the store node for blocks, shared with the engines.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pinned_bytes: ByteSize,
    /// Disk of the store node for blocks.
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    nvme_bytes: ByteSize,
    /// Memory of each engine for the KV of running requests and for what it keeps of past ones.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    kv_bytes: ByteSize,
    /// Threads of each engine for computing [default: the number of cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Where files go.
    pub(crate) dirs: Dirs,
    /// What is served.
    pub(crate) checkpoint: Checkpoint,
    /// How many engines; at least one.
    pub(crate) engines: usize,
    /// Where the router listens.
    pub(crate) listen: SocketAddr,
    /// How much it takes.
    pub(crate) sizes: Sizes,
    /// What the parts log.
    pub(crate) log: String,
}

/// Where a store node is reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoreAddress {
    /// Its local protocol.
    pub(crate) socket: PathBuf,
    /// Its control service, `host:port`.
    pub(crate) grpc: String,
    /// Its health and metrics, `host:port`.
    pub(crate) http: String,
}

/// Where an engine or a router is reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HttpAddress {
    /// `host:port`.
    pub(crate) http: String,
}

/// A stack did not start or did not keep running.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StackError {
    /// A directory could not be made.
    #[error("cannot make the directory {path}; name another one with --data-dir")]
    Dir {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A part failed.
    #[error(transparent)]
    Part(#[from] SuperviseError),
}

/// A part that runs, and where it is reached.
#[derive(Debug)]
pub(crate) struct Part<A> {
    process: Process,
    /// Where it is reached; the same after a restart.
    pub(crate) address: A,
}

impl<A> Part<A> {
    /// What messages call it.
    pub(crate) fn name(&self) -> &str {
        &self.process.job().name
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL. It stays dead until it is restarted.
    pub(crate) fn kill9(&mut self) {
        self.process.kill9();
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, SuperviseError> {
        self.process.ended()
    }

    /// What to say about its end.
    pub(crate) fn ended_error(&self, status: ExitStatus) -> SuperviseError {
        self.process.ended_error(status)
    }
}

/// A running stack. Dropping it stops all of it, the router first in line, and blocks until that is done.
#[derive(Debug)]
pub(crate) struct Stack {
    settings: Settings,
    /// Says whether stopping has to be quick.
    shutdown: Shutdown,
    /// The store node.
    pub(crate) store: Part<StoreAddress>,
    /// The engines.
    pub(crate) engines: Vec<Part<HttpAddress>>,
    /// The router.
    pub(crate) router: Part<HttpAddress>,
}

impl Stack {
    /// Starts all parts and waits until they are ready. `say` is told what is going on. Cancel-safe:
    /// dropping the future ends what was started.
    pub(crate) async fn start(
        settings: Settings,
        shutdown: Shutdown,
        mut say: impl FnMut(&str),
    ) -> Result<Self, StackError> {
        settings.dirs.create()?;
        say("starting the store node");
        let store: Part<StoreAddress> = start(store_job(&settings, ANY_PORT, ANY_PORT)).await?;
        say("starting the engines, which read their weights");
        let mut starting = Vec::with_capacity(settings.engines);
        for index in 0..settings.engines {
            starting.push(Process::start(engine_job(&settings, index, ANY_PORT))?);
        }
        let mut engines: Vec<Part<HttpAddress>> = Vec::with_capacity(settings.engines);
        for mut process in starting {
            let address = process.ready(READY_PATIENCE).await?;
            engines.push(Part { process, address });
        }
        say("starting the router");
        let router = start(router_job(&settings, &store.address, &engines)).await?;
        Ok(Self { settings, shutdown, store, engines, router })
    }

    /// Base URL of the OpenAI-compatible API.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.router.address.http)
    }

    /// What was started.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Ends what is left of an engine and starts it again where it was.
    pub(crate) async fn restart_engine(&mut self, index: usize) -> Result<(), StackError> {
        let engine = &mut self.engines[index];
        engine.process.kill9();
        *engine = start(engine_job(&self.settings, index, &engine.address.http)).await?;
        Ok(())
    }

    /// Ends what is left of the store node and starts it again where it was.
    pub(crate) async fn restart_store(&mut self) -> Result<(), StackError> {
        let StoreAddress { http, grpc, .. } = self.store.address.clone();
        self.store.process.kill9();
        self.store = start(store_job(&self.settings, &http, &grpc)).await?;
        Ok(())
    }

    /// Ends what is left of the router and starts it again where it was.
    pub(crate) async fn restart_router(&mut self) -> Result<(), StackError> {
        self.router.process.kill9();
        self.settings.listen = self.router.address.http.parse().unwrap_or(self.settings.listen);
        self.router = start(router_job(&self.settings, &self.store.address, &self.engines)).await?;
        Ok(())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let hurried = || self.shutdown.hurried();
        let engines = self.engines.iter_mut().map(|engine| &mut engine.process);
        let processes = std::iter::once(&mut self.router.process).chain(engines);
        // The engines give back their leases and hand over their last blocks while the store still runs.
        supervise::stop_all(processes, STOP_GRACE, hurried);
        supervise::stop_all([&mut self.store.process], STOP_GRACE, hurried);
    }
}

async fn start<A: serde::de::DeserializeOwned>(job: Job) -> Result<Part<A>, StackError> {
    let mut process = Process::start(job)?;
    let address = process.ready(READY_PATIENCE).await?;
    Ok(Part { process, address })
}

fn store_job(settings: &Settings, http: &str, grpc: &str) -> Job {
    let Settings { dirs, sizes, .. } = settings;
    Command::new(settings, "store", "cachesvc")
        .option("--data-dir", dirs.store())
        .option("--tenants", dirs.tenants())
        .option("--socket", dirs.socket())
        .option("--listen", http)
        .option("--grpc", grpc)
        .option("--pinned-bytes", bytes(sizes.pinned_bytes))
        .option("--nvme-bytes", bytes(sizes.nvme_bytes))
        .job
}

fn engine_job(settings: &Settings, index: usize, listen: &str) -> Job {
    let Settings { dirs, sizes, checkpoint, .. } = settings;
    let name = format!("engine-{}", index + 1);
    let command = Command::new(settings, &name, "engine")
        .option("--model", &checkpoint.dir)
        .option("--served-model-name", &checkpoint.name)
        .option("--name", &name)
        .option("--listen", listen)
        .option("--store-socket", dirs.socket())
        .option("--tenant", TENANT)
        .option("--tenant-secret", dirs.tenant_secret())
        .option("--kv-bytes", bytes(sizes.kv_bytes));
    match sizes.threads {
        Some(threads) => command.option("--threads", threads.to_string()).job,
        None => command.job,
    }
}

fn router_job(settings: &Settings, store: &StoreAddress, engines: &[Part<HttpAddress>]) -> Job {
    let Settings { dirs, checkpoint, listen, .. } = settings;
    let command = Command::new(settings, "router", "router")
        .option("--listen", listen.to_string())
        .option("--store-grpc", &store.grpc)
        .option("--tenant", TENANT)
        .option("--tenant-secret", dirs.tenant_secret())
        .option("--model", &checkpoint.dir)
        .option("--served-model-name", &checkpoint.name);
    engines
        .iter()
        .fold(command, |command, engine| {
            command.option("--engine", format!("http://{}", engine.address.http))
        })
        .job
}

/// Whole bytes: a size in larger units would be rounded.
fn bytes(size: ByteSize) -> String {
    size.as_u64().to_string()
}

/// A subcommand of this program on its way to a [`Job`].
struct Command {
    job: Job,
}

impl Command {
    fn new(settings: &Settings, name: &str, subcommand: &str) -> Self {
        let Settings { dirs, log, .. } = settings;
        let ready_file = dirs.run.join(format!("{name}.ready"));
        let mut args = vec![OsString::from(subcommand)];
        args.extend(supervise::child_arguments(&ready_file));
        let log_file = dirs.logs().join(format!("{name}.log"));
        let job =
            Job { name: name.to_owned(), program: supervise::own_program(), args, log: log_file, ready_file };
        Self { job }.option("--log", log)
    }

    fn option(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.job.args.push(name.into());
        self.job.args.push(value.as_ref().into());
        self
    }
}

/// Makes the directory that holds `--data-dir`'s content, with an absolute path.
pub(crate) fn data_dir(path: &Path) -> Result<PathBuf, StackError> {
    let dir_error = |source| StackError::Dir { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(dir_error)?;
    fs::canonicalize(path).map_err(dir_error)
}
