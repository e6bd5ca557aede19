//! Bringing an engine up and down: weights, memory, store, threads.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hearth_connector::proto::identity::{AttentionGroup, CacheIdentity, LAYOUT_CANONICAL};
use hearth_connector::proto::key::KeyChain;
use hearth_connector::proto::tenant::TenantSecret;
use hearth_connector::proto::version::BLOCK_FORMAT;
use hearth_connector::{Durability, Store};
use prometheus_client::registry::Registry;

use crate::batch::BatchLimits;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::kv::pages::{PageShape, Pages};
use crate::kv::traffic::{Traffic, TrafficSettings, WRITES_QUEUED_MAX};
use crate::kv::{Kv, KvParts};
use crate::metrics::StepMetrics;
use crate::model::{KEYS, Model, ModelError};
use crate::request::{EngineHandle, EngineLimits};
use crate::step::{Event, Queue, StepLoop};

/// Settings of an engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Name of the model, as users ask for it and as it enters the cache identity.
    pub model_name: String,
    /// Memory for KV pages, in bytes. The system backs it when it is first used.
    pub kv_bytes: u64,
    /// Tokens of a page and of a stored block. A multiple of 16.
    pub block_tokens: usize,
    /// Requests waiting and running together; more are refused.
    pub requests_max: usize,
    /// Requests that hold pages at once; more wait.
    pub running_max: usize,
    /// Tokens computed in one step, over all requests.
    pub step_tokens_max: usize,
    /// Threads that compute.
    pub threads: NonZeroUsize,
    /// How long a request waits for its blocks from the store before it computes them.
    pub load_deadline: Duration,
    /// How long one write-back may take.
    pub write_deadline: Duration,
    /// What a write-back waits for.
    pub durability: Durability,
    /// The tenant's secret, from which the keys of the blocks are made.
    pub secret: TenantSecret,
}

impl EngineConfig {
    /// The defaults, with as many threads as there are cores.
    pub fn new(model_name: String, secret: TenantSecret) -> Self {
        Self {
            model_name,
            kv_bytes: 1 << 30,
            block_tokens: 16,
            requests_max: 256,
            running_max: 32,
            step_tokens_max: 256,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            load_deadline: Duration::from_secs(2),
            write_deadline: Duration::from_secs(10),
            durability: Durability::Nvme,
            secret,
        }
    }

    fn check(&self) -> Result<(), StartError> {
        let least = BatchLimits::step_tokens_least(self.running_max, self.block_tokens);
        let wrong = |setting, found: u64, expected| Err(StartError::Setting { setting, found, expected });
        if self.block_tokens == 0 || !self.block_tokens.is_multiple_of(KEYS) || self.block_tokens > 4096 {
            return wrong(
                "block-tokens",
                self.block_tokens as u64,
                "a multiple of 16, up to 4096".to_owned(),
            );
        }
        if self.requests_max == 0 || self.requests_max > REQUESTS_MAX_MAX {
            return wrong("requests-max", self.requests_max as u64, format!("1 to {REQUESTS_MAX_MAX}"));
        }
        if self.running_max == 0 || self.running_max > self.requests_max {
            return wrong("running-max", self.running_max as u64, format!("1 to {}", self.requests_max));
        }
        if self.step_tokens_max < least {
            return wrong("step-tokens-max", self.step_tokens_max as u64, format!("at least {least}"));
        }
        Ok(())
    }
}

