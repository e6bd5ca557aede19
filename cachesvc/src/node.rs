//! A running node: built from its settings, serving until it is told to stop.

use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hearth_proto::tenant::TenantSecret;
use hearth_transfer::{Access, Region};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry as Metrics;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;

use crate::cli::Args;
use crate::config::NodeConfig;
use crate::control::Control;
use crate::error::NodeError;
use crate::http;
use crate::serve::challenge::Challenger;
use crate::serve::registry::Registry;
use crate::serve::{self, SocketGuard};
use crate::store::message::Event;
use crate::store::metrics::StoreMetrics;
use crate::store::runner::{Message, Runner, ShardHandle, mailbox};
use crate::store::shard::{Shard, ShardConfig};
use crate::tenants::{Tenant, Tenants};
use crate::tier::nvme::{DataDir, NvmeConfig, NvmeTier, QUEUE_DEPTH_DEFAULT, Recovered};

/// Writes to NVMe that one shard has under way at once.
const NVME_WRITES_MAX: usize = 32;
/// Reads from NVMe that one shard has under way at once.
const NVME_READS_MAX: usize = 64;
/// Time that blocks in memory have to reach NVMe when the node stops.
const STOP_FLUSH: Duration = Duration::from_secs(5);

/// What the parts of a node share, read-only but for the registry.
#[derive(Debug)]
pub struct Shared {
    /// Name of the node.
    pub name: String,
    /// Start number, never used twice.
    pub incarnation: u64,
    /// When it started.
    pub start: Instant,
    /// Its tenants.
    pub tenants: Tenants,
    /// Ways to the shards.
    pub shards: Vec<ShardHandle>,
    /// Arenas by tenant, then shard.
    pub arenas: Vec<Vec<Region>>,
    /// Descriptors of the arenas, for clients.
    pub exports: Vec<Vec<OwnedFd>>,
    /// Checks proofs.
    pub challenger: Challenger,
    /// Bytes of the smallest segment: no slot may be larger.
    pub segment_bytes_min: u64,
    /// Bytes of all pinned arenas.
    pub pinned_bytes: u64,
    /// Bytes of the NVMe tier.
    pub nvme_bytes: u64,
    /// How NVMe is driven; none without that tier.
    pub nvme_backend: Option<String>,
    /// Open sessions.
    pub sessions: Gauge,
    registry: Mutex<Registry>,
}

impl Shared {
    /// Identities of live sessions. Held for a look-up only.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().expect("no code that holds this lock panics")
    }
}

