//! Which endpoint a request goes to.
//!
//! [`decide`] is a pure function of what is asked and of snapshots of everything else: filter, score, pick. The score
//! is the time to the first token as predicted, in units of one token to compute: what is queued on the endpoint, the
//! tokens of the prompt that nobody has, and those that the store has at the price of loading them. The lowest wins.

mod explain;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

pub use self::explain::{Explain, Ignorance};
use crate::fleet::{EndpointId, EndpointStatus, State, authority_of};
use crate::index::Match;
use crate::load::Load;

/// What a request needs of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The model asked for.
    pub model: &'a str,
    /// What is known about the prompt.
    pub prompt: &'a PromptView,
    /// Endpoints that the caller restricts the choice to.
    pub subset: Option<&'a Subset>,
    /// Endpoints that have failed this request.
    pub tried: &'a [EndpointId],
}

/// A prompt, as far as it matters for the decision.
#[derive(Clone, Debug)]
pub enum PromptView {
    /// Its tokens are known, and so is who holds them.
    Matched {
        /// Tokens of the prompt.
        tokens: u64,
        /// One for each identity under which the prompt's blocks may be stored; none when none is registered.
        chains: Vec<Chain>,
    },
    /// Only its size is known, roughly.
    Unmatched {
        /// Tokens of the prompt, estimated.
        tokens: u64,
        /// Why it was not looked up.
        why: Ignorance,
    },
}

/// Who holds a prompt's blocks, under one identity.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Tokens of one block.
    pub block_tokens: u64,
    /// Blocks of each engine, by its authority.
    engines: BTreeMap<String, u64>,
    found: Match,
}

/// What an endpoint is, right now.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The endpoint.
    pub endpoint: &'a EndpointStatus,
    /// How busy it is.
    pub load: Load,
}

/// What a token costs that need not be computed, relative to one that must.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// Of a token loaded from the store's pinned memory, in thousandths.
    pub pinned_permille: u64,
    /// Of a token loaded from the store's NVMe, in thousandths.
    pub nvme_permille: u64,
    /// Of a request that is being decoded, in tokens: it slows down every step of what comes beside it.
    pub request_tokens: u64,
}

impl Default for Weights {
    /// A model of 32 billion parameters has 256 KiB of KV per token and computes a token in 65 µs. Reading that at
    /// 25 GB/s takes 10 µs, at 5 GB/s 52 µs; larger caches per token cost more, larger models less.
    fn default() -> Self {
        Self { pinned_permille: 160, nvme_permille: 800, request_tokens: 64 }
    }
}

/// What a request costs on one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Tokens to compute.
    pub computed: u64,
    /// Tokens that the engine holds in its own pages.
    pub engine: u64,
    /// Tokens to load from the store's pinned memory.
    pub pinned: u64,
    /// Tokens to load from the store's NVMe.
    pub nvme: u64,
    /// What is queued before it, in tokens to compute.
    pub queued: u64,
}

/// An endpoint, and why.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Work that the request brings, in tokens to compute.
    pub work_tokens: u64,
    /// Why this one.
    pub explain: Explain,
}

/// No endpoint can take the request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nobody serves the model, up or down.
    #[error("the model `{model}` is not served here; served: {}", served.join(", "))]
    UnknownModel {
        /// The model asked for.
        model: String,
        /// Those that are served.
        served: Vec<String>,
    },
    /// Some serve it, and none may be picked now.
    #[error(
        "no engine can take this request now: of {known}, {down} down, {draining} draining, {elsewhere} with other \
         models, {excluded} outside of the subset asked for, {failed} failed it; try again shortly"
    )]
    NoEndpoint {
        /// Endpoints there are.
        known: usize,
        /// Of them, not reachable.
        down: usize,
        /// Of them, finishing what they have.
        draining: usize,
        /// Of them, serving other models.
        elsewhere: usize,
        /// Of them, not in the subset.
        excluded: usize,
        /// Of them, tried and failed.
        failed: usize,
    },
}

/// Picks the endpoint that is predicted to answer first.
///
/// Among equals it takes the one with fewer requests, then the one that was not picked for longest.
///
/// # Errors
/// When no endpoint passes the filters.
pub fn decide(ask: &Ask<'_>, candidates: &[Candidate<'_>], weights: &Weights) -> Result<Decision, Refusal> {
    let able: Vec<_> = candidates.iter().filter(|candidate| obstacle(ask, candidate).is_none()).collect();
    let scored = able.iter().map(|candidate| (*candidate, cost(ask.prompt, candidate, weights)));
    let best = scored.min_by_key(|(candidate, cost)| {
        (
            cost.total_millitokens(weights),
            candidate.load.requests,
            candidate.load.picked,
            candidate.endpoint.id,
        )
    });
    let Some((candidate, cost)) = best else { return Err(refusal(ask, candidates)) };
    Ok(Decision {
        endpoint: candidate.endpoint.id,
        work_tokens: cost.work_millitokens(weights).div_ceil(1000),
        explain: Explain::new(ask.prompt, cost, candidate.load.requests, able.len()),
    })
}

