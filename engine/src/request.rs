//! The seam between the HTTP face and the step loop: what is asked, what comes back.
//!
//! The face owns an [`EngineHandle`], submits [`GenRequest`]s and reads [`GenEvent`]s from the
//! [`GenStream`] it gets back. The step loop owns the other ends. Nothing here waits: a full engine
//! is an answer ([`EngineError::QueueFull`]), and a stream holds every event its request can produce,
//! so a slow client never holds up a step.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Names a request within one engine process, in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// One generation to run. Build it from a validated request: values are used as they are.
#[derive(Debug, Clone)]
pub struct GenRequest {
    /// From [`EngineHandle::new_id`].
    pub id: RequestId,
    /// The whole prompt, special tokens included. At least one token.
    pub tokens: Vec<u32>,
    /// How many tokens to generate at most. At least one.
    pub new_tokens_max: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Tokens that end the generation, such as the end-of-sequence token.
    /// The one that ended it is not sent as an event, but is counted as a completion token.
    pub stop_tokens: Vec<u32>,
    /// Separates this request's KV blocks from those of requests with another salt.
    pub salt: Option<String>,
}

/// How the next token is chosen from the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 picks the most likely token always (greedy).
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the most likely tokens; `None` keeps all.
    pub top_k: Option<usize>,
    /// Drop tokens less likely than this share of the most likely one, in [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Equal seeds, prompts and settings give equal tokens. `None` takes a seed from the request id.
    pub seed: Option<u64>,
    /// Subtracted once from the logit of every token generated so far, in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted once per occurrence from the logit of every token generated so far, in [-2, 2].
    pub frequency_penalty: f32,
}

impl Sampling {
    /// The most likely token, always.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        }
    }
}

/// What happens to a request, in order: the prompt, tokens, then exactly one of the last two.
#[derive(Debug)]
pub enum GenEvent {
    /// The KV of the whole prompt is there and the first token follows.
    Prompt {
        /// What the prompt took; no completion tokens yet.
        usage: GenUsage,
    },
    /// The next token of the completion.
    Token {
        /// Its id in the model's vocabulary.
        id: u32,
    },
    /// The generation ended. Last event.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        usage: GenUsage,
    },
    /// The generation could not go on. Last event.
    Failed(EngineError),
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was generated.
    Stop,
    /// `new_tokens_max` or the model's context length was reached.
    Length,
    /// The engine shut down, or the stream was dropped.
    Cancelled,
}

/// Tokens of one request by where their KV came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GenUsage {
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, a stop token included.
    pub completion_tokens: usize,
    /// Prompt tokens whose KV this request computed.
    pub computed_tokens: usize,
    /// Prompt tokens whose KV was found, by tier.
    pub loaded: LoadedTokens,
}

/// Prompt tokens whose KV was found instead of computed, by tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadedTokens {
    /// In this engine's own pages.
    pub engine: usize,
    /// In the store's pinned memory.
    pub pinned: usize,
    /// On the store's NVMe.
    pub nvme: usize,
}

impl LoadedTokens {
    /// Over all tiers.
    pub fn total(&self) -> usize {
        self.engine + self.pinned + self.nvme
    }
}

/// Why a request was refused or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// As many requests as the engine takes are already waiting or running. Retry later or elsewhere.
    #[error("the engine already holds {requests_max} requests; retry later or on another engine")]
    QueueFull {
        /// The limit.
        requests_max: usize,
    },
    /// Prompt and completion together exceed the model's context. Shorten one of them.
    #[error(
        "{prompt_tokens} prompt tokens and {new_tokens_max} new tokens exceed the context of \
         {context_tokens_max} tokens; shorten the prompt or ask for fewer tokens"
    )]
    ContextLength {
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// Tokens asked for.
        new_tokens_max: usize,
        /// Tokens the model takes, prompt and completion together.
        context_tokens_max: usize,
    },
    /// The request needs more KV memory than the engine has. Shorten it or give the engine more.
    #[error(
        "the request can need {pages} KV pages and the engine has {pages_max}; shorten the request or \
         start the engine with a larger --kv-bytes"
    )]
    KvTooSmall {
        /// Pages the request needs at its longest.
        pages: usize,
        /// Pages the engine has.
        pages_max: usize,
    },
    /// The prompt has no token, or no token was asked for.
    #[error("a request needs at least one prompt token and at least one new token")]
    Empty,
    /// A prompt token is not in the model's vocabulary: tokenizer and model disagree.
    #[error("token {token} is not in the model's vocabulary of {vocab}; use the model's own tokenizer")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The engine is shutting down or its step loop is gone. Go to another engine.
    #[error("the engine is shutting down; send the request to another one")]
    ShuttingDown,
    /// The model failed to compute. Our bug, or broken weights.
    #[error("the model failed to compute")]
    Compute(#[source] Arc<crate::model::ModelError>),
}

