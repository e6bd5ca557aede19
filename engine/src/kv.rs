//! The KV memory of the engine, and its way to the store and back.
//!
//! [`pages`] is the memory, [`pool`] says who uses which page, [`traffic`] moves pages between the memory and the
//! store on threads of its own. [`Kv`] is the three of them as the step loop sees them; no call of it waits.

pub mod pages;
pub mod pool;
pub(crate) mod traffic;

use std::ops::Range;
use std::time::{Duration, Instant};

use hearth_connector::proto::key::{BlockKey, KeyChain};
use hearth_connector::{Miss, State, Store};

use crate::metrics::{StepMetrics, WriteResult};
use crate::request::RequestId;
use pages::{PageId, Pages};
use pool::Pool;
use traffic::{LoadJob, Loaded, Traffic, WriteJob, Written};

/// The KV memory of a step loop.
#[derive(Debug)]
pub(crate) struct Kv {
    pub(crate) pages: Pages,
    pub(crate) pool: Pool,
    pub(crate) traffic: Traffic,
    store: Store,
    chain: KeyChain,
    load_deadline: Duration,
    /// Pages on their way to the store.
    lent: usize,
    metrics: StepMetrics,
}

/// The blocks of one request and the pages that hold them.
#[derive(Debug, Default)]
pub(crate) struct Run {
    salt: Vec<u8>,
    /// Keys of all full blocks of the tokens known.
    keys: Vec<BlockKey>,
    /// Held, from the first token on.
    pub(crate) pages: Vec<PageId>,
    /// The first so many pages are full and published.
    published: usize,
}

impl Run {
    pub(crate) fn new(salt: Option<&str>) -> Self {
        Self { salt: salt.unwrap_or_default().as_bytes().to_vec(), ..Self::default() }
    }

    /// Blocks from the first on whose pages are full.
    pub(crate) fn published(&self) -> usize {
        self.published
    }
}

/// What a [`Kv`] is made of.
#[derive(Debug)]
pub(crate) struct KvParts {
    pub(crate) pages: Pages,
    pub(crate) traffic: Traffic,
    pub(crate) store: Store,
    pub(crate) chain: KeyChain,
    pub(crate) load_deadline: Duration,
    pub(crate) metrics: StepMetrics,
}

impl Kv {
    pub(crate) fn new(parts: KvParts) -> Self {
        let KvParts { pages, traffic, store, chain, load_deadline, metrics } = parts;
        let pool = Pool::new(pages.count());
        Self { pages, pool, traffic, store, chain, load_deadline, lent: 0, metrics }
    }

    pub(crate) fn page_tokens(&self) -> usize {
        self.pages.page_tokens()
    }

    /// Blocks of `tokens` whose KV may come from elsewhere: the last token is always computed, because its logits
    /// are needed.
    pub(crate) fn findable(&self, tokens: usize) -> usize {
        tokens.saturating_sub(1) / self.page_tokens()
    }

    /// Adds the keys of the blocks that `tokens` have filled.
    pub(crate) fn extend_keys(&self, run: &mut Run, tokens: &[u32]) {
        self.chain.extend(&mut run.keys, &run.salt, tokens);
    }

    /// Available pages that [`Self::admit`] takes for a run of `tokens` tokens.
    pub(crate) fn admission_pages(&self, run: &Run, tokens: usize) -> usize {
        let shared = self.found(run, tokens).filter(|&page| !self.pool.is_idle(page)).count();
        tokens.div_ceil(self.page_tokens()) - shared
    }

    /// Gives a run pages for `tokens` tokens: those that hold its blocks, and empty ones behind them.
    pub(crate) fn admit(&mut self, run: &mut Run, tokens: usize) {
        assert!(run.pages.is_empty(), "a run is admitted once");
        let found: Vec<PageId> = self.found(run, tokens).collect();
        for &page in &found {
            self.pool.hold(page);
        }
        run.published = found.len();
        run.pages = found;
        while run.pages.len() < tokens.div_ceil(self.page_tokens()) {
            self.grow(run);
        }
        self.write_back(run, 0..run.published);
    }

    /// Adds an empty page to a run.
    pub(crate) fn grow(&mut self, run: &mut Run) {
        run.pages.push(self.pool.take().expect("the plan counts the pages that can be taken"));
    }

    /// Asks the store for the blocks of a run that are not here, up to the last findable one.
    ///
    /// Returns whether its pages are now out, to come back as a [`Loaded`]; otherwise, why nothing is loaded.
    pub(crate) fn load(&mut self, id: RequestId, run: &Run, tokens: usize) -> Result<(), Miss> {
        match self.store.state() {
            State::Connected => {}
            State::Off => return Err(Miss::Off),
            State::Connecting => return Err(Miss::StoreDown),
            State::Refused(_) => return Err(Miss::Refused),
        }
        let last = self.findable(tokens);
        let pages = &run.pages[run.published..last];
        let pages = pages.iter().map(|&page| (page, self.pages.take_out(page))).collect();
        let asked_at = Instant::now();
        let deadline = asked_at + self.load_deadline;
        let job = LoadJob { id, keys: run.keys[..last].to_vec(), pages, asked_at, deadline };
        self.traffic.load(job).map_err(|job| {
            job.pages.into_iter().for_each(|(page, buffer)| self.pages.put_back(page, buffer));
            Miss::Busy
        })
    }