/// Why an endpoint cannot be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    Failed,
    Excluded,
    Down,
    Draining,
    OtherModels,
}

fn obstacle(ask: &Ask<'_>, candidate: &Candidate<'_>) -> Option<Obstacle> {
    let endpoint = candidate.endpoint;
    if ask.tried.contains(&endpoint.id) {
        return Some(Obstacle::Failed);
    }
    if ask.subset.is_some_and(|subset| !subset.contains(&endpoint.authority)) {
        return Some(Obstacle::Excluded);
    }
    match endpoint.state {
        State::Down => Some(Obstacle::Down),
        State::Draining => Some(Obstacle::Draining),
        State::Up if !endpoint.serves(ask.model) => Some(Obstacle::OtherModels),
        State::Up => None,
    }
}

/// What the request costs on this endpoint: the cheapest of its chains.
fn cost(prompt: &PromptView, candidate: &Candidate<'_>, weights: &Weights) -> Cost {
    let load = candidate.load;
    let queued = load.queued_tokens + load.requests * weights.request_tokens;
    let tokens = prompt.tokens();
    let unmatched = Cost { computed: tokens.max(1), queued, ..Cost::default() };
    let on_chain = |chain: &Chain| {
        let held = chain.engines.get(&*candidate.endpoint.authority).copied().unwrap_or(0);
        let loadable = chain.found.loadable_after(usize::try_from(held).expect("came from a usize"));
        let mut left = tokens / chain.block_tokens;
        let mut take = |blocks: u64| {
            let taken = blocks.min(left);
            left -= taken;
            taken * chain.block_tokens
        };
        let engine = take(held);
        let pinned = take(loadable.pinned as u64);
        let nvme = take(loadable.nvme as u64);
        let computed = tokens - engine - pinned - nvme;
        // The logits of the last token are needed even when all its KV is there.
        Cost { computed: computed.max(1), engine, pinned, nvme, queued }
    };
    let chains = prompt.chains().iter().map(on_chain);
    chains.min_by_key(|cost| cost.total_millitokens(weights)).unwrap_or(unmatched)
}

fn refusal(ask: &Ask<'_>, candidates: &[Candidate<'_>]) -> Refusal {
    let served: std::collections::BTreeSet<&str> =
        candidates.iter().flat_map(|candidate| candidate.endpoint.models()).collect();
    if !served.is_empty() && !served.contains(ask.model) {
        let served = served.into_iter().map(str::to_owned).collect();
        return Refusal::UnknownModel { model: ask.model.to_owned(), served };
    }
    let count = |what| candidates.iter().filter(|candidate| obstacle(ask, candidate) == Some(what)).count();
    Refusal::NoEndpoint {
        known: candidates.len(),
        down: count(Obstacle::Down),
        draining: count(Obstacle::Draining),
        elsewhere: count(Obstacle::OtherModels),
        excluded: count(Obstacle::Excluded),
        failed: count(Obstacle::Failed),
    }
}

impl Cost {
    /// Work that the request brings, in thousandths of a token to compute.
    fn work_millitokens(&self, weights: &Weights) -> u64 {
        self.computed * 1000 + self.pinned * weights.pinned_permille + self.nvme * weights.nvme_permille
    }

    /// The predicted time to the first token, in thousandths of a token to compute.
    fn total_millitokens(&self, weights: &Weights) -> u64 {
        self.work_millitokens(weights).saturating_add(self.queued.saturating_mul(1000))
    }
}

impl PromptView {
    /// Tokens of the prompt, known or estimated.
    pub fn tokens(&self) -> u64 {
        match self {
            Self::Matched { tokens, .. } | Self::Unmatched { tokens, .. } => *tokens,
        }
    }

    fn chains(&self) -> &[Chain] {
        match self {
            Self::Matched { chains, .. } => chains,
            Self::Unmatched { .. } => &[],
        }
    }
}

impl Chain {
    /// From what the index found for a chain of blocks of `block_tokens` tokens, which is at least 1.
    pub fn new(block_tokens: u64, found: Match) -> Self {
        let mut engines: BTreeMap<String, u64> = BTreeMap::new();
        for held in &found.engines {
            let blocks = engines.entry(authority_of(&held.holder)).or_default();
            *blocks = (*blocks).max(held.blocks as u64);
        }
        Self { block_tokens, engines, found }
    }
}

/// Endpoints that a request may go to, by authority or by host alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset(Arc<[String]>);

impl Subset {
    /// From the value of the header: a list of `host:port` or `host`, separated by commas. `None` when it names none,
    /// which is no restriction.
    pub fn parse(value: &str) -> Option<Self> {
        let names: Vec<String> =
            value.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|n| !n.is_empty()).collect();
        (!names.is_empty()).then(|| Self(names.into()))
    }

    fn contains(&self, authority: &str) -> bool {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        self.0.iter().any(|name| name == authority || name == host)
    }
}
