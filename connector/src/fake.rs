//! The store in memory, with the same promises, for tests of engines.
//!
//! Blocks lie in real regions and are read through the same checks as a node's, so flipped bytes are found, leases
//! hold, reservations are aborted on drop. There is no socket, no disk, and no thread.

mod arena;
mod node;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hearth_proto::key::BlockKey;

use crate::backend::{Answer, Backend, Failure, Op};
use crate::config::StoreConfig;
use crate::error::{Refusal, State, Violation};
use crate::local::{Scope, SessionMemory};
use node::Node;

/// A store node in memory; a cheap handle. Every [`Store::fake`](crate::Store::fake) on one `Shared` is a client of
/// the same node. The methods here play the operator, the disk and bad luck.
#[derive(Clone)]
pub struct Shared {
    host: Arc<Host>,
}

struct Host {
    node: Mutex<Node>,
    changed: Condvar,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("fake::Shared").field("blocks", &self.len()).finish_non_exhaustive()
    }
}

impl Shared {
    /// A running node that holds at most this many bytes of blocks. Memory is taken as it is written.
    pub fn new(capacity_bytes: usize) -> Self {
        Self { host: Arc::new(Host { node: Mutex::new(Node::new(capacity_bytes)), changed: Condvar::new() }) }
    }

    /// Flips one byte of a stored block's payload.
    pub fn corrupt(&self, key: &BlockKey) -> bool {
        self.lock().corrupt(key)
    }

    /// Drops a stored block unless it is leased.
    pub fn evict(&self, key: &BlockKey) -> bool {
        self.lock().evict(key)
    }

    /// Has a stored block found on NVMe from now on, until it is leased.
    pub fn demote(&self, key: &BlockKey) -> bool {
        self.lock().demote(key)
    }

    /// Kills the node: sessions end, leases and reservations are void, and only blocks sealed with
    /// [`Durability::Nvme`](crate::Durability::Nvme) will be found again.
    pub fn stop(&self) {
        self.lock().stop();
        self.host.changed.notify_all();
    }

    /// Starts the node again after [`stop`](Self::stop). Clients reconnect by themselves.
    pub fn start(&self) {
        self.lock().start();
        self.host.changed.notify_all();
    }

    /// While set, the node answers nothing and calls run into their deadlines.
    pub fn stall(&self, stalled: bool) {
        self.lock().stalled = stalled;
        self.host.changed.notify_all();
    }

    /// Whether the block is stored.
    pub fn contains(&self, key: &BlockKey) -> bool {
        self.lock().contains(key)
    }

    /// Number of stored blocks.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of leases held by clients.
    pub fn leases(&self) -> usize {
        self.lock().leases()
    }

    /// Number of reservations held by clients.
    pub fn reservations(&self) -> usize {
        self.lock().reservations()
    }

    /// What clients have advertised and not withdrawn, as holder and key, sorted.
    pub fn advertised(&self) -> Vec<(String, BlockKey)> {
        self.lock().advertised()
    }

    fn lock(&self) -> MutexGuard<'_, Node> {
        self.host.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change of the node until the deadline. `None` when it has passed.
    fn wait<'a>(&self, node: MutexGuard<'a, Node>, deadline: Instant) -> Option<MutexGuard<'a, Node>> {
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        let woken = self.host.changed.wait_timeout(node, left).unwrap_or_else(PoisonError::into_inner);
        Some(woken.0)
    }
}

/// One client of a fake node.
#[derive(Debug)]
pub(crate) struct Client {
    shared: Shared,
    config: StoreConfig,
    scope: Arc<Scope>,
    state: Mutex<ClientState>,
}

#[derive(Debug, Default)]
struct ClientState {
    memory: Option<Arc<SessionMemory>>,
    advertised: std::collections::BTreeSet<BlockKey>,
    closed: bool,
}

