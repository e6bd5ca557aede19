//! The step loop: one thread that owns the requests, their pages and the model, and computes one batch after another.
//!
//! Each turn takes what arrived, plans ([`crate::batch`]), and carries the plan out. It waits only when there is
//! nothing to compute, and only on its inbox; the store is asked by threads of its own ([`crate::kv::traffic`]).

mod sequence;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use hearth_connector::{Asked, Miss, Tier};

use crate::batch::{self, BatchLimits, Plan, Running, View, Waiting, Work};
use crate::kv::Kv;
use crate::kv::traffic::{Loaded, Results, Written};
use crate::metrics::{RequestCounts, StepMetrics};
use crate::model::{Model, ModelError, Segment};
use crate::request::{EngineError, FinishReason, RequestId, Submission};
use sequence::Sequence;

/// How often the loop looks for dropped streams while all requests wait for pages or for the store.
const CANCEL_POLL: Duration = Duration::from_millis(20);
/// How long write-backs may go on after the last request when the engine shuts down.
const FLUSH_AT_STOP: Duration = Duration::from_secs(5);

/// What the loop finds in its inbox.
#[derive(Debug)]
pub(crate) enum Event {
    Submitted(Submission),
    Loaded(Loaded),
    Written(Written),
    Stop,
}

impl From<Submission> for Event {
    fn from(submission: Submission) -> Self {
        Self::Submitted(submission)
    }
}

impl Results for SyncSender<Event> {
    fn loaded(&self, loaded: Loaded) {
        // The inbox has room for all that can be under way; a failure means that the loop is gone.
        self.send(Event::Loaded(loaded)).ok();
    }

    fn written(&self, written: Written) {
        self.send(Event::Written(written)).ok();
    }
}

/// The loop and all that it owns.
pub(crate) struct StepLoop {
    pub(crate) model: Model,
    pub(crate) kv: Kv,
    pub(crate) limits: BatchLimits,
    pub(crate) inbox: Receiver<Event>,
    pub(crate) threads: rayon::ThreadPool,
    pub(crate) metrics: StepMetrics,
    /// Oldest first.
    pub(crate) queue: Queue,
}

/// Requests by whether they hold pages. Oldest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    running: Vec<Sequence>,
    waiting: Vec<Sequence>,
}

impl StepLoop {
    /// Runs until it is told to stop or all handles are gone. Requests that then still live end as cancelled.
    pub(crate) fn run(mut self) {
        let mut idle = true;
        while self.receive(idle) {
            self.drop_cancelled();
            self.adopt();
            let plan = batch::plan(&self.limits, self.view().borrowed());
            idle = plan.work.is_empty() && plan.admit.is_empty() && plan.preempt.is_empty();
            self.carry_out(plan);
            self.kv.withdraw_given_up();
            self.metrics.gauges(self.counts(), self.kv.pool.counts());
        }
        let Queue { running, waiting } = self.queue;
        for sequence in running.into_iter().chain(waiting) {
            self.metrics.ended("cancelled");
            sequence.finish(FinishReason::Cancelled);
        }
        self.kv.traffic.stop(Instant::now() + FLUSH_AT_STOP);
    }