/// What an engine takes, fixed at start.
#[derive(Debug, Clone, Copy)]
pub struct EngineLimits {
    /// Tokens of prompt and completion together.
    pub context_tokens_max: usize,
    /// Requests waiting and running together.
    pub requests_max: usize,
    /// KV pages of the engine.
    pub pages_max: usize,
    /// Tokens in a KV page.
    pub page_tokens: usize,
    /// Size of the model's vocabulary.
    pub vocab: usize,
}

impl EngineLimits {
    fn check(&self, request: &GenRequest) -> Result<(), EngineError> {
        let (prompt_tokens, new_tokens_max) = (request.tokens.len(), request.new_tokens_max);
        if prompt_tokens == 0 || new_tokens_max == 0 {
            return Err(EngineError::Empty);
        }
        let tokens = prompt_tokens.saturating_add(new_tokens_max);
        if tokens > self.context_tokens_max {
            return Err(EngineError::ContextLength {
                prompt_tokens,
                new_tokens_max,
                context_tokens_max: self.context_tokens_max,
            });
        }
        if let Some(&token) = request.tokens.iter().find(|&&t| t as usize >= self.vocab) {
            return Err(EngineError::UnknownToken { token, vocab: self.vocab });
        }
        let pages = tokens.div_ceil(self.page_tokens);
        if pages > self.pages_max {
            return Err(EngineError::KvTooSmall { pages, pages_max: self.pages_max });
        }
        Ok(())
    }
}

/// [`GenEvent::Prompt`] and the last event.
const EVENTS_BESIDE_TOKENS: usize = 2;

/// A request on its way to the step loop, with the ends the loop keeps.
#[derive(Debug)]
pub struct Submission {
    /// What to generate.
    pub request: GenRequest,
    /// Where its events go. Holds as many events as the request can produce, so sending never waits.
    pub events: mpsc::Sender<GenEvent>,
    /// The request's place in the engine; given back when dropped.
    pub place: OwnedSemaphorePermit,
}

/// What reaches the step loop from outside.
pub(crate) trait Inbox: Send + Sync {
    /// Hands over without waiting. `false` when the loop is gone or its inbox is full.
    fn submit(&self, submission: Submission) -> bool;
}