impl Client {
    pub(crate) fn new(shared: &Shared, config: StoreConfig, scope: &Arc<Scope>) -> Self {
        let state = Mutex::default();
        let client = Self { shared: shared.clone(), config, scope: Arc::clone(scope), state };
        let _connected = client.session(&mut client.shared.lock());
        client
    }

    fn lock(&self) -> MutexGuard<'_, ClientState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session with the running node, opened when there is none. The node's lock is taken before the client's.
    fn session(&self, node: &mut Node) -> Result<Arc<SessionMemory>, Arc<Refusal>> {
        let mut state = self.lock();
        if let Some(memory) = state.memory.as_ref().filter(|memory| memory.is_alive()) {
            return Ok(Arc::clone(memory));
        }
        let memory = node.hello(&self.config, &self.scope).map_err(Arc::new)?;
        for key in &state.advertised {
            node.advertise(memory.session(), key);
        }
        state.memory = Some(Arc::clone(&memory));
        self.config.metrics.connected(true);
        Ok(memory)
    }

    fn state_in(&self, node: &mut Node) -> State {
        if !node.running || self.lock().closed {
            self.config.metrics.connected(false);
            return State::Connecting;
        }
        match self.session(node) {
            Ok(_) => State::Connected,
            Err(refusal) => State::Refused(refusal),
        }
    }
}

impl Backend for Client {
    fn state(&self) -> State {
        self.state_in(&mut self.shared.lock())
    }

    fn wait_ready(&self, deadline: Instant) -> State {
        let mut node = self.shared.lock();
        loop {
            let state = self.state_in(&mut node);
            if !matches!(state, State::Connecting) {
                return state;
            }
            match self.shared.wait(node, deadline) {
                Some(guard) => node = guard,
                None => return state,
            }
        }
    }

    fn call(&self, op: Op, within: Option<&SessionMemory>, deadline: Instant) -> Result<Answer, Failure> {
        let mut node = self.shared.lock();
        loop {
            if Instant::now() >= deadline {
                return Err(Failure::Deadline);
            }
            match self.state_in(&mut node) {
                State::Connected if !node.stalled => break,
                State::Connected => {}
                State::Refused(_) => return Err(Failure::Refused),
                State::Connecting | State::Off => return Err(Failure::StoreDown),
            }
            node = self.shared.wait(node, deadline).ok_or(Failure::Deadline)?;
        }
        let memory = self.session(&mut node).map_err(|_refused| Failure::Refused)?;
        if within.is_some_and(|expected| expected.session() != memory.session()) {
            return Err(Failure::StoreDown);
        }
        let outcome = node.answer(memory.session(), op)?;
        Ok(Answer { outcome, memory })
    }

    fn give_back(&self, memory: &SessionMemory, op: Op) {
        let mut node = self.shared.lock();
        if memory.is_alive() {
            let _stale_is_fine = node.answer(memory.session(), op);
        }
    }

    fn distrust(&self, memory: &SessionMemory, violation: Violation) {
        tracing::error!(%violation, "the fake node broke its protocol");
        self.shared.lock().end_session(memory.session());
    }

    fn advertise(&self, chain: &[BlockKey], first: usize) {
        let mut node = self.shared.lock();
        self.lock().advertised.extend(chain.iter().skip(first));
        if let (true, Ok(memory)) = (node.running, self.session(&mut node)) {
            for key in chain.iter().skip(first) {
                node.advertise(memory.session(), key);
            }
        }
    }

    fn withdraw(&self, keys: &[BlockKey]) {
        let mut node = self.shared.lock();
        let mut state = self.lock();
        for key in keys {
            state.advertised.remove(key);
            if let Some(memory) = &state.memory {
                node.withdraw(memory.session(), key);
            }
        }
    }

    fn close(&self) {
        let mut node = self.shared.lock();
        let mut state = self.lock();
        state.closed = true;
        if let Some(memory) = state.memory.take() {
            node.end_session(memory.session());
        }
        self.config.metrics.connected(false);
    }
}
