//! One session with one node as a state machine: no socket, no clock, no lock.
//!
//! It numbers requests, matches answers to them, and keeps the node's window. A request whose caller has gone stays
//! in flight until it is answered; what a late answer grants is given back. Leases and reservations to be given back
//! go before anything new.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use hearth_proto::limit::{DEADLINE_MS_MAX, INFLIGHT_REQUESTS_MAX};
use hearth_proto::v1;

use crate::backend::{Op, Outcome};
use crate::error::Violation;
use crate::hello::HELLO_ID;
use crate::store::GRANTS_HELD_MAX;

/// Calls in flight; the rest of the node's window is kept for what is given back, so that calls which the node does
/// not answer cannot keep leases from being released.
const CALLS_INFLIGHT_MAX: usize = INFLIGHT_REQUESTS_MAX * 3 / 4;

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
    calls: usize,
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
    /// Answered with Done, which interests nobody.
    Message,
}

/// What an answer was to.
#[derive(Debug, PartialEq)]
pub(crate) enum Settled<T> {
    /// A call whose caller waits.
    Deliver(T, Outcome),
    /// A message, or a call whose caller has gone.
    Quiet,
}

/// There is more to give back than a client can hold: end the session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

impl<T> Session<T> {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last_id: HELLO_ID,
            in_flight: HashMap::new(),
            calls: 0,
            give_backs: VecDeque::new(),
            heard: now,
        }
    }

    /// Whether a call may be sent now.
    pub(crate) fn has_room(&self) -> bool {
        self.calls < CALLS_INFLIGHT_MAX && self.window_open() && self.give_backs.is_empty()
    }

    fn window_open(&self) -> bool {
        self.in_flight.len() < INFLIGHT_REQUESTS_MAX
    }

    /// A call to send, on which `waiter` waits until `deadline`. The caller has seen that there is room.
    pub(crate) fn call(&mut self, op: Op, waiter: T, now: Instant, deadline: Instant) -> v1::Request {
        assert!(self.has_room(), "the caller looks for room first");
        self.calls += 1;
        let left = deadline.saturating_duration_since(now);
        let answer_in = left.saturating_sub(ANSWER_MARGIN.min(left / 2)).as_millis();
        let deadline_ms = u32::try_from(answer_in).unwrap_or(u32::MAX).min(DEADLINE_MS_MAX);
        self.start(op, Some(waiter), deadline, deadline_ms)
    }

    /// A message to send that grants nothing and takes nothing back; `Err` hands it back when there is no room now.
    #[expect(clippy::result_large_err, reason = "the message is handed back whole")]
    pub(crate) fn tell(&mut self, op: Op, now: Instant) -> Result<v1::Request, Op> {
        if !self.window_open() || !self.give_backs.is_empty() {
            return Err(op);
        }
        Ok(self.start(op, None, now + SILENCE_MAX, 0))
    }

    /// Queues a Release or Abort.
    pub(crate) fn give_back(&mut self, op: Op) -> Result<(), Overrun> {
        if self.give_backs.len() >= GIVE_BACKS_MAX {
            return Err(Overrun);
        }
        self.give_backs.push_back(op);
        Ok(())
    }

    /// The next Release or Abort to send, if there is one and room for it.
    pub(crate) fn next_give_back(&mut self, now: Instant) -> Option<v1::Request> {
        if !self.window_open() {
            return None;
        }
        let op = self.give_backs.pop_front()?;
        Some(self.start(op, None, now + SILENCE_MAX, 0))
    }

    fn start(&mut self, op: Op, waiter: Option<T>, due: Instant, deadline_ms: u32) -> v1::Request {
        let kind = Kind::of(&op);
        self.last_id += 1;
        let before = self.in_flight.insert(self.last_id, InFlight { kind, due, waiter });
        assert!(before.is_none() && self.in_flight.len() <= INFLIGHT_REQUESTS_MAX, "ids and window are kept");
        v1::Request { id: self.last_id, deadline_ms, op: Some(op) }
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
        let request = self.in_flight.remove(&id).ok_or(Violation::UnknownRequest { id })?;
        if request.kind != Kind::Message {
            self.calls -= 1;
        }
        let outcome = reply.result.ok_or(Violation::WrongAnswer)?;
        if !request.kind.is_answered_by(&outcome) {
            return Err(Violation::WrongAnswer);
        }
        if let Some(waiter) = request.waiter {
            return Ok(Ok(Settled::Deliver(waiter, outcome)));
        }
        if let (Kind::Message, Outcome::Error(error)) = (request.kind, &outcome) {
            tracing::debug!(code = error.code, message = error.message, "the node refused a message");
        }
        Ok(self.return_grant(outcome).map(|()| Settled::Quiet))
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

    /// Whether nothing is in flight.
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
            Op::Hello(_) | Op::Release(_) | Op::Abort(_) | Op::Advertise(_) | Op::Withdraw(_) => {
                Self::Message
            }
        }
    }

    fn is_answered_by(self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Error(_) => true,
            Outcome::Welcome(_) => false,
            Outcome::Matched(_) => self == Self::Match,
            Outcome::Acquired(_) => self == Self::Acquire,
            Outcome::Reserved(_) => self == Self::Reserve,
            Outcome::Done(_) => matches!(self, Self::Seal | Self::Message),
        }
    }
}

#[cfg(test)]
mod tests;
