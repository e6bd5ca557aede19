//! The session against a model of what is in flight: ids are unique, the window is kept, every grant is either
//! delivered or given back, and every answer that is none ends in a violation.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn acquire() -> Op {
    Op::Acquire(v1::Acquire::default())
}

fn leased(id: u64, lease: u64) -> v1::Reply {
    v1::Reply { id, result: Some(Outcome::Acquired(v1::Acquired { lease, ..v1::Acquired::default() })) }
}

fn done(id: u64) -> v1::Reply {
    v1::Reply { id, result: Some(Outcome::Done(v1::Done {})) }
}

fn settle<T>(session: &mut Session<T>, reply: v1::Reply, now: Instant) -> Settled<T> {
    session.settle(reply, now).expect("an honest answer").expect("room")
}

#[test]
fn a_late_lease_is_released_and_a_late_reservation_aborted() {
    let now = Instant::now();
    let mut session = Session::new(now);
    let soon = now + Duration::from_secs(1);
    let first = session.call(acquire(), 'a', now, soon).id;
    let second = session.call(Op::Reserve(v1::Reserve::default()), 'b', now, soon).id;
    assert!(session.abandon(first) && session.abandon(second));
    assert!(!session.abandon(first), "once");
    assert_eq!(settle(&mut session, leased(first, 7), now), Settled::Quiet);
    let reserved = v1::Reserved { reservation: 8, ..v1::Reserved::default() };
    let reply = v1::Reply { id: second, result: Some(Outcome::Reserved(reserved)) };
    assert_eq!(settle(&mut session, reply, now), Settled::Quiet);
    assert!(!session.has_room(), "what is given back goes first");
    let release = session.next_give_back().and_then(|request| request.op);
    assert!(matches!(release, Some(Op::Release(v1::Release { lease: 7, .. }))));
    let abort = session.next_give_back().and_then(|request| request.op);
    assert_eq!(abort, Some(Op::Abort(v1::Abort { reservation: 8 })));
    assert_eq!(session.next_give_back(), None);
    assert!(session.has_room());
}

#[test]
fn the_node_is_asked_to_answer_before_the_deadline() {
    let now = Instant::now();
    let mut session = Session::new(now);
    let mut asked = |left: Duration| session.call(acquire(), (), now, now + left).deadline_ms;
    assert_eq!(asked(Duration::from_millis(500)), 490);
    assert_eq!(asked(Duration::from_millis(4)), 2);
    assert_eq!(asked(Duration::from_micros(300)), 0);
    assert_eq!(asked(Duration::from_secs(1 << 40)), DEADLINE_MS_MAX);
}

#[test]
fn an_answer_that_is_none_is_a_violation() {
    let now = Instant::now();
    let soon = now + Duration::from_secs(1);
    let mut session = Session::new(now);
    assert!(matches!(session.settle(done(1), now), Err(Violation::UnknownRequest { id: 1 })));
    let id = session.call(acquire(), (), now, soon).id;
    assert!(matches!(session.settle(done(id), now), Err(Violation::WrongAnswer)));
    let id = session.call(acquire(), (), now, soon).id;
    assert!(matches!(session.settle(v1::Reply { id, result: None }, now), Err(Violation::WrongAnswer)));
    let id = session.call(acquire(), (), now, soon).id;
    let welcome = v1::Reply { id, result: Some(Outcome::Welcome(v1::Welcome::default())) };
    assert!(matches!(session.settle(welcome, now), Err(Violation::WrongAnswer)));
}

#[test]
fn calls_leave_room_for_what_is_given_back() {
    let now = Instant::now();
    let soon = now + Duration::from_secs(1);
    let mut session = Session::new(now);
    let mut ids = Vec::new();
    while session.has_room() {
        ids.push(session.call(acquire(), (), now, soon).id);
    }
    for id in &ids {
        assert!(session.abandon(*id), "abandoned calls stay in flight");
    }
    assert!(!session.has_room());
    session.give_back(Op::Abort(v1::Abort { reservation: 1 })).expect("room");
    let abort = session.next_give_back().expect("nothing keeps it back");
    // A node need not answer it, but may.
    assert_eq!(settle(&mut session, done(abort.id), now), Settled::Quiet);
    assert!(ids.len() < INFLIGHT_REQUESTS_MAX && !ids.contains(&abort.id));
}

#[test]
fn what_is_advertised_is_told_one_message_at_a_time() {
    let now = Instant::now();
    let mut session = Session::<()>::new(now);
    let first = session.tell(Op::Withdraw(v1::Withdraw::default()), now).id;
    assert!(!session.may_tell() && session.has_room());
    assert_eq!(settle(&mut session, done(first), now), Settled::Told(true));
    let second = session.tell(Op::Withdraw(v1::Withdraw::default()), now).id;
    let error = v1::Reply { id: second, result: Some(Outcome::Error(v1::Error::default())) };
    assert_eq!(settle(&mut session, error, now), Settled::Told(false));
    assert!(session.may_tell());
}

#[test]
fn more_than_can_be_held_ends_the_session() {
    let mut session = Session::<()>::new(Instant::now());
    for reservation in 0..GIVE_BACKS_MAX as u64 {
        session.give_back(Op::Abort(v1::Abort { reservation })).expect("room");
    }
    assert_eq!(session.give_back(Op::Abort(v1::Abort { reservation: 0 })), Err(Overrun));
}

