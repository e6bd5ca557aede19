//! One session with one node as a state machine: no socket, no clock, no lock.
//!
//! It numbers requests, matches answers to them, and keeps the node's window. A request whose caller has gone stays
//! in flight until it is answered; what a late answer grants is given back. Leases and reservations to be given back
//! go before anything new, and are not answered. A node works on requests side by side, so messages whose order
//! matters, about what is advertised, go one at a time.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use hearth_proto::limit::{DEADLINE_MS_MAX, INFLIGHT_REQUESTS_MAX};
use hearth_proto::v1;
use thiserror::Error;

use crate::backend::{Op, Outcome};
use crate::error::Violation;
use crate::hello::HELLO_ID;
use crate::store::GRANTS_HELD_MAX;

/// Calls in flight; the rest of the node's window is kept for what is given back, so that calls which the node does
/// not answer cannot keep leases from being released.
const CALLS_INFLIGHT_MAX: usize = INFLIGHT_REQUESTS_MAX * 3 / 4;

/// Set in the ids of what is given back. No answer is awaited, and one that comes says nothing of interest.
const UNANSWERED: u64 = 1 << 63;

/// What waits to be given back: everything held and everything that may yet be granted late. At the bound the
/// session is ended, which gives back all of it.
const GIVE_BACKS_MAX: usize = GRANTS_HELD_MAX + INFLIGHT_REQUESTS_MAX;

/// How long a node may be silent while an answer is overdue before the session counts as broken.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The node is asked to answer this much before the caller's deadline, so that what it has by then arrives in time.
const ANSWER_MARGIN: Duration = Duration::from_millis(10);

/// The state of one session. `T` is what a caller waits on.
#[derive(Debug)]
pub(crate) struct Session<T> {
    last_id: u64,
    in_flight: HashMap<u64, InFlight<T>>,
    telling: bool,
    give_backs: VecDeque<Op>,
    heard: Instant,
}

#[derive(Debug)]
struct InFlight<T> {
    kind: Kind,
    due: Instant,
    /// None for a message that nobody waits on, or not any more.
    waiter: Option<T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Match,
    Acquire,
    Reserve,
    Seal,
    Tell,
}

/// What an answer was to.
#[derive(Debug, PartialEq)]
pub(crate) enum Settled<T> {
    /// A call whose caller waits.
    Deliver(T, Outcome),
    /// What is advertised, and whether the node took it.
    Told(bool),
    /// Something that nobody waits for.
    Quiet,
}

/// There is more to give back than a client can hold: end the session.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("more than a client can hold waits to be given back")]
pub(crate) struct Overrun;

