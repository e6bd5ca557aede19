//! One request in the step loop: its tokens, its pages, and what its caller is told.

use std::time::Instant;

use hearth_connector::{Asked, Miss, Tier};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::kv::{Kv, Run};
use crate::model::ModelError;
use crate::request::{EngineError, FinishReason, GenEvent, GenUsage, RequestId, Submission};
use crate::sample::Sampler;

/// A request that waits or runs.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    /// Prompt, then what was generated.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose KV is in the pages of `run`.
    pub(super) computed: usize,
    pub(super) run: Run,
    /// Its pages are out, and come back with blocks from the store.
    pub(super) loading: bool,
    /// Why blocks that are not here are computed.
    pub(super) miss: Miss,
    /// Blocks of the prompt that were counted as found or missed. They are counted once, even if preempted.
    counted: usize,
    usage: GenUsage,
    sampler: Sampler,
    stop_tokens: Vec<u32>,
    new_tokens_max: usize,
    events: mpsc::Sender<GenEvent>,
    /// Given back when dropped.
    _place: OwnedSemaphorePermit,
    submitted_at: Instant,
}

impl Sequence {
    pub(super) fn new(submission: Submission, kv: &Kv, now: Instant) -> Self {
        let Submission { request, events, place } = submission;
        let mut run = Run::new(request.salt.as_deref());
        kv.extend_keys(&mut run, &request.tokens);
        Self {
            id: request.id,
            usage: GenUsage { prompt_tokens: request.tokens.len(), ..GenUsage::default() },
            tokens: request.tokens,
            computed: 0,
            run,
            loading: false,
            miss: Miss::Absent,
            counted: 0,
            sampler: Sampler::new(request.sampling, request.id.0),
            stop_tokens: request.stop_tokens,
            new_tokens_max: request.new_tokens_max,
            events,
            _place: place,
            submitted_at: now,
        }
    }

    /// Whether nobody listens any more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Counts the blocks of the prompt up to `end` that were not counted yet.
    pub(super) fn count_blocks(&mut self, kv: &Kv, end: usize, asked: Asked) {
        let end = end.min(kv.findable(self.usage.prompt_tokens));
        let blocks = end.saturating_sub(self.counted);
        if blocks == 0 {
            return;
        }
        kv.count_asked(asked, blocks);
        self.counted = end;
        let tokens = blocks * kv.page_tokens();
        match asked {
            Asked::Hit(Tier::Engine) => self.usage.loaded.engine += tokens,
            Asked::Hit(Tier::Pinned) => self.usage.loaded.pinned += tokens,
            Asked::Hit(Tier::Nvme) => self.usage.loaded.nvme += tokens,
            Asked::Miss(_) => {}
        }
    }

    /// Tells that the prompt is done, when the first token is about to follow. Returns how long it took.
    pub(super) fn start_generating(&mut self, now: Instant) -> Option<std::time::Duration> {
        if self.tokens.len() > self.usage.prompt_tokens {
            return None;
        }
        self.usage.computed_tokens = self.usage.prompt_tokens - self.usage.loaded.total();
        self.send(GenEvent::Prompt { usage: self.usage });
        Some(now - self.submitted_at)
    }

    /// Chooses the next token and tells it. Returns why the generation ends with it, if it does.
    pub(super) fn generate(&mut self, mut logits: Vec<f32>) -> Result<Option<FinishReason>, ModelError> {
        let token = self.sampler.pick(&mut logits)?;
        self.tokens.push(token);
        self.usage.completion_tokens += 1;
        if self.stop_tokens.contains(&token) {
            return Ok(Some(FinishReason::Stop));
        }
        self.send(GenEvent::Token { id: token });
        Ok((self.usage.completion_tokens >= self.new_tokens_max).then_some(FinishReason::Length))
    }

    /// What it took so far.
    pub(super) fn usage(&self) -> &GenUsage {
        &self.usage
    }

    /// Gives its place back and tells the end.
    pub(super) fn finish(self, reason: FinishReason) {
        let usage = self.usage;
        self.end(GenEvent::Finished { reason, usage });
    }

    /// Gives its place back and tells the failure.
    pub(super) fn fail(self, error: EngineError) {
        self.end(GenEvent::Failed(error));
    }

    fn end(self, event: GenEvent) {
        let Self { events, _place: place, .. } = self;
        // First the place, so that whoever hears of the end can submit again.
        drop(place);
        events.try_send(event).ok();
    }

    fn send(&self, event: GenEvent) {
        // There is room for every event of the request; a failure means that nobody listens any more.
        self.events.try_send(event).ok();
    }
}