/// A node that was built: its threads run, nobody is served yet.
#[derive(Debug)]
struct Node {
    shared: Arc<Shared>,
    metrics: Metrics,
    threads: Vec<JoinHandle<()>>,
    /// Held until the end: no other process may use the directory.
    _data_dir: DataDir,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RecoveryLabel {
    what: &'static str,
}

/// Runs a node until `shutdown`, then stops it: writes that are pending reach NVMe within five seconds.
///
/// # Errors
/// When it cannot start; the message says what to do.
pub async fn run(args: Args, shutdown: impl Future<Output = ()> + Send) -> Result<(), NodeError> {
    let config = args.config();
    config.validate()?;
    let node = Node::build(&config)?;
    let grpc = listen("--grpc", config.grpc).await?;
    let web = listen("--listen", config.http).await?;
    let local = serve::bind(&config.socket)?;
    let socket = SocketGuard(config.socket.clone());
    let (grpc_at, web_at) = (address(&grpc, config.grpc), address(&web, config.http));
    let Node { shared, metrics, threads, _data_dir } = node;

    let (stop, stopped) = oneshot::channel::<()>();
    let clients = tokio::spawn(serve::serve(local, shared.clone()));
    let control = tonic::transport::Server::builder()
        .add_service(Control::service(shared.clone()))
        .serve_with_incoming_shutdown(TcpListenerStream::new(grpc), async { drop(stopped.await) });
    let control = tokio::spawn(control);
    let web = tokio::spawn(async move { axum::serve(web, http::routes(Arc::new(metrics))).await });
    tracing::info!(
        node = %shared.name, incarnation = shared.incarnation, socket = %config.socket.display(), grpc = %grpc_at,
        http = %web_at, "store node is ready"
    );
    if let Some(path) = &args.ready_file {
        let ready = serde_json::json!({ "http": web_at, "grpc": grpc_at, "socket": config.socket });
        write_ready(path, &ready.to_string())?;
    }

    shutdown.await;
    tracing::info!("store node is stopping");
    drop(socket);
    clients.abort();
    flush(&shared).await;
    for shard in &shared.shards {
        shard.deliver(Message::Stop);
    }
    web.abort();
    drop(stop);
    control.abort();
    let joined =
        tokio::task::spawn_blocking(|| threads.into_iter().filter_map(|thread| thread.join().err()).count());
    if joined.await.unwrap_or(0) > 0 {
        tracing::error!("a shard had panicked; its blocks in memory are lost, those on NVMe are not");
    }
    Ok(())
}

async fn flush(shared: &Shared) {
    let deadline = Instant::now() + STOP_FLUSH;
    for shard in &shared.shards {
        // A shard that does not answer has nothing that can be saved.
        shard.ask(|reply| Event::Flush { deadline, reply }).await.ok();
    }
}

async fn listen(flag: &'static str, address: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| NodeError::Listen { flag, address, source })
}

fn address(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// Written whole or not at all: whoever waits for it never reads half of it.
fn write_ready(path: &Path, json: &str) -> Result<(), NodeError> {
    let partial = path.with_extension("partial");
    let written = std::fs::write(&partial, json).and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|source| NodeError::ReadyFile { path: path.to_owned(), source })
}

impl Node {
    /// Opens everything that can fail, then starts the shards.
    fn build(config: &NodeConfig) -> Result<Self, NodeError> {
        let start = Instant::now();
        let data_dir = DataDir::open(&config.data_dir, config.shards)?;
        let shards = data_dir.shards();
        let tenants = Tenants::load(&config.tenants, &TenantSecret::from_bytes(random()?))?;
        let tenant_count = tenants.iter().len();
        let pinned = config.pinned_share(shards, tenant_count)?;
        let nvme_share = config.nvme_share(shards)?;
        let arena_bytes = pinned.segment_bytes * u64::from(pinned.segments_max);
        let arenas = arenas(tenants.iter(), shards, arena_bytes)?;
        let mut registry = Metrics::default();
        let metrics = StoreMetrics::default();
        metrics.register(&mut registry);
        let (mut threads, mut handles, mut nvme_backend) = (Vec::new(), Vec::new(), None);
        let mut recovery = Recovery::default();
        for number in 0..shards {
            let mut shard = Shard::new(
                ShardConfig {
                    shard: number,
                    shards,
                    incarnation: data_dir.incarnation(),
                    tenants: tenants.iter().map(|tenant| tenant.name.id()).collect(),
                    pinned,
                    nvme_writes_max: NVME_WRITES_MAX,
                    nvme_reads_max: NVME_READS_MAX,
                },
                metrics.clone(),
            );
            let (handle, messages) = mailbox();
            let mut nvme = None;
            if let Some(bytes_max) = nvme_share {
                let (tier, found) = open_nvme((config, &data_dir), (number, bytes_max), handle.clone())?;
                recovery.add(&found, shard.recover(&found));
                nvme_backend = Some(tier.pick().to_string());
                nvme = Some(tier);
            }
            let mine = arenas.iter().map(|of_tenant| of_tenant[index(number)].clone()).collect();
            let thread = Runner::new(shard, mine, nvme).spawn(format!("shard-{number}"), messages);
            threads.push(thread.map_err(|source| NodeError::System { what: "a thread", source })?);
            handles.push(handle);
        }
        recovery.report(&mut registry);
        let shared = Shared {
            name: config.name.clone(),
            incarnation: data_dir.incarnation(),
            start,
            tenants,
            shards: handles,
            exports: exports(&arenas).map_err(|source| NodeError::Memory { bytes: arena_bytes, source })?,
            arenas,
            challenger: Challenger::new(random()?, start),
            segment_bytes_min: pinned.segment_bytes,
            pinned_bytes: arena_bytes * u64::from(shards) * tenant_count as u64,
            nvme_bytes: nvme_share.unwrap_or(0) * u64::from(shards),
            nvme_backend,
            sessions: Gauge::default(),
            registry: Mutex::default(),
        };
        shared.describe(&mut registry);
        Ok(Self { shared: Arc::new(shared), metrics: registry, threads, _data_dir: data_dir })
    }
}

impl Shared {
    /// Says what was picked, in the log and in the metrics.
    fn describe(&self, registry: &mut Metrics) {
        registry.register("hearth_store_sessions", "Connections of engines", self.sessions.clone());
        match &self.nvme_backend {
            Some(backend) => {
                tracing::info!(%backend, "nvme tier is open");
                let info = Info::new([("backend", backend.clone())]);
                registry.register("hearth_store_nvme_backend", "How NVMe is driven", info);
            }
            None => tracing::info!("there is no nvme tier: blocks do not outlive this process"),
        }
    }
}

/// Opens one shard's share of the NVMe tier; completions go to the shard's mailbox.
fn open_nvme(
    (config, data_dir): (&NodeConfig, &DataDir),
    (shard, bytes_max): (u32, u64),
    completions: ShardHandle,
) -> Result<(NvmeTier, Recovered), NodeError> {
    let nvme = NvmeConfig {
        dir: data_dir.shard_dir(shard),
        shard,
        store_id: data_dir.store_id(),
        bytes_max,
        segment_bytes: config.nvme_segment_bytes,
        io: config.nvme_io,
        queue_depth: QUEUE_DEPTH_DEFAULT,
    };
    Ok(NvmeTier::open(nvme, Box::new(move |done| completions.nvme_done(done)))?)
}

/// What was found on NVMe at start, over all shards.
#[derive(Debug, Default)]
struct Recovery {
    blocks: u64,
    passed_over: Vec<(&'static str, u64)>,
}

impl Recovery {
    fn add(&mut self, found: &Recovered, blocks: u64) {
        self.blocks += blocks;
        let counts = &found.counts;
        for (what, count) in [
            ("headers_damaged", counts.headers_damaged),
            ("headers_misplaced", counts.headers_misplaced),
            ("headers_superseded", counts.headers_superseded),
            ("headers_unreadable", counts.headers_unreadable),
            ("segments_set_aside", counts.segments_set_aside),
            ("segments_repaired", counts.segments_repaired),
            ("segments_truncated", counts.segments_truncated),
            ("segments_over_budget", counts.segments_over_budget),
        ] {
            self.passed_over.push((what, count));
        }
    }

