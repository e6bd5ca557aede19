//! Why an endpoint was picked, as one row.

use std::fmt;

use super::{Cost, PromptView};

/// Why a prompt was not looked up in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignorance {
    /// No tokenizer for the model was given to this router.
    NoTokenizer,
    /// The store's feed is not connected, or has not told all yet.
    NoFeed,
    /// The request did not turn into tokens; the engine will say why.
    NotTokenized,
}

/// One row: the picked endpoint's cost and what it was weighed against.
#[derive(Clone, Debug)]
pub struct Explain {
    /// Tokens of the prompt, known or estimated.
    pub prompt_tokens: u64,
    /// What the request costs there.
    pub cost: Cost,
    /// Requests in flight there.
    pub requests: u64,
    /// Endpoints that could have been picked.
    pub candidates: usize,
    /// Why the prompt was not looked up, if it was not.
    pub ignorance: Option<Ignorance>,
}

impl Ignorance {
    /// A word for headers and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoTokenizer => "no-tokenizer",
            Self::NoFeed => "no-feed",
            Self::NotTokenized => "not-tokenized",
        }
    }
}

impl Explain {
    pub(super) fn new(prompt: &PromptView, cost: Cost, requests: u64, candidates: usize) -> Self {
        let ignorance = match prompt {
            PromptView::Matched { .. } => None,
            PromptView::Unmatched { why, .. } => Some(*why),
        };
        Self { prompt_tokens: prompt.tokens(), cost, requests, candidates, ignorance }
    }
}

/// As the header `x-hearth-decision` has it. `match` counts all tokens of the prompt that need not be computed,
/// `store` those of them that are loaded, `load` what was queued there, in tokens to compute.
impl fmt::Display for Explain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { engine, pinned, nvme, queued, .. } = self.cost;
        match self.ignorance {
            Some(why) => write!(f, "match=unknown({})", why.label())?,
            None => {
                let store = pinned + nvme;
                write!(f, "match={}/{} engine={engine} store={store}", engine + store, self.prompt_tokens)?;
            }
        }
        write!(f, " load={queued} requests={} candidates={}", self.requests, self.candidates)
    }
}
