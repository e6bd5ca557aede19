//! The seam between the handle and what answers it: a node behind a socket, a fake in memory, or nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use hearth_proto::code::Code;
use hearth_proto::key::BlockKey;
use hearth_proto::v1;

use crate::error::{Miss, State, Violation};
use crate::local::SessionMemory;

pub(crate) type Op = v1::request::Op;
pub(crate) type Outcome = v1::reply::Result;

/// What answers a [`Store`](crate::Store).
///
/// The caller checks what an answer grants and reports a violation; the implementer keeps deadlines, matches answers
/// to calls, and sees to it that a grant which nobody waits for any more is given back.
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// Where it stands.
    fn state(&self) -> State;

    /// As [`Backend::state`], but waits until the deadline while it is connecting.
    fn wait_ready(&self, deadline: Instant) -> State;

    /// Asks and waits for the answer, until the deadline at most. With `within`, asks only the session that this
    /// memory is of: when it is over, so is the call.
    fn call(&self, op: Op, within: Option<&SessionMemory>, deadline: Instant) -> Result<Answer, Failure>;

    /// Sends a Release or Abort to the session that `memory` is of, if it still lives. Never blocks.
    fn give_back(&self, memory: &SessionMemory, op: Op);

    /// The session that `memory` is of has said something impossible: end it.
    fn distrust(&self, memory: &SessionMemory, violation: Violation);

    /// Blocks `first..` of the chain are in the engine's own pages. Never blocks.
    fn advertise(&self, chain: &[BlockKey], first: usize);

    /// They no longer are. Never blocks.
    fn withdraw(&self, keys: &[BlockKey]);

    /// The last handle is gone: end the session. Never blocks.
    fn close(&self);
}

/// What the node answered, and the memory that its grants lie in.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) memory: Arc<SessionMemory>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// None came in time.
    Deadline,
    /// There is no connection, or it broke.
    StoreDown,
    /// The node refuses this client.
    Refused,
    /// There is no store.
    Off,
    /// The node says no.
    Node { code: Code, message: String },
}

impl Failure {
    pub(crate) fn miss(&self) -> Miss {
        match self {
            Self::Deadline => Miss::Deadline,
            Self::StoreDown => Miss::StoreDown,
            Self::Refused => Miss::Refused,
            Self::Off => Miss::Off,
            Self::Node { code, .. } => Miss::from(*code),
        }
    }
}
