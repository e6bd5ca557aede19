//! Opens one session: connect, greeting, hello, welcome.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hearth_proto::v1;
use prost::Message;
use thiserror::Error;

use super::wire::{Filled, For, FrameReader, OutBuffer, connect_to, wait};
use super::{Link, Phase};
use crate::error::Violation;
use crate::hello::{self, HelloError};
use crate::local::SessionMemory;

/// How long a node may take to open a session.
const HELLO_MAX: Duration = Duration::from_secs(5);

/// There is no session.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("cannot connect to {path}: {source}; is the store node running, and is this its socket?")]
    Connect { path: String, source: io::Error },
    #[error("the node did not open a session within {} s", HELLO_MAX.as_secs())]
    Silent,
    #[error("the node closed the connection")]
    Closed,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The last handle is gone.
    #[error("closed")]
    Over,
}

/// A session that has just been opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) socket: UnixStream,
    pub(super) reader: FrameReader,
    pub(super) memory: SessionMemory,
    pub(super) node: String,
}

/// Opens a session. Blocks until it is open or cannot be, or the last handle is dropped.
pub(super) fn open(link: &Link, path: &Path) -> Result<Opened, ConnectError> {
    static SESSIONS: AtomicU64 = AtomicU64::new(1);
    let socket = connect_to(path)
        .map_err(|source| ConnectError::Connect { path: path.display().to_string(), source })?;
    let mut handshake =
        Handshake { link, socket, reader: FrameReader::new(), until: Instant::now() + HELLO_MAX };
    let (greeting, extra) = handshake.receive::<v1::Greeting>()?;
    if !extra.is_empty() {
        return Err(HelloError::from(Violation::Descriptors(extra.len(), 0)).into());
    }
    handshake.send(&hello::hello(&greeting, &link.config)?)?;
    let (reply, fds) = handshake.receive::<v1::Reply>()?;
    let regions = hello::welcomed(reply, fds, &link.config, &link.scope)?;
    let memory = SessionMemory::new(SESSIONS.fetch_add(1, Ordering::Relaxed), regions);
    Ok(Opened { socket: handshake.socket, reader: handshake.reader, memory, node: greeting.node })
}

struct Handshake<'a> {
    link: &'a Link,
    socket: UnixStream,
    reader: FrameReader,
    until: Instant,
}

impl Handshake<'_> {
    fn receive<M: Message + Default>(&mut self) -> Result<(M, Vec<OwnedFd>), ConnectError> {
        loop {
            if let Some(received) = self.reader.next().map_err(HelloError::from)? {
                return Ok(received);
            }
            match self.reader.fill(&self.socket)? {
                Filled::Bytes => {}
                Filled::Closed => return Err(ConnectError::Closed),
                Filled::Nothing => self.wait(For::Input)?,
            }
        }
    }

    fn send<M: Message>(&mut self, message: &M) -> Result<(), ConnectError> {
        let mut out = OutBuffer::default();
        out.push(message).map_err(|error| HelloError::from(Violation::from(error)))?;
        loop {
            out.flush(&self.socket)?;
            if out.is_empty() {
                return Ok(());
            }
            self.wait(For::InputAndRoom)?;
        }
    }

    fn wait(&self, interest: For) -> Result<(), ConnectError> {
        if matches!(*self.link.phase(), Phase::Closed) {
            return Err(ConnectError::Over);
        }
        if Instant::now() >= self.until {
            return Err(ConnectError::Silent);
        }
        wait(&self.link.wake, Some((&self.socket, interest)), Some(self.until));
        Ok(())
    }
}
