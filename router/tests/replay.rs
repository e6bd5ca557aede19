//! Replays a trace against the index and the decision, without sockets or clocks.
//!
//! Documents are asked about again and again by many users. Each engine keeps what it computed, the store keeps
//! everything, and both tell the index. The replay counts what each engine computes and how the work is spread; the
//! same trace by round-robin is the yardstick.

use hearth_proto::key::{BlockKey, pack};
use hearth_proto::v1::feed_message::Body;
use hearth_proto::v1::{FeedMessage, SnapshotBegin, SnapshotEnd, Stored, Tier};
use hearth_router::decide::{Ask, Candidate, Chain, PromptView, Weights, decide};
use hearth_router::fleet::{EndpointId, EndpointStatus, Models, State};
use hearth_router::index::Index;
use hearth_router::load::Load;

const ENGINES: usize = 8;
const BLOCK_TOKENS: u64 = 16;
/// Requests that are in flight at a time.
const WINDOW: usize = 24;

struct Request {
    keys: Vec<BlockKey>,
    tokens: u64,
}

/// 60 documents of 100 to 300 blocks, asked 15 times each in a shuffled order, with a question of 10 tokens.
fn trace() -> Vec<Request> {
    let mut order: Vec<u64> = (0..900).map(|n| n % 60).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for i in (1..order.len()).rev() {
        let j = usize::try_from(random() % (i as u64 + 1)).expect("small");
        order.swap(i, j);
    }
    let request = |document: u64| {
        let blocks = 100 + document * 37 % 200;
        let keys = (0..blocks).map(|block| {
            let mut bytes = [0; 32];
            let mixed = (document * 1000 + block + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bytes[..8].copy_from_slice(&mixed.to_le_bytes());
            BlockKey(bytes)
        });
        Request { keys: keys.collect(), tokens: blocks * BLOCK_TOKENS + 10 }
    };
    order.into_iter().map(request).collect()
}

fn endpoints() -> Vec<EndpointStatus> {
    let endpoint = |n: usize| EndpointStatus {
        id: EndpointId::new(n),
        authority: format!("engine-{n}:80").into(),
        state: State::Up,
        models: Models::named(["m"]),
    };
    (0..ENGINES).map(endpoint).collect()
}

/// What was learnt from one replay.
struct Outcome {
    computed: u64,
    loaded: u64,
    per_engine: Vec<u64>,
}

struct Replay {
    index: Index,
    seq: u64,
    loads: Vec<Load>,
    store: bool,
}

impl Replay {
    fn new(store: bool) -> Self {
        let mut index = Index::default();
        for body in
            [Body::SnapshotBegin(SnapshotBegin { shards: 1 }), Body::SnapshotEnd(SnapshotEnd { seq: 0 })]
        {
            index.apply(FeedMessage { incarnation: 1, shard: 0, seq: 0, body: Some(body) }).expect("legal");
        }
        Self { index, seq: 0, loads: vec![Load::default(); ENGINES], store }
    }

    fn tell(&mut self, tier: Tier, holder: &str, keys: &[BlockKey]) {
        self.seq += 1;
        let stored = Stored {
            tier: tier.into(),
            holder: holder.into(),
            parent: Vec::new(),
            depth: 0,
            keys: pack(keys),
        };
        let message =
            FeedMessage { incarnation: 1, shard: 0, seq: self.seq, body: Some(Body::Stored(stored)) };
        self.index.apply(message).expect("legal");
    }

    /// Sends every request where `choose` says, given the decision that the router would make.
    fn run(mut self, choose: impl Fn(usize, usize) -> usize) -> Outcome {
        let endpoints = endpoints();
        let mut outcome = Outcome { computed: 0, loaded: 0, per_engine: vec![0; ENGINES] };
        let mut flying: std::collections::VecDeque<(usize, u64)> = std::collections::VecDeque::new();
        for (n, request) in trace().iter().enumerate() {
            let chains = vec![Chain::new(BLOCK_TOKENS, self.index.matches(&request.keys))];
            let prompt = PromptView::Matched { tokens: request.tokens, chains };
            let cost_at = |replay: &Self, only: Option<usize>| {
                let candidates: Vec<Candidate<'_>> = endpoints
                    .iter()
                    .zip(&replay.loads)
                    .filter(|(endpoint, _)| only.is_none_or(|only| endpoint.id.index() == only))
                    .map(|(endpoint, &load)| Candidate { endpoint, load })
                    .collect();
                let ask = Ask { model: "m", prompt: &prompt, subset: None, tried: &[] };
                decide(&ask, &candidates, &Weights::default()).expect("all are up")
            };
            let at = choose(n, cost_at(&self, None).endpoint.index());
            let decision = cost_at(&self, Some(at));
            let load = &mut self.loads[at];
            load.requests += 1;
            load.queued_tokens += decision.work_tokens;
            load.picked = n as u64 + 1;
            flying.push_back((at, decision.work_tokens));
            if flying.len() > WINDOW {
                let (done, tokens) = flying.pop_front().expect("not empty");
                self.loads[done].requests -= 1;
                self.loads[done].queued_tokens -= tokens;
            }
            outcome.computed += decision.explain.cost.computed;
            outcome.loaded += decision.explain.cost.pinned;
            outcome.per_engine[at] += decision.work_tokens;
            let holder = format!("http://engine-{at}:80");
            self.tell(Tier::Engine, &holder, &request.keys);
            if self.store {
                self.tell(Tier::Pinned, "", &request.keys);
            }
        }
        outcome
    }
}

/// Tokens that somebody has to compute: each document once, each question every time.
fn unavoidable() -> u64 {
    let mut seen = std::collections::BTreeSet::new();
    trace().iter().map(|r| if seen.insert(r.keys[0]) { r.tokens } else { 10 }).sum()
}

#[test]
fn following_the_index_computes_little_and_spreads_the_work() {
    let ours = Replay::new(false).run(|_, decided| decided);
    let by_turns = Replay::new(false).run(|n, _| n % ENGINES);
    assert!(ours.computed * 3 < by_turns.computed, "{} against {}", ours.computed, by_turns.computed);
    // Where an engine's queue is longer than a document, computing the document again elsewhere is the faster way.
    assert!(ours.computed < unavoidable() * 2, "{} of {}", ours.computed, unavoidable());
    let (least, most) = (ours.per_engine.iter().min().expect("8"), ours.per_engine.iter().max().expect("8"));
    assert!(most < &(least * 2), "{:?}", ours.per_engine);
}

#[test]
fn with_a_store_nothing_is_computed_twice_and_little_is_loaded() {
    let ours = Replay::new(true).run(|_, decided| decided);
    let by_turns = Replay::new(true).run(|n, _| n % ENGINES);
    assert_eq!(ours.computed, unavoidable());
    assert_eq!(by_turns.computed, unavoidable());
    assert!(ours.loaded * 2 < by_turns.loaded, "{} against {}", ours.loaded, by_turns.loaded);
}
