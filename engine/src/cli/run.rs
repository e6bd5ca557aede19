//! Wires an engine together: address, model, store, HTTP; and takes it apart again.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use hearth_connector::proto::tenant::TenantSecret;
use hearth_connector::{Durability, Store, StoreConfig};
use hearth_prompt::Prompt;
use prometheus_client::registry::Registry;

use super::serve::{bind, serve, write_ready};
use super::{Args, RunError, StoreUse, WriteTo};
use crate::checkpoint::Checkpoint;
use crate::http::{Face, FaceConfig, unix_seconds};
use crate::start::{Engine, EngineConfig};

/// How long a store that is required may take to answer.
const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a secret file: 64 digits and some white space.
const SECRET_FILE_BYTES_MAX: u64 = 4096;

/// Serves a model until `shutdown`, then gives replies under way a few seconds to end and hands the last
/// blocks to the store.
///
/// # Errors
/// What keeps it from starting; see [`RunError`].
pub async fn run(args: Args, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), RunError> {
    let mut shutdown = Box::pin(shutdown);
    let (listener, address) = bind(args.listen).await?;
    let (name, ready_file) = (args.name.clone(), args.ready_file.clone());
    let starting = tokio::task::spawn_blocking(move || start(&args, address));
    let (engine, face) = tokio::select! {
        started = starting => started.map_err(|_| RunError::Broken)??,
        () = &mut shutdown => return Ok(()),
    };
    if let Some(path) = &ready_file {
        write_ready(path, address)?;
    }
    tracing::info!(name, http = %address, store = %engine.store().state(), "engine serves");
    let served = serve(listener, face, shutdown).await;
    // The last blocks are handed to the store and every thread is joined.
    tokio::task::spawn_blocking(move || engine.shutdown()).await.map_err(|_| RunError::Broken)?;
    served
}

/// Reads the model and starts the engine. Blocks for as long as the disk takes.
fn start(args: &Args, address: SocketAddr) -> Result<(Engine, Arc<Face>), RunError> {
    let access = StoreAccess::of(args)?;
    let checkpoint = Checkpoint::open(&args.model)?;
    let prompt = Arc::new(Prompt::load(&args.model)?);
    if !prompt.has_template() {
        tracing::warn!(
            "the model has no chat template: /v1/chat/completions will refuse, /v1/completions works"
        );
    }
    if prompt.is_dated() {
        tracing::warn!(
            "the model's chat template writes the date into prompts: chats share no blocks across midnight UTC"
        );
    }
    let model_names = match args.served_model_names.as_slice() {
        [] => vec![checkpoint.name()],
        names => names.to_vec(),
    };
    let mut registry = Registry::default();
    let config = engine_config(args, model_names[0].clone(), access.secret.clone());
    let threads = config.threads;
    let open_store = |identity| match access.socket.clone() {
        Some(socket) => {
            let (tenant, holder) = (args.tenant.clone(), format!("http://{address}"));
            Store::open(StoreConfig::new(Some(socket), tenant, access.secret.clone(), identity, holder))
        }
        None => Store::off(),
    };
    let engine = Engine::start(&checkpoint, config, open_store, &mut registry)?;
    if args.store == StoreUse::Require {
        require_store(engine.store(), &access)?;
    }
    let face = FaceConfig {
        model_names,
        stop_tokens: checkpoint.eos_tokens.clone(),
        system_fingerprint: format!("fp_{}", engine.identity().fingerprint().short()),
        started_unix_seconds: unix_seconds(),
        instance: getrandom::u64().map_err(RunError::Random)?,
        tokenize_threads: threads.get(),
    };
    let face = Face::new(face, engine.handle().clone(), prompt, registry);
    Ok((engine, face))
}

fn engine_config(args: &Args, model_name: String, secret: TenantSecret) -> EngineConfig {
    let mut config = EngineConfig::new(model_name, secret);
    config.kv_bytes = args.kv_bytes.as_u64();
    config.block_tokens = args.block_tokens.get();
    config.requests_max = args.requests_max.get();
    config.running_max = args.running_max.get();
    config.step_tokens_max = args.step_tokens_max.get();
    if let Some(threads) = args.threads.or_else(|| available_parallelism().ok()) {
        config.threads = threads;
    }
    config.durability = match args.durability {
        WriteTo::Memory => Durability::Memory,
        WriteTo::Nvme => Durability::Nvme,
    };
    config
}

/// Where the store is and who we are to it.
struct StoreAccess {
    /// `None` to go without.
    socket: Option<PathBuf>,
    secret: TenantSecret,
}

impl StoreAccess {
    fn of(args: &Args) -> Result<Self, RunError> {
        let socket = if args.store == StoreUse::Off { None } else { args.store_socket.clone() };
        match (socket, &args.tenant_secret) {
            (Some(socket), Some(path)) => Ok(Self { socket: Some(socket), secret: read_secret(path)? }),
            _ if args.store == StoreUse::Require => Err(RunError::StoreUnnamed),
            _ => {
                tracing::info!("no store: KV blocks are kept in this engine only");
                // Keys that never leave this process.
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes).map_err(RunError::Random)?;
                Ok(Self { socket: None, secret: TenantSecret::from_bytes(bytes) })
            }
        }
    }
}

fn read_secret(path: &Path) -> Result<TenantSecret, RunError> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(SECRET_FILE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| RunError::SecretFile { path: path.to_owned(), source })?;
    text.parse().map_err(|source| RunError::Secret { path: path.to_owned(), source })
}

fn require_store(store: &Store, access: &StoreAccess) -> Result<(), RunError> {
    let state = store.wait_ready(Instant::now() + STORE_PATIENCE);
    if state.is_connected() {
        return Ok(());
    }
    Err(RunError::StoreAbsent { socket: access.socket.clone().unwrap_or_default(), state: state.to_string() })
}