impl<T> Session<T> {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last_id: HELLO_ID,
            in_flight: HashMap::new(),
            telling: false,
            give_backs: VecDeque::new(),
            heard: now,
        }
    }

    /// Whether a call may be sent now.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight.len() < CALLS_INFLIGHT_MAX && self.give_backs.is_empty()
    }

    /// A call to send, on which `waiter` waits until `deadline`. The caller has seen that there is room.
    pub(crate) fn call(&mut self, op: Op, waiter: T, now: Instant, deadline: Instant) -> v1::Request {
        assert!(self.has_room(), "the caller looks for room first");
        let left = deadline.saturating_duration_since(now);
        let answer_in = left.saturating_sub(ANSWER_MARGIN.min(left / 2)).as_millis();
        let deadline_ms = u32::try_from(answer_in).unwrap_or(u32::MAX).min(DEADLINE_MS_MAX);
        let flight = InFlight { kind: Kind::of(&op), due: deadline, waiter: Some(waiter) };
        self.start(op, flight, deadline_ms)
    }

    /// Whether a message about what is advertised may be sent now: the one before has been answered.
    pub(crate) fn may_tell(&self) -> bool {
        !self.telling && self.has_room()
    }

    /// A message to send about what is advertised. The caller has seen that it may.
    pub(crate) fn tell(&mut self, op: Op, now: Instant) -> v1::Request {
        assert!(self.may_tell(), "the caller looks for room first");
        self.telling = true;
        let flight = InFlight { kind: Kind::Tell, due: now + SILENCE_MAX, waiter: None };
        self.start(op, flight, 0)
    }

    fn start(&mut self, op: Op, flight: InFlight<T>, deadline_ms: u32) -> v1::Request {
        self.last_id += 1;
        let before = self.in_flight.insert(self.last_id, flight);
        assert!(before.is_none() && self.last_id < UNANSWERED, "ids are never used twice");
        v1::Request { id: self.last_id, deadline_ms, op: Some(op) }
    }

    /// Queues a Release or Abort.
    pub(crate) fn give_back(&mut self, op: Op) -> Result<(), Overrun> {
        if self.give_backs.len() >= GIVE_BACKS_MAX {
            return Err(Overrun);
        }
        self.give_backs.push_back(op);
        Ok(())
    }

    /// The next Release or Abort to send, if there is one.
    pub(crate) fn next_give_back(&mut self) -> Option<v1::Request> {
        let op = self.give_backs.pop_front()?;
        self.last_id += 1;
        Some(v1::Request { id: self.last_id | UNANSWERED, deadline_ms: 0, op: Some(op) })
    }

    /// The caller of request `id` waits no longer. False when the answer has been delivered already.
    pub(crate) fn abandon(&mut self, id: u64) -> bool {
        let waiter = self.in_flight.get_mut(&id).map(|request| request.waiter.take());
        waiter.flatten().is_some()
    }

    /// An answer came.
    ///
    /// # Errors
    /// When it answers nothing that is in flight, or with the wrong kind of answer; or, as the inner error, when the
    /// session has to end because too much waits to be given back.
    pub(crate) fn settle(
        &mut self,
        reply: v1::Reply,
        now: Instant,
    ) -> Result<Result<Settled<T>, Overrun>, Violation> {
        self.heard = now;
        let id = reply.id;
        let outcome = reply.result.ok_or(Violation::WrongAnswer)?;
        if id & UNANSWERED != 0 && matches!(outcome, Outcome::Done(_) | Outcome::Error(_)) {
            return Ok(Ok(Settled::Quiet));
        }
        let request = self.in_flight.remove(&id).ok_or(Violation::UnknownRequest { id })?;
        if !request.kind.is_answered_by(&outcome) {
            return Err(Violation::WrongAnswer);
        }
        if request.kind == Kind::Tell {
            self.telling = false;
            return Ok(Ok(Settled::Told(matches!(outcome, Outcome::Done(_)))));
        }
        match request.waiter {
            Some(waiter) => Ok(Ok(Settled::Deliver(waiter, outcome))),
            None => Ok(self.return_grant(outcome).map(|()| Settled::Quiet)),
        }
    }

    /// Gives back what an answer grants that nobody waits for any more.
    pub(crate) fn return_grant(&mut self, outcome: Outcome) -> Result<(), Overrun> {
        match outcome {
            Outcome::Acquired(late) if late.lease != 0 => {
                self.give_back(Op::Release(v1::Release { lease: late.lease, corrupt_keys: Vec::new() }))
            }
            Outcome::Reserved(late) if late.reservation != 0 => {
                self.give_back(Op::Abort(v1::Abort { reservation: late.reservation }))
            }
            _ => Ok(()),
        }
    }

    /// Whether an answer is overdue and the node has been silent for too long: it hangs.
    pub(crate) fn is_hung(&self, now: Instant) -> bool {
        let overdue = |request: &InFlight<T>| now.saturating_duration_since(request.due) >= SILENCE_MAX;
        now.saturating_duration_since(self.heard) >= SILENCE_MAX && self.in_flight.values().any(overdue)
    }

    /// Whether no answer is awaited.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }
}

impl Kind {
    fn of(op: &Op) -> Self {
        match op {
            Op::Match(_) => Self::Match,
            Op::Acquire(_) => Self::Acquire,
            Op::Reserve(_) => Self::Reserve,
            Op::Seal(_) => Self::Seal,
            Op::Hello(_) | Op::Release(_) | Op::Abort(_) | Op::Advertise(_) | Op::Withdraw(_) => Self::Tell,
        }
    }

    fn is_answered_by(self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Error(_) => true,
            Outcome::Welcome(_) => false,
            Outcome::Matched(_) => self == Self::Match,
            Outcome::Acquired(_) => self == Self::Acquire,
            Outcome::Reserved(_) => self == Self::Reserve,
            Outcome::Done(_) => matches!(self, Self::Seal | Self::Tell),
        }
    }
}

#[cfg(test)]
mod tests;
