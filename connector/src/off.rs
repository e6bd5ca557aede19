//! No store: every call is answered at once with a miss.

use std::sync::Arc;
use std::time::Instant;

use hearth_proto::key::BlockKey;

use crate::backend::{Answer, Backend, Failure, Op};
use crate::error::{Refusal, State, Violation};
use crate::local::SessionMemory;

/// A backend with nothing behind it.
#[derive(Debug)]
pub(crate) struct Off {
    refusal: Option<Arc<Refusal>>,
}

impl Off {
    /// No store is configured.
    pub(crate) fn new() -> Self {
        Self { refusal: None }
    }

    /// The configuration cannot be used with any store.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self { refusal: Some(Arc::new(refusal)) }
    }
}

impl Backend for Off {
    fn state(&self) -> State {
        self.refusal.clone().map_or(State::Off, State::Refused)
    }

    fn wait_ready(&self, _deadline: Instant) -> State {
        self.state()
    }

    fn call(&self, _op: Op, _within: Option<&SessionMemory>, _deadline: Instant) -> Result<Answer, Failure> {
        Err(if self.refusal.is_some() { Failure::Refused } else { Failure::Off })
    }

    fn give_back(&self, _memory: &SessionMemory, _op: Op) {}

    fn distrust(&self, _memory: &SessionMemory, _violation: Violation) {}

    fn advertise(&self, _chain: &[BlockKey], _first: usize) {}

    fn withdraw(&self, _keys: &[BlockKey]) {}

    fn close(&self) {}
}
