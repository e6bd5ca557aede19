//! The client of one node: a thread owns the connection, callers send by themselves and wait for their answers.
//!
//! One lock guards the session and what waits to be sent; nothing blocks under it, because the socket does not. The
//! lock on what is advertised is never taken together with it.

mod connect;
mod run;
mod wire;

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hearth_proto::code::Code;
use hearth_proto::key::BlockKey;
use hearth_proto::limit::ADVERTISED_BLOCKS_MAX;
use hearth_proto::v1;

use crate::advertised::Advertised;
use crate::backend::{Answer, Backend, Failure, Op, Outcome};
use crate::config::StoreConfig;
use crate::error::{Refusal, State, Violation};
use crate::local::{Scope, SessionMemory};
use crate::session::Session;
use wire::{OutBuffer, Wake};

/// The backend behind [`Store::open`](crate::Store::open).
#[derive(Debug)]
pub(crate) struct Client {
    link: Arc<Link>,
}

/// What callers and the connection's thread share.
#[derive(Debug)]
struct Link {
    config: StoreConfig,
    scope: Arc<Scope>,
    wake: Wake,
    phase: Mutex<Phase>,
    /// The phase has changed, or a session has room again.
    changed: Condvar,
    advertised: Mutex<Advertised>,
}

#[derive(Debug)]
enum Phase {
    Connecting,
    Connected(Connected),
    Refused(Arc<Refusal>),
    /// The last handle is gone.
    Closed,
}

#[derive(Debug)]
struct Connected {
    session: Session<SyncSender<Outcome>>,
    memory: Arc<SessionMemory>,
    socket: Arc<UnixStream>,
    out: OutBuffer,
    /// Callers that wait for room.
    crowded: usize,
}

impl Client {
    /// Starts the connection's thread.
    ///
    /// # Errors
    /// When this process can have no more threads or descriptors.
    pub(crate) fn start(config: StoreConfig, scope: Arc<Scope>) -> std::io::Result<Self> {
        let link = Arc::new(Link {
            config,
            scope,
            wake: Wake::new()?,
            phase: Mutex::new(Phase::Connecting),
            changed: Condvar::new(),
            advertised: Mutex::new(Advertised::new(ADVERTISED_BLOCKS_MAX)),
        });
        let of_thread = Arc::clone(&link);
        let thread = std::thread::Builder::new().name("hearth-connector".to_owned());
        thread.spawn(move || run::run(&of_thread))?;
        Ok(Self { link })
    }
}

impl Link {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advertised(&self) -> MutexGuard<'_, Advertised> {
        self.advertised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        phase: MutexGuard<'a, Phase>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, Phase>, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Deadline);
        }
        Ok(self.changed.wait_timeout(phase, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Sends a request and returns its id and the session's memory. Waits while there is no room.
    fn send(
        &self,
        op: Op,
        within: Option<&SessionMemory>,
        waiter: SyncSender<Outcome>,
        deadline: Instant,
    ) -> Result<(u64, Arc<SessionMemory>), Failure> {
        let mut phase = self.phase();
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Err(Failure::Deadline);
            }
            let connected = phase.connected()?;
            if within.is_some_and(|memory| memory.session() != connected.memory.session()) {
                return Err(Failure::StoreDown);
            }
            if connected.has_room() {
                let request = connected.session.call(op, waiter, now, deadline);
                let memory = Arc::clone(&connected.memory);
                return match connected.transmit(&request) {
                    Ok(drained) => {
                        if !drained {
                            self.wake.wake();
                        }
                        Ok((request.id, memory))
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a request could not be sent");
                        self.disconnect(&mut phase);
                        Err(Failure::StoreDown)
                    }
                };
            }
            connected.crowded += 1;
            phase = self.wait(phase, deadline)?;
        }
    }

    /// The deadline has passed. The answer, if it came in this very moment.
    fn give_up(
        &self,
        id: u64,
        memory: &SessionMemory,
        answer: &Receiver<Outcome>,
    ) -> Result<Outcome, Failure> {
        if let Some(connected) = self.phase().of_session(memory) {
            connected.session.abandon(id);
        }
        answer.try_recv().map_err(|_none| Failure::Deadline)
    }

    /// Ends the session, if there is one; the thread opens another.
    fn disconnect(&self, phase: &mut Phase) {
        match std::mem::replace(phase, Phase::Connecting) {
            Phase::Connected(connected) => {
                connected.end();
                self.config.metrics.connected(false);
                self.changed.notify_all();
                self.wake.wake();
            }
            other => *phase = other,
        }
    }
}