/// The most that `requests_max` can be set to: each has a place in the loop's inbox.
const REQUESTS_MAX_MAX: usize = 1 << 16;

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The checkpoint cannot be run.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model could not be built from its weights.
    #[error("the model could not be built from its weights")]
    Model(#[from] ModelError),
    /// A setting is out of range.
    #[error("--{setting} is {found}; give {expected}")]
    Setting {
        /// Its name as a flag.
        setting: &'static str,
        /// Its value.
        found: u64,
        /// What would do.
        expected: String,
    },
    /// Threads could not be started.
    #[error("threads could not be started; check the limits of the process")]
    Threads(#[source] std::io::Error),
    /// The threads that compute could not be started.
    #[error("the threads that compute could not be started; check the limits of the process")]
    Compute(#[from] rayon::ThreadPoolBuildError),
}

/// A running engine. Dropping it ends the loop as [`Self::shutdown`] does, without waiting for that.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    identity: CacheIdentity,
    store: Store,
    inbox: SyncSender<Event>,
    /// `None` once it was joined.
    step: Option<JoinHandle<()>>,
}

impl Engine {
    /// Reads the weights and starts the threads. Blocks for as long as the weights take.
    ///
    /// `open_store` opens the store for the cache identity of this engine, with the secret of `config`. The metrics of
    /// the engine and of its store are registered in `registry`.
    ///
    /// # Errors
    /// Names what to correct. A store that is absent is no error.
    pub fn start(
        checkpoint: &Checkpoint,
        config: EngineConfig,
        open_store: impl FnOnce(CacheIdentity) -> Store,
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        config.check()?;
        let shape = PageShape::new(&checkpoint.config, config.block_tokens);
        let page_count = usize::try_from(config.kv_bytes / shape.bytes() as u64).unwrap_or(usize::MAX);
        if page_count == 0 || page_count > u32::MAX as usize {
            let expected = format!("at least one page of {} bytes, better some thousands", shape.bytes());
            return Err(StartError::Setting { setting: "kv-bytes", found: config.kv_bytes, expected });
        }
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads.get())
            .thread_name(|index| format!("hearth-compute-{index}"))
            .build()?;
        let weights = checkpoint.read_weights()?;
        let identity = identity(checkpoint, &config, &weights.digest);
        let model = threads.install(|| Model::new(&checkpoint.config, weights))?;
        let store = open_store(identity.clone());
        let payload = store.payload_bytes();
        assert!(payload == 0 || payload == shape.bytes(), "a page is the payload of a block of its identity");
        store.metrics().register(registry);
        let metrics = StepMetrics::new(registry);
        let limits = EngineLimits {
            context_tokens_max: checkpoint.config.context_tokens_max,
            requests_max: config.requests_max,
            pages_max: page_count,
            page_tokens: config.block_tokens,
            vocab: checkpoint.config.vocab,
        };
        let (inbox, events) = sync_channel(inbox_places(&config));
        let traffic = TrafficSettings {
            loads_max: config.running_max,
            write_deadline: config.write_deadline,
            durability: config.durability,
        };
        let traffic = Traffic::start(&store, traffic, inbox.clone()).map_err(StartError::Threads)?;
        let kv = Kv::new(KvParts {
            pages: Pages::new(shape, page_count),
            traffic,
            store: store.clone(),
            chain: KeyChain::new(&config.secret, &identity),
            load_deadline: config.load_deadline,
            metrics: metrics.clone(),
        });
        let batch = BatchLimits {
            running_max: config.running_max,
            step_tokens_max: config.step_tokens_max,
            page_tokens: config.block_tokens,
        };
        let queue = Queue::default();
        let step = StepLoop { model, kv, limits: batch, inbox: events, threads, metrics, queue };
        let step = thread::Builder::new().name("hearth-step".to_owned()).spawn(move || step.run());
        let step = Some(step.map_err(StartError::Threads)?);
        let handle = EngineHandle::new(limits, Arc::new(inbox.clone()));
        Ok(Self { handle, identity, store, inbox, step })
    }

    /// Submits requests to this engine.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// What names the blocks of this engine.
    pub fn identity(&self) -> &CacheIdentity {
        &self.identity
    }

    /// The client of the store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether the loop still runs. It ends only by [`Self::shutdown`], or by a bug.
    pub fn is_alive(&self) -> bool {
        self.step.as_ref().is_some_and(|step| !step.is_finished())
    }

    /// Ends all requests as cancelled, writes back what is queued for some seconds, and joins the threads. Blocks.
    pub fn shutdown(mut self) {
        self.stop();
        if self.step.take().is_some_and(|step| step.join().is_err()) {
            tracing::error!("the step loop panicked");
        }
    }

    fn stop(&self) {
        // There is a place for this in the inbox; it fails only when the loop is gone already.
        self.inbox.try_send(Event::Stop).ok();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.step.is_some() {
            self.stop();
        }
    }
}

/// Places for all that can be under way to the loop at once, so that nobody ever waits to hand over.
fn inbox_places(config: &EngineConfig) -> usize {
    const STOP: usize = 1;
    // A job that runs has left its queue, hence the threads.
    const THREADS: usize = 4;
    config.requests_max + config.running_max + WRITES_QUEUED_MAX + THREADS + STOP
}

fn identity(checkpoint: &Checkpoint, config: &EngineConfig, weights_digest: &str) -> CacheIdentity {
    let model = &checkpoint.config;
    let number = |n: usize| u32::try_from(n).expect("checked when the checkpoint was opened");
    CacheIdentity {
        model: config.model_name.clone(),
        revision: weights_digest.to_owned(),
        tokenizer: checkpoint.tokenizer_digest.clone(),
        compute_dtype: "f32".to_owned(),
        kv_dtype: "f32".to_owned(),
        kv_scale: "none".to_owned(),
        groups: vec![AttentionGroup {
            kind: "full".to_owned(),
            layers: number(model.layers),
            kv_heads: number(model.kv_heads),
            head_dim: number(model.head_dim),
        }],
        block_tokens: number(config.block_tokens),
        rope: model.rope_text(),
        adapter: String::new(),
        adapter_revision: String::new(),
        layout: LAYOUT_CANONICAL.to_owned(),
        format: BLOCK_FORMAT,
    }
}