#[test]
fn a_node_hangs_when_it_is_silent_and_late() {
    let now = Instant::now();
    let mut session = Session::new(now);
    assert!(!session.is_hung(now + 10 * SILENCE_MAX), "nothing was asked");
    let id = session.call(acquire(), (), now, now + Duration::from_secs(60)).id;
    assert!(!session.is_hung(now + SILENCE_MAX), "it has a minute");
    let late = now + Duration::from_secs(60) + SILENCE_MAX;
    assert!(session.is_hung(late));
    let other = session.call(acquire(), (), now, now + Duration::from_secs(60)).id;
    settle(&mut session, leased(other, 0), late);
    assert!(!session.is_hung(late), "it speaks");
    settle(&mut session, leased(id, 0), late);
    assert!(!session.is_hung(late + 10 * SILENCE_MAX) && session.is_idle());
}

#[derive(Clone, Debug)]
enum Step {
    Call,
    Abandon(usize),
    Answer(usize, bool),
    SendGiveBack,
    Tell,
    Drop(usize),
    Bogus(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Call),
        2 => any::<usize>().prop_map(Step::Abandon),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(at, grant)| Step::Answer(at, grant)),
        3 => Just(Step::SendGiveBack),
        1 => Just(Step::Tell),
        2 => any::<usize>().prop_map(Step::Drop),
        1 => (10_000u64..).prop_map(|id| Step::Bogus(id & !UNANSWERED)),
    ]
}

/// What the node and the callers know.
#[derive(Default)]
struct Model {
    /// Requests in flight: whether each is a call, and whether its caller still waits.
    in_flight: BTreeMap<u64, (bool, bool)>,
    next_lease: u64,
    /// Leases that the node has granted and not seen released.
    granted: BTreeSet<u64>,
    /// Leases that callers hold.
    held: Vec<u64>,
}

impl Model {
    fn sent(&mut self, request: &v1::Request) {
        if let Some(Op::Release(release)) = &request.op {
            assert!(self.granted.remove(&release.lease), "only what was granted is released, once");
            return;
        }
        let is_call = matches!(request.op, Some(Op::Acquire(_)));
        assert!(self.in_flight.insert(request.id, (is_call, is_call)).is_none(), "ids are unique");
        assert!(self.in_flight.len() <= INFLIGHT_REQUESTS_MAX);
    }

    fn nth(&self, at: usize) -> Option<u64> {
        self.in_flight.keys().nth(at % self.in_flight.len().max(1)).copied()
    }

    fn call(&mut self, session: &mut Session<u64>, now: Instant) {
        if session.has_room() {
            let id = session.last_id + 1;
            self.sent(&session.call(acquire(), id, now, now + Duration::from_secs(1)));
        }
    }

    fn answer(&mut self, session: &mut Session<u64>, (id, grant): (u64, bool), now: Instant) {
        let (is_call, waits) = self.in_flight.remove(&id).expect("chosen from it");
        if !is_call {
            assert_eq!(settle(session, done(id), now), Settled::Told(true));
            return;
        }
        self.next_lease += 1;
        let lease = if grant { self.next_lease } else { 0 };
        self.granted.extend(grant.then_some(lease));
        match settle(session, leased(id, lease), now) {
            Settled::Deliver(waiter, _) => {
                assert!(waits && waiter == id);
                self.held.extend(grant.then_some(lease));
            }
            other => assert!(!waits && other == Settled::Quiet),
        }
    }

    fn abandon(&mut self, session: &mut Session<u64>, id: u64) {
        let waits = &mut self.in_flight.get_mut(&id).expect("chosen from it").1;
        assert_eq!(session.abandon(id), std::mem::take(waits));
    }

    fn drop_lease(&mut self, session: &mut Session<u64>, at: usize) {
        if !self.held.is_empty() {
            let lease = self.held.swap_remove(at % self.held.len());
            session.give_back(Op::Release(v1::Release { lease, ..Default::default() })).expect("room");
        }
    }

    /// Everything is answered and dropped.
    fn finish(&mut self, session: &mut Session<u64>, now: Instant) {
        while let Some(id) = self.nth(0) {
            self.answer(session, (id, false), now);
        }
        while !self.held.is_empty() {
            self.drop_lease(session, 0);
        }
        while let Some(request) = session.next_give_back() {
            self.sent(&request);
        }
    }
}

proptest! {
    #[test]
    fn every_grant_is_held_or_given_back(steps in prop::collection::vec(step(), 0..400)) {
        let now = Instant::now();
        let mut session = Session::<u64>::new(now);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Call => model.call(&mut session, now),
                Step::Abandon(at) => {
                    if let Some(id) = model.nth(at) {
                        model.abandon(&mut session, id);
                    }
                }
                Step::Answer(at, grant) => {
                    if let Some(id) = model.nth(at) {
                        model.answer(&mut session, (id, grant), now);
                    }
                }
                Step::SendGiveBack => {
                    if let Some(request) = session.next_give_back() {
                        model.sent(&request);
                    }
                }
                Step::Tell => {
                    if session.may_tell() {
                        model.sent(&session.tell(Op::Withdraw(v1::Withdraw::default()), now));
                    }
                }
                Step::Drop(at) => model.drop_lease(&mut session, at),
                Step::Bogus(id) => {
                    let unknown = matches!(session.settle(done(id), now), Err(Violation::UnknownRequest { .. }));
                    prop_assert!(unknown);
                }
            }
        }
        model.finish(&mut session, now);
        prop_assert!(model.granted.is_empty() && session.is_idle() && session.may_tell());
    }
}