    /// Takes back the pages of a load and publishes the blocks that came.
    pub(crate) fn loaded(&mut self, run: &mut Run, loaded: Loaded) {
        self.metrics.load_wait(loaded.took);
        for (page, buffer) in loaded.pages {
            self.pages.put_back(page, buffer);
        }
        let blocks = run.published..run.published + loaded.tiers.len();
        self.publish_pages(run, blocks.clone());
        for &page in &run.pages[blocks] {
            self.pool.set_stored(page, true);
        }
    }

    /// Takes over blocks that other requests have published meanwhile, from the first page that is not full.
    /// Returns how many.
    pub(crate) fn adopt(&mut self, run: &mut Run, tokens: usize) -> usize {
        let before = run.published;
        while run.published < self.findable(tokens) {
            let Some(page) = self.pool.find(&run.keys[run.published]) else { break };
            self.pool.hold(page);
            let own = std::mem::replace(&mut run.pages[run.published], page);
            self.pool.release(own);
            run.published += 1;
        }
        run.published - before
    }

    /// Makes the pages of a run findable that its first `computed` tokens have filled, and queues them for the store.
    pub(crate) fn publish(&mut self, run: &mut Run, computed: usize) {
        let blocks = run.published..computed / self.page_tokens();
        if !blocks.is_empty() {
            self.publish_pages(run, blocks.clone());
            self.write_back(run, blocks);
        }
    }

    /// Takes note of a finished write-back.
    pub(crate) fn written(&mut self, written: Written) {
        self.lent -= written.pages.len();
        self.metrics.written(WriteResult::Sealed, written.sealed);
        self.metrics.written(WriteResult::NotSealed, written.pages.len() - written.sealed);
        for page in written.pages {
            if !written.complete {
                self.pool.set_stored(page, false);
            }
            self.pool.release(page);
        }
    }

    /// Gives all pages of a run back. Published ones stay findable until they are needed.
    pub(crate) fn release(&mut self, run: &mut Run) {
        run.published = 0;
        for page in run.pages.drain(..).rev() {
            self.pool.release(page);
        }
    }

    /// Pages that become available when this run is released: those behind the last one that another holds.
    pub(crate) fn pages_own(&self, run: &Run) -> usize {
        run.pages.iter().rev().take_while(|&&page| self.pool.is_held_once(page)).count()
    }

    /// Tells the store which blocks are no longer here.
    pub(crate) fn withdraw_given_up(&mut self) {
        let keys = self.pool.drain_given_up();
        if !keys.is_empty() {
            self.store.withdraw(&keys);
        }
    }

    /// Counts blocks that a prompt asked for.
    pub(crate) fn count_asked(&self, asked: hearth_connector::Asked, blocks: usize) {
        self.store.metrics().asked(asked, blocks as u64);
    }

    /// Pages that hold the blocks of a run, from its root on.
    fn found<'a>(&'a self, run: &'a Run, tokens: usize) -> impl Iterator<Item = PageId> + 'a {
        run.keys[..self.findable(tokens)].iter().map_while(|key| self.pool.find(key))
    }

    fn publish_pages(&mut self, run: &mut Run, blocks: Range<usize>) {
        for index in blocks.clone() {
            let parent = index.checked_sub(1).map(|parent| run.pages[parent]);
            run.pages[index] = self.pool.publish(run.pages[index], run.keys[index], parent);
        }
        run.published = blocks.end;
        self.store.advertise(&run.keys[..blocks.end], blocks.start);
    }

    /// Queues those of the blocks that the store is not known to have.
    fn write_back(&mut self, run: &Run, blocks: Range<usize>) {
        if matches!(self.store.state(), State::Off | State::Refused(_)) {
            return;
        }
        let mut start = blocks.start;
        while start < blocks.end {
            let stored = |index: &usize| self.pool.is_stored(run.pages[*index]);
            let first = (start..blocks.end).find(|index| !stored(index)).unwrap_or(blocks.end);
            let end = (first..blocks.end).find(stored).unwrap_or(blocks.end);
            if first < end {
                self.queue_write(run, first..end);
            }
            start = end;
        }
    }

    fn queue_write(&mut self, run: &Run, blocks: Range<usize>) {
        let count = blocks.len();
        // The other half of the memory stays for requests, however slow the store is.
        if self.lent + count > self.pages.count() / 2 {
            self.metrics.written(WriteResult::Skipped, count);
            return;
        }
        let pages = &run.pages[blocks.clone()];
        let lent = pages.iter().map(|&page| (page, self.pages.lend(page))).collect();
        let job = WriteJob { keys: run.keys[..blocks.end].to_vec(), pages: lent };
        if self.traffic.write(job).is_err() {
            self.metrics.written(WriteResult::Skipped, count);
            return;
        }
        self.lent += count;
        for &page in pages {
            self.pool.hold(page);
            self.pool.set_stored(page, true);
        }
    }
}