impl<T: From<Submission> + Send> Inbox for SyncSender<T> {
    fn submit(&self, submission: Submission) -> bool {
        match self.try_send(T::from(submission)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

/// Submits requests to a running engine. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    inbox: Arc<dyn Inbox>,
    places: Arc<Semaphore>,
    limits: EngineLimits,
    next_id: Arc<AtomicU64>,
}

impl EngineHandle {
    pub(crate) fn new(limits: EngineLimits, inbox: Arc<dyn Inbox>) -> Self {
        let places = Arc::new(Semaphore::new(limits.requests_max));
        Self { inbox, places, limits, next_id: Arc::new(AtomicU64::new(1)) }
    }

    /// A handle with nobody behind it, for tests of callers: they answer the [`Submission`]s themselves.
    pub fn detached(limits: EngineLimits) -> (Self, std::sync::mpsc::Receiver<Submission>) {
        let (sender, receiver) = std::sync::mpsc::sync_channel(limits.requests_max);
        (Self::new(limits, Arc::new(sender)), receiver)
    }

    /// An id no other request of this engine has.
    pub fn new_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// What this engine takes.
    pub fn limits(&self) -> &EngineLimits {
        &self.limits
    }

    /// Requests waiting and running now.
    pub fn requests_in_flight(&self) -> usize {
        self.limits.requests_max - self.places.available_permits()
    }

    /// Hands a request to the step loop. Never waits.
    ///
    /// # Errors
    /// [`EngineError::QueueFull`] and [`EngineError::ShuttingDown`] say that another engine may take
    /// it; the others say what is wrong with the request.
    pub fn submit(&self, request: GenRequest) -> Result<GenStream, EngineError> {
        self.limits.check(&request)?;
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| EngineError::QueueFull { requests_max: self.limits.requests_max })?;
        let id = request.id;
        let (events, receiver) = mpsc::channel(request.new_tokens_max + EVENTS_BESIDE_TOKENS);
        if self.inbox.submit(Submission { request, events, place }) {
            Ok(GenStream { id, events: receiver })
        } else {
            Err(EngineError::ShuttingDown)
        }
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The events of one request. Dropping it cancels the request and frees its pages.
#[derive(Debug)]
pub struct GenStream {
    id: RequestId,
    events: mpsc::Receiver<GenEvent>,
}

impl GenStream {
    /// The request this stream belongs to.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after the last, and when the engine died. Cancel-safe.
    pub async fn next(&mut self) -> Option<GenEvent> {
        self.events.recv().await
    }

    /// As [`Self::next`], blocking the thread. Not to be called from async code.
    pub fn blocking_next(&mut self) -> Option<GenEvent> {
        self.events.blocking_recv()
    }
}

impl futures_util::Stream for GenStream {
    type Item = GenEvent;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<GenEvent>> {
        self.events.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> EngineLimits {
        EngineLimits { context_tokens_max: 64, requests_max: 2, pages_max: 3, page_tokens: 16, vocab: 100 }
    }

    fn request(handle: &EngineHandle, tokens: Vec<u32>, new_tokens_max: usize) -> GenRequest {
        GenRequest {
            id: handle.new_id(),
            tokens,
            new_tokens_max,
            sampling: Sampling::greedy(),
            stop_tokens: vec![],
            salt: None,
        }
    }

    #[test]
    fn refuses_what_can_never_run() {
        let (handle, _inbox) = EngineHandle::detached(limits());
        let submit = |tokens, new| handle.submit(request(&handle, tokens, new)).unwrap_err();
        assert!(matches!(submit(vec![], 1), EngineError::Empty));
        assert!(matches!(submit(vec![1], 0), EngineError::Empty));
        assert!(matches!(submit(vec![1; 60], 5), EngineError::ContextLength { .. }));
        assert!(matches!(submit(vec![1], usize::MAX), EngineError::ContextLength { .. }));
        assert!(matches!(submit(vec![1; 40], 20), EngineError::KvTooSmall { pages: 4, pages_max: 3 }));
        assert!(matches!(submit(vec![100], 1), EngineError::UnknownToken { token: 100, vocab: 100 }));
        assert_eq!(handle.requests_in_flight(), 0);
    }

    #[test]
    fn a_place_is_held_until_the_submission_is_dropped() {
        let (handle, inbox) = EngineHandle::detached(limits());
        let _first = handle.submit(request(&handle, vec![1], 1)).expect("there is room");
        let _second = handle.submit(request(&handle, vec![1], 1)).expect("there is room");
        let third = handle.submit(request(&handle, vec![1], 1));
        assert!(matches!(third, Err(EngineError::QueueFull { requests_max: 2 })));
        drop(inbox.recv());
        assert_eq!(handle.requests_in_flight(), 1);
        handle.submit(request(&handle, vec![1], 1)).expect("a place came free");
    }

    #[test]
    fn a_dead_loop_is_said() {
        let (handle, inbox) = EngineHandle::detached(limits());
        drop(inbox);
        assert!(matches!(handle.submit(request(&handle, vec![1], 1)), Err(EngineError::ShuttingDown)));
        assert_eq!(handle.requests_in_flight(), 0);
    }
}