    /// Takes in what arrived. When `idle`, waits until something does. `false` means stop.
    fn receive(&mut self, idle: bool) -> bool {
        if idle {
            let alive = !self.queue.running.is_empty() || !self.queue.waiting.is_empty();
            let first = if alive {
                self.inbox.recv_timeout(CANCEL_POLL)
            } else {
                self.inbox.recv().map_err(RecvTimeoutError::from)
            };
            match first {
                Ok(event) => {
                    if !self.take_in(event) {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        while let Ok(event) = self.inbox.try_recv() {
            if !self.take_in(event) {
                return false;
            }
        }
        true
    }

    fn take_in(&mut self, event: Event) -> bool {
        match event {
            Event::Submitted(submission) => {
                let sequence = Sequence::new(submission, &self.kv, Instant::now());
                insert(&mut self.queue.waiting, sequence);
            }
            Event::Loaded(loaded) => self.loaded(loaded),
            Event::Written(written) => self.kv.written(written),
            Event::Stop => return false,
        }
        true
    }

    fn loaded(&mut self, loaded: Loaded) {
        let sequence = self.queue.running.iter_mut().find(|sequence| sequence.id == loaded.id);
        let sequence = sequence.expect("a request stays while its pages are out");
        sequence.loading = false;
        sequence.miss = loaded.miss.unwrap_or(Miss::Absent);
        let first = sequence.run.published();
        for (index, tier) in loaded.tiers.iter().enumerate() {
            sequence.count_blocks(&self.kv, first + index + 1, Asked::Hit(*tier));
        }
        self.kv.loaded(&mut sequence.run, loaded);
        sequence.computed = sequence.run.published() * self.kv.page_tokens();
    }

    /// Lets go of requests whose stream was dropped. One whose pages are out goes when they are back.
    fn drop_cancelled(&mut self) {
        let gone = |sequence: &Sequence| sequence.is_cancelled() && !sequence.loading;
        for mut sequence in self
            .queue
            .running
            .extract_if(.., |s| gone(s))
            .chain(self.queue.waiting.extract_if(.., |s| gone(s)))
        {
            tracing::info!(request = %sequence.id, "cancelled");
            self.kv.release(&mut sequence.run);
            self.metrics.ended("cancelled");
        }
    }

    /// Lets requests that have a prompt to compute use what others computed meanwhile.
    fn adopt(&mut self) {
        for sequence in self.queue.running.iter_mut().filter(|sequence| !sequence.loading) {
            let full = sequence.run.published() * self.kv.page_tokens();
            if sequence.computed == full && self.kv.adopt(&mut sequence.run, sequence.tokens.len()) > 0 {
                let published = sequence.run.published();
                sequence.count_blocks(&self.kv, published, Asked::Hit(Tier::Engine));
                sequence.computed = published * self.kv.page_tokens();
            }
        }
    }

    fn view(&self) -> OwnedView {
        let running = |sequence: &Sequence| Running {
            id: sequence.id,
            tokens: sequence.tokens.len(),
            computed: sequence.computed,
            pages: sequence.run.pages.len(),
            pages_own: self.kv.pages_own(&sequence.run),
            loading: sequence.loading,
        };
        let waiting = |sequence: &Sequence| Waiting {
            id: sequence.id,
            pages: self.kv.admission_pages(&sequence.run, sequence.tokens.len()),
        };
        let places = self.limits.running_max.saturating_sub(self.queue.running.len());
        OwnedView {
            running: self.queue.running.iter().map(running).collect(),
            waiting: self.queue.waiting.iter().take(places).map(waiting).collect(),
            pages_available: self.kv.pool.available(),
        }
    }

    fn carry_out(&mut self, plan: Plan) {
        for id in plan.preempt {
            let mut sequence = self.queue.take_running(id);
            self.kv.release(&mut sequence.run);
            sequence.computed = 0;
            self.metrics.preempted();
            insert(&mut self.queue.waiting, sequence);
        }
        if !plan.work.is_empty() {
            let started = Instant::now();
            self.compute(&plan.work);
            self.metrics.step(started.elapsed());
        }
        for id in plan.admit {
            assert_eq!(self.queue.waiting[0].id, id, "requests are admitted in their order");
            let sequence = self.queue.waiting.remove(0);
            self.admit(sequence);
        }
    }

    fn admit(&mut self, mut sequence: Sequence) {
        let tokens = sequence.tokens.len();
        self.kv.admit(&mut sequence.run, tokens);
        let found = sequence.run.published();
        sequence.count_blocks(&self.kv, found, Asked::Hit(Tier::Engine));
        sequence.computed = found * self.kv.page_tokens();
        if found < self.kv.findable(tokens) {
            match self.kv.load(sequence.id, &sequence.run, tokens) {
                Ok(()) => sequence.loading = true,
                Err(miss) => sequence.miss = miss,
            }
        }
        insert(&mut self.queue.running, sequence);
    }

    fn compute(&mut self, work: &[Work]) {
        let page_tokens = self.kv.page_tokens();
        for work in work {
            let sequence = self.queue.running_mut(work.id);
            if sequence.computed + work.tokens > sequence.run.pages.len() * page_tokens {
                self.kv.grow(&mut sequence.run);
            }
        }
        let segments: Vec<Segment<'_>> = work
            .iter()
            .map(|work| {
                let sequence = self.queue.running(work.id);
                let end = sequence.computed + work.tokens;
                Segment {
                    tokens: &sequence.tokens[sequence.computed..end],
                    first: sequence.computed,
                    pages: &sequence.run.pages[..end.div_ceil(page_tokens)],
                    logits: end == sequence.tokens.len(),
                }
            })
            .collect();
        let (model, pages) = (&self.model, &mut self.kv.pages);
        match self.threads.install(|| model.forward(&segments, pages)) {
            Ok(logits) => {
                for (work, logits) in work.iter().zip(logits) {
                    self.computed(work, logits);
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for work in work {
                    self.fail(work.id, Arc::clone(&error));
                }
            }
        }
    }

    /// Takes note that the tokens of `work` are computed, and goes on to the next token if this gave logits.
    fn computed(&mut self, work: &Work, logits: Option<Vec<f32>>) {
        let sequence = self.queue.running_mut(work.id);
        let before = sequence.computed;
        sequence.computed += work.tokens;
        let blocks = sequence.computed / self.kv.page_tokens();
        let miss = sequence.miss;
        sequence.count_blocks(&self.kv, blocks, Asked::Miss(miss));
        self.kv.publish(&mut sequence.run, sequence.computed);
        let prompt = sequence.usage().prompt_tokens;
        self.metrics.tokens("prompt_computed", sequence.computed.min(prompt).saturating_sub(before));
        let Some(logits) = logits else { return };
        if let Some(took) = sequence.start_generating(Instant::now()) {
            self.metrics.first_token(took);
            self.metrics.tokens("prompt_loaded", sequence.usage().loaded.total());
        }
        match sequence.generate(logits) {
            Ok(None) => self.kv.extend_keys(&mut sequence.run, &sequence.tokens),
            Ok(Some(reason)) => self.finish(work.id, reason),
            Err(error) => return self.fail(work.id, Arc::new(error)),
        }
        self.metrics.tokens("generated", 1);
    }

    fn finish(&mut self, id: RequestId, reason: FinishReason) {
        let mut sequence = self.queue.take_running(id);
        self.kv.release(&mut sequence.run);
        self.metrics.ended(match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        });
        sequence.finish(reason);
    }

    fn fail(&mut self, id: RequestId, error: Arc<ModelError>) {
        let mut sequence = self.queue.take_running(id);
        tracing::error!(request = %id, error = &*error as &dyn std::error::Error, "the model failed to compute");
        self.kv.release(&mut sequence.run);
        self.metrics.ended("failed");
        sequence.fail(EngineError::Compute(error));
    }

    fn counts(&self) -> RequestCounts {
        let loading = self.queue.running.iter().filter(|sequence| sequence.loading).count();
        let running = self.queue.running.len() - loading;
        RequestCounts { waiting: self.queue.waiting.len(), loading, running }
    }
}

impl Queue {
    fn position(&self, id: RequestId) -> usize {
        self.running.binary_search_by_key(&id, |s| s.id).expect("plans name requests that run")
    }

    fn running(&self, id: RequestId) -> &Sequence {
        &self.running[self.position(id)]
    }

    fn running_mut(&mut self, id: RequestId) -> &mut Sequence {
        let at = self.position(id);
        &mut self.running[at]
    }

    fn take_running(&mut self, id: RequestId) -> Sequence {
        let at = self.position(id);
        self.running.remove(at)
    }
}

/// At its age: ids are given in the order of arrival.
fn insert(sequences: &mut Vec<Sequence>, sequence: Sequence) {
    let at = sequences.partition_point(|other| other.id < sequence.id);
    sequences.insert(at, sequence);
}

struct OwnedView {
    running: Vec<Running>,
    waiting: Vec<Waiting>,
    pages_available: usize,
}

impl OwnedView {
    fn borrowed(&self) -> View<'_> {
        View { running: &self.running, waiting: &self.waiting, pages_available: self.pages_available }
    }
}