    fn report(&self, registry: &mut Metrics) {
        let passed_over: Family<RecoveryLabel, Counter> = Family::default();
        for &(what, count) in &self.passed_over {
            passed_over.get_or_create(&RecoveryLabel { what }).inc_by(count);
        }
        let trouble: Vec<_> = self.passed_over.iter().filter(|(_, count)| *count > 0).collect();
        tracing::info!(blocks = self.blocks, passed_over = ?trouble, "blocks were found on NVMe");
        registry.register(
            "hearth_store_recovery_passed_over",
            "What was passed over on NVMe at start",
            passed_over,
        );
        let recovered: Gauge = Gauge::default();
        recovered.set(self.blocks.cast_signed());
        registry.register("hearth_store_recovered_blocks", "Blocks found on NVMe at start", recovered);
    }
}

/// One arena for each tenant and shard, its pages taken in the background.
fn arenas<'a>(
    tenants: impl Iterator<Item = &'a Tenant>,
    shards: u32,
    bytes: u64,
) -> Result<Vec<Vec<Region>>, NodeError> {
    let refused = |source| NodeError::Memory { bytes, source };
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut arenas = Vec::new();
    for tenant in tenants {
        let name = |shard| format!("hearth-{}-{shard}", tenant.name);
        let of_tenant: Result<Vec<Region>, _> =
            (0..shards).map(|shard| Region::shared(&name(shard), size)).collect();
        arenas.push(of_tenant.map_err(refused)?);
    }
    let all: Vec<Region> = arenas.iter().flatten().cloned().collect();
    let prefault = std::thread::Builder::new().name("prefault".to_owned());
    let started = prefault.spawn(move || all.iter().for_each(Region::prefault));
    started.map_err(|source| NodeError::System { what: "a thread", source })?;
    Ok(arenas)
}

/// Descriptors that let a client read and write the arenas of its tenant.
fn exports(arenas: &[Vec<Region>]) -> Result<Vec<Vec<OwnedFd>>, hearth_transfer::Error> {
    let export = |region: &Region| {
        let export = region.export(Access::ReadWrite)?;
        Ok(export.fd.expect("shared memory has a descriptor"))
    };
    arenas.iter().map(|of_tenant| of_tenant.iter().map(export).collect()).collect()
}

fn random() -> Result<[u8; 32], NodeError> {
    let mut bytes = [0; 32];
    let refused =
        |error: getrandom::Error| NodeError::System { what: "random numbers", source: error.into() };
    getrandom::fill(&mut bytes).map_err(refused)?;
    Ok(bytes)
}

fn index(shard: u32) -> usize {
    usize::try_from(shard).expect("shards are few")
}
