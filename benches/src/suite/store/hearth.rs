//! Hearth: a store process of this build, and a client that speaks to it through the connector.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hearth_connector::proto::identity::{AttentionGroup, CacheIdentity, LAYOUT_CANONICAL};
use hearth_connector::proto::key::{BlockKey, KeyChain};
use hearth_connector::proto::tenant::{TenantName, TenantSecret};
use hearth_connector::proto::version::BLOCK_FORMAT;
use hearth_connector::{Durability, Lease, State, Store, StoreConfig};
use tempfile::TempDir;

use super::{KIB, Pages, RUN_BLOCKS, Shape, Turn, check, touch};
use crate::memory::{self, Walk};
use crate::peer::{self, Running};
use crate::report::Spread;
use crate::system::{Doing, Failure, Sample, System};

/// Bytes of one layer of one block, and so of one checksum range: 8 KV heads of 64 dimensions, f32.
const LAYER_BYTES: usize = 64 * KIB;
const BLOCK_TOKENS: u32 = 16;
/// Longer than any call takes on a machine that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store process, and a session with it.
pub(super) struct Node {
    store: Store,
    chain: KeyChain,
    /// Ends before its folder goes.
    _process: Running,
    _folder: TempDir,
}

/// The node that the systems of a case share; the first to open it fills it.
pub(super) type SharedNode = Rc<RefCell<Option<Rc<Node>>>>;

/// How a load ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Load {
    /// With the bytes in the client's pages.
    Copy,
    /// With the bytes checked where they lie, in the memory that the store shares.
    InPlace,
}

impl Node {
    fn start(shape: Shape) -> Result<Self, Failure> {
        let program = peer::hearth()?;
        let folder = tempfile::tempdir().doing("making a folder for the store")?;
        let socket = folder.path().join("store.sock");
        let ready = folder.path().join("ready.json");
        // Each slot has a page of header before its payload. Chance decides how runs spread over the two
        // shards, and each has half of the memory: twice the need keeps eviction out of loads.
        let pinned_bytes = shape.blocks() * (shape.block_bytes + 4 * KIB) * 2;
        let mut process = Running::start(
            Command::new(program)
                .args(["cachesvc", "--log", "warn", "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0"])
                .arg("--data-dir")
                .arg(folder.path().join("data"))
                .arg("--socket")
                .arg(&socket)
                .args(["--pinned-bytes", &pinned_bytes.to_string(), "--nvme-bytes", "0"])
                .arg("--ready-file")
                .arg(&ready)
                .args(["--die-with-parent", &std::process::id().to_string()])
                .stderr(Stdio::inherit()),
        )?;
        process.until(|| ready.exists().then_some(()))?;
        let secret = secret(&folder.path().join("data/tenants/default.key"))?;
        let identity = identity(shape.block_bytes);
        let chain = KeyChain::new(&secret, &identity);
        let tenant: TenantName = "default".parse().doing("naming the tenant")?;
        let store = Store::open(StoreConfig::new(Some(socket), tenant, secret, identity, "hearth-benches"));
        match store.wait_ready(Instant::now() + PATIENCE) {
            State::Connected => Ok(Self { store, chain, _process: process, _folder: folder }),
            other => Err(std::io::Error::other(format!("{other:?}"))).doing("opening the store"),
        }
    }

    /// The keys of a run: a prompt of its own, so that runs share nothing.
    fn keys(&self, run: usize) -> Vec<BlockKey> {
        let first = u32::try_from(run).expect("a bench has fewer runs than u32 counts");
        let tokens: Vec<u32> =
            (0..BLOCK_TOKENS * RUN_BLOCKS as u32).map(|at| if at == 0 { first } else { at }).collect();
        self.chain.keys(b"", &tokens)
    }

    fn write<'a>(&self, run: usize, mut block: impl FnMut(usize) -> &'a [u8]) -> Result<(), Failure> {
        let end = Instant::now() + PATIENCE;
        let reservation = self.store.reserve(&self.keys(run), 0, end);
        for &at in reservation.granted() {
            reservation.write(at, block(at)).doing("writing a block")?;
        }
        let sealed = reservation.seal(Durability::Memory, end).doing("sealing a run")?;
        if sealed.blocks != RUN_BLOCKS {
            let why = format!("{} of {RUN_BLOCKS} blocks", sealed.blocks);
            return Err(std::io::Error::other(why)).doing("sealing a run");
        }
        Ok(())
    }

    fn lease(&self, keys: &[BlockKey]) -> Result<Lease, Failure> {
        let acquired = self.store.acquire(keys, 0..keys.len(), Instant::now() + PATIENCE);
        match acquired.lease {
            Some(lease) if lease.len() == keys.len() => Ok(lease),
            _ => Err(std::io::Error::other(format!("miss: {:?}", acquired.miss))).doing("acquiring a run"),
        }
    }
}

fn secret(path: &Path) -> Result<TenantSecret, Failure> {
    let text = fs::read_to_string(path).doing("reading the tenant's secret")?;
    text.trim().parse().doing("reading the tenant's secret")
}

