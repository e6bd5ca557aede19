//! The connection's thread: opens sessions one after another, and reads and sends while one lives.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::{Duration, Instant};

use hearth_proto::v1;
use thiserror::Error;

use super::connect::{self, ConnectError, Opened};
use super::wire::{Filled, For, FrameReader, OutBuffer, wait};
use super::{Connected, Link, Phase};
use crate::error::Violation;
use crate::hello::HelloError;
use crate::session::{Overrun, Session, Settled};

/// The first pause after a failure; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause. Also how long a session has to last for the pauses to start over.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The pause after a refusal, which only a person can lift.
const PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// How often a silent node with requests in flight is looked at.
const HUNG_CHECK: Duration = Duration::from_secs(1);

/// Why a session ended.
#[derive(Debug, Error)]
enum Ended {
    #[error("the node closed the connection")]
    Closed,
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the node broke its protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the node does not answer")]
    Hung,
    #[error("more leases are dropped than the node takes back")]
    Overrun(#[from] Overrun),
    /// Ended from this side, where the reason has been logged.
    #[error("ended here")]
    Here,
}

/// Lives until the last handle is dropped.
pub(super) fn run(link: &Link) {
    let path = link.config.socket.clone().expect("a client has a socket");
    let mut pause = PAUSE_MIN;
    let mut told = Told::Nothing;
    while !link.is_closed() {
        match connect::open(link, &path) {
            Ok(opened) => {
                tracing::info!(node = opened.node, socket = %path.display(), "connected to the store node");
                told = Told::Nothing;
                let began = Instant::now();
                let ended = serve(link, opened);
                if began.elapsed() >= PAUSE_MAX {
                    pause = PAUSE_MIN;
                }
                if !link.is_closed() {
                    tracing::warn!(reason = %ended, "the session with the store node ended; blocks are misses until it is back");
                }
            }
            Err(ConnectError::Over) => return,
            Err(ConnectError::Hello(HelloError::Refused(refusal))) => {
                if told.changes_to(Told::Refused(refusal.to_string())) {
                    tracing::error!(%refusal, "the store node refuses this client; blocks are misses");
                }
                link.enter(Phase::Refused(Arc::new(refusal)));
                link.pause(PAUSE_REFUSED);
                continue;
            }
            Err(error) => {
                if told.changes_to(Told::Absent) {
                    tracing::warn!(%error, "no session with the store node; blocks are misses, it is tried on");
                }
                link.enter(Phase::Connecting);
            }
        }
        link.pause(pause);
        pause = (2 * pause).min(PAUSE_MAX);
    }
}

/// What the log says of the state, so that it says so once.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Absent,
    Refused(String),
}

impl Told {
    fn changes_to(&mut self, now: Self) -> bool {
        let changes = *self != now;
        *self = now;
        changes
    }
}

/// Serves one session until it ends.
fn serve(link: &Link, opened: Opened) -> Ended {
    let Opened { socket, mut reader, memory, .. } = opened;
    let socket = Arc::new(socket);
    let session = memory.session();
    let connected = Connected {
        session: Session::new(Instant::now()),
        memory: Arc::new(memory),
        socket: Arc::clone(&socket),
        out: OutBuffer::default(),
        crowded: 0,
    };
    link.advertised().forget_told();
    if !link.enter(Phase::Connected(connected)) {
        return Ended::Here;
    }
    let mut serving = Serving { link, session, socket, tell_from: None };
    let ended = loop {
        match serving.turn(&mut reader) {
            Ok(()) => {}
            Err(ended) => break ended,
        }
    };
    let mut phase = link.phase();
    if !matches!(*phase, Phase::Closed) {
        link.disconnect(&mut phase);
    }
    ended
}

struct Serving<'a> {
    link: &'a Link,
    session: u64,
    socket: Arc<UnixStream>,
    /// When the node may be told again what is advertised, after it refused a message.
    tell_from: Option<Instant>,
}