impl Phase {
    fn connected(&mut self) -> Result<&mut Connected, Failure> {
        match self {
            Self::Connected(connected) => Ok(connected),
            Self::Refused(_) => Err(Failure::Refused),
            Self::Connecting | Self::Closed => Err(Failure::StoreDown),
        }
    }

    fn of_session(&mut self, memory: &SessionMemory) -> Option<&mut Connected> {
        self.connected().ok().filter(|connected| connected.memory.session() == memory.session())
    }

    fn state(&self) -> State {
        match self {
            Self::Connecting | Self::Closed => State::Connecting,
            Self::Connected(_) => State::Connected,
            Self::Refused(refusal) => State::Refused(Arc::clone(refusal)),
        }
    }
}

impl Connected {
    fn has_room(&self) -> bool {
        self.session.has_room() && self.out.has_room()
    }

    /// Sends a request, or as much of it as the socket takes. False when some of it waits.
    fn transmit(&mut self, request: &v1::Request) -> std::io::Result<bool> {
        self.out.push(request).map_err(std::io::Error::other)?;
        self.out.flush(&self.socket)?;
        Ok(self.out.is_empty())
    }

    /// Sends what is to be given back, as far as there is room. False when bytes or messages wait for the thread.
    fn send_give_backs(&mut self) -> std::io::Result<bool> {
        while self.out.has_room() {
            let Some(request) = self.session.next_give_back() else { break };
            self.transmit(&request)?;
        }
        Ok(self.out.is_empty())
    }

    /// Ends the session: its grants are void and its callers are told.
    fn end(self) {
        self.memory.end();
        // The other end of a socket that is shut down already is gone, which is what is wanted.
        let _gone = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Backend for Client {
    fn state(&self) -> State {
        self.link.phase().state()
    }

    fn wait_ready(&self, deadline: Instant) -> State {
        let mut phase = self.link.phase();
        while matches!(*phase, Phase::Connecting) {
            match self.link.wait(phase, deadline) {
                Ok(guard) => phase = guard,
                Err(_deadline) => return self.state(),
            }
        }
        phase.state()
    }

    fn call(&self, op: Op, within: Option<&SessionMemory>, deadline: Instant) -> Result<Answer, Failure> {
        let (waiter, answer) = sync_channel(1);
        let (id, memory) = self.link.send(op, within, waiter, deadline)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let outcome = match answer.recv_timeout(left) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::StoreDown),
            Err(RecvTimeoutError::Timeout) => self.link.give_up(id, &memory, &answer)?,
        };
        match outcome {
            Outcome::Error(error) => {
                Err(Failure::Node { code: Code::from_number(error.code), message: error.message })
            }
            outcome => Ok(Answer { outcome, memory }),
        }
    }

    fn give_back(&self, memory: &SessionMemory, op: Op) {
        let mut phase = self.link.phase();
        let Some(connected) = phase.of_session(memory) else { return };
        let overrun = connected.session.give_back(op).is_err();
        if overrun {
            self.link.disconnect(&mut phase);
            tracing::error!("more leases are dropped than the node takes back; the session is opened anew");
            return;
        }
        if !matches!(connected.send_give_backs(), Ok(true)) {
            self.link.wake.wake();
        }
    }

    fn distrust(&self, memory: &SessionMemory, violation: Violation) {
        let mut phase = self.link.phase();
        if phase.of_session(memory).is_some() {
            tracing::error!(%violation, "the store node broke its protocol; the session is opened anew");
            self.link.disconnect(&mut phase);
        }
    }

    fn advertise(&self, chain: &[BlockKey], first: usize) {
        let remembered = self.link.advertised().advertise(chain, first);
        if remembered < chain.len().saturating_sub(first) {
            tracing::debug!(remembered, "too many blocks are advertised; routers will not see the others");
        }
        self.link.wake.wake();
    }

    fn withdraw(&self, keys: &[BlockKey]) {
        self.link.advertised().withdraw(keys);
        self.link.wake.wake();
    }

    fn close(&self) {
        let mut phase = self.link.phase();
        if let Phase::Connected(connected) = std::mem::replace(&mut *phase, Phase::Closed) {
            connected.end();
        }
        self.link.config.metrics.connected(false);
        self.link.changed.notify_all();
        self.link.wake.wake();
    }
}