fn identity(block_bytes: usize) -> CacheIdentity {
    let layers = u32::try_from(block_bytes / LAYER_BYTES).expect("a block has few layers");
    CacheIdentity {
        model: "bench".to_owned(),
        revision: "1".to_owned(),
        tokenizer: "none".to_owned(),
        compute_dtype: "f32".to_owned(),
        kv_dtype: "f32".to_owned(),
        kv_scale: "none".to_owned(),
        groups: vec![AttentionGroup { kind: "full".to_owned(), layers, kv_heads: 8, head_dim: 64 }],
        block_tokens: BLOCK_TOKENS,
        rope: String::new(),
        adapter: String::new(),
        adapter_revision: String::new(),
        layout: LAYOUT_CANONICAL.to_owned(),
        format: BLOCK_FORMAT,
    }
}

struct Loader {
    shape: Shape,
    node: Rc<Node>,
    keys: Vec<Vec<BlockKey>>,
    pages: Pages,
    turn: Turn,
    how: Load,
}

pub(super) fn load(
    shape: Shape,
    shared: &SharedNode,
    pages: Pages,
    how: Load,
) -> Result<Box<dyn System>, Failure> {
    touch(&pages, shape);
    let known = shared.borrow().clone();
    let node = match known {
        Some(node) => node,
        None => shared.borrow_mut().insert(Rc::new(filled(shape)?)).clone(),
    };
    let keys = (0..shape.runs).map(|run| node.keys(run)).collect();
    let loader = Loader { shape, node, keys, pages, turn: Turn::new(shape), how };
    loader.prove()?;
    Ok(Box::new(loader))
}

fn filled(shape: Shape) -> Result<Node, Failure> {
    let node = Node::start(shape)?;
    let mut run_bytes = vec![0; RUN_BLOCKS * shape.block_bytes];
    for run in 0..shape.runs {
        for (at, block) in run_bytes.chunks_mut(shape.block_bytes).enumerate() {
            memory::fill(block, run * RUN_BLOCKS + at);
        }
        node.write(run, |at| &run_bytes[at * shape.block_bytes..][..shape.block_bytes])?;
    }
    Ok(node)
}

impl Loader {
    /// Loads one run and checks it against what was written, before anything is timed.
    fn prove(&self) -> Result<(), Failure> {
        let run = self.shape.runs - 1;
        let lease = self.node.lease(&self.keys[run])?;
        let mut page = vec![0; self.shape.block_bytes];
        for at in 0..RUN_BLOCKS {
            lease.read(at, &mut page).doing("loading a block")?;
            check(&page, run * RUN_BLOCKS + at)?;
        }
        Ok(())
    }

    fn load(&mut self, lease: &Lease, pages: &mut [u8]) -> Result<(), Failure> {
        let bytes = self.shape.block_bytes;
        for at in 0..RUN_BLOCKS {
            match self.how {
                Load::Copy => {
                    let to = self.turn.page.step();
                    lease.read(at, &mut pages[to * bytes..][..bytes]).doing("loading a block")?;
                }
                Load::InPlace => {
                    let view = lease.view(at).doing("checking a block")?;
                    view.confirm().doing("checking a block")?;
                }
            }
        }
        Ok(())
    }
}

impl System for Loader {
    fn run_once(&mut self) -> Result<Vec<Sample>, Failure> {
        let pages = Rc::clone(&self.pages);
        let mut pages = pages.borrow_mut();
        let mut asked = Vec::with_capacity(self.shape.round_runs);
        let start = Instant::now();
        for _ in 0..self.shape.round_runs {
            let run = self.turn.run.step();
            let before = Instant::now();
            let lease = self.node.lease(&self.keys[run])?;
            asked.push(before.elapsed().as_secs_f64());
            self.load(&lease, &mut pages)?;
        }
        let rate = Sample::rate(self.shape.round_bytes(), start.elapsed());
        Ok(vec![rate, Sample::micros("acquire_p50", Duration::from_secs_f64(Spread::of(&asked).median))])
    }
}

struct Writer {
    shape: Shape,
    node: Node,
    pages: Pages,
    page: Walk,
    run: usize,
}

pub(super) fn write(shape: Shape, pages: Pages) -> Result<Box<dyn System>, Failure> {
    touch(&pages, shape);
    let node = Node::start(shape)?;
    Ok(Box::new(Writer { shape, node, pages, page: Walk::new(shape.blocks(), 2), run: 0 }))
}

impl System for Writer {
    /// Every run is new to the store: once it is full, each write makes it evict.
    fn run_once(&mut self) -> Result<Vec<Sample>, Failure> {
        let bytes = self.shape.block_bytes;
        let pages = self.pages.borrow();
        let start = Instant::now();
        for _ in 0..self.shape.round_runs {
            let page = &mut self.page;
            self.node.write(self.run, |_| &pages[page.step() * bytes..][..bytes])?;
            self.run += 1;
        }
        Ok(vec![Sample::rate(self.shape.round_bytes(), start.elapsed())])
    }
}