impl Serving<'_> {
    /// Reads what came, sends what can go, and waits for more of either.
    fn turn(&mut self, reader: &mut FrameReader) -> Result<(), Ended> {
        let filled = reader.fill(&self.socket)?;
        while let Some((reply, fds)) = reader.next::<v1::Reply>()? {
            if !fds.is_empty() {
                return Err(Violation::Descriptors(fds.len(), 0).into());
            }
            self.settle(reply)?;
        }
        let interest = self.send()?;
        match filled {
            Filled::Closed => return Err(Ended::Closed),
            Filled::Bytes => return Ok(()),
            Filled::Nothing => {}
        }
        let now = Instant::now();
        let (hung, idle) =
            self.with(|connected| Ok((connected.session.is_hung(now), connected.session.is_idle())))?;
        if hung {
            return Err(Ended::Hung);
        }
        let look = (!idle).then_some(now + HUNG_CHECK);
        let until = [look, self.tell_from.filter(|from| *from > now)].into_iter().flatten().min();
        wait(&self.link.wake, Some((&self.socket, interest)), until);
        Ok(())
    }

    /// Works on the session, which must still be the one that is served.
    fn with<R>(&self, work: impl FnOnce(&mut Connected) -> Result<R, Ended>) -> Result<R, Ended> {
        match &mut *self.link.phase() {
            Phase::Connected(connected) if connected.memory.session() == self.session => work(connected),
            _ => Err(Ended::Here),
        }
    }

    fn settle(&mut self, reply: v1::Reply) -> Result<(), Ended> {
        let told = self.with(|connected| {
            let told = match connected.session.settle(reply, Instant::now())?? {
                Settled::Deliver(waiter, outcome) => {
                    // Refused only when the caller has gone between the deadline and its farewell.
                    if let Err(TrySendError::Full(late) | TrySendError::Disconnected(late)) =
                        waiter.try_send(outcome)
                    {
                        connected.session.return_grant(late)?;
                    }
                    None
                }
                Settled::Told(taken) => Some(taken),
                Settled::Quiet => None,
            };
            self.link.make_room(connected);
            Ok(told)
        })?;
        if let Some(taken) = told {
            self.link.advertised().settled(taken);
            self.tell_from = (!taken).then(|| Instant::now() + PAUSE_MIN);
        }
        Ok(())
    }

    /// Sends what waits, as far as there is room, and says what to wait for.
    fn send(&mut self) -> Result<For, Ended> {
        self.with(|connected| {
            connected.out.flush(&connected.socket)?;
            connected.send_give_backs()?;
            self.link.make_room(connected);
            Ok(())
        })?;
        self.tell()?;
        let drained = self.with(|connected| Ok(connected.out.is_empty()))?;
        Ok(if drained { For::Input } else { For::InputAndRoom })
    }

    /// Sends the next message about what is advertised, if it may go.
    fn tell(&self) -> Result<(), Ended> {
        if self.tell_from.is_some_and(|from| Instant::now() < from) {
            return Ok(());
        }
        let may = self.with(|connected| Ok(connected.session.may_tell() && connected.out.has_room()))?;
        let Some(op) = may.then(|| self.link.advertised().next()).flatten() else { return Ok(()) };
        // Callers may have taken the room meanwhile; then the message is put off as if the node had refused it.
        let sent = self.with(|connected| {
            let may = connected.session.may_tell();
            if may {
                let request = connected.session.tell(op, Instant::now());
                connected.transmit(&request)?;
            }
            Ok(may)
        })?;
        if !sent {
            self.link.advertised().settled(false);
        }
        Ok(())
    }
}

impl Link {
    fn is_closed(&self) -> bool {
        matches!(*self.phase(), Phase::Closed)
    }

    /// Enters a phase unless the last handle is gone.
    fn enter(&self, next: Phase) -> bool {
        let mut phase = self.phase();
        if matches!(*phase, Phase::Closed) {
            return false;
        }
        self.config.metrics.connected(matches!(next, Phase::Connected(_)));
        *phase = next;
        self.changed.notify_all();
        true
    }

    /// Wakes callers that wait for room, when there is some.
    fn make_room(&self, connected: &mut Connected) {
        if connected.crowded > 0 && connected.has_room() {
            connected.crowded = 0;
            self.changed.notify_all();
        }
    }

    /// Waits, unless the last handle is dropped.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.is_closed() && Instant::now() < until {
            wait(&self.wake, None, Some(until));
        }
    }
}
