//! Pages on their way from and to the store, on threads of their own.
//!
//! The step loop hands over jobs without waiting and finds the results in its inbox. A full queue is an answer:
//! blocks that cannot be queued for loading are computed, and those that cannot be queued for writing are not written.
//! Each job has a deadline, so that an absent or slow store gives every page back.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hearth_connector::proto::key::BlockKey;
use hearth_connector::{Durability, Miss, Store, Tier};

use super::pages::{PageBuffer, PageId};
use crate::request::RequestId;

/// Threads that load. Two, so that one long load does not hold up all others.
const LOAD_THREADS: usize = 2;
/// Write-backs that wait. One is as long as a step; the pages that they hold are limited apart from this.
pub(crate) const WRITES_QUEUED_MAX: usize = 256;

/// How the traffic behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrafficSettings {
    /// Loads that wait or run. At least one for each request that can be running.
    pub(crate) loads_max: usize,
    /// For a write-back, from when its turn comes.
    pub(crate) write_deadline: Duration,
    pub(crate) durability: Durability,
}

/// Blocks to load.
#[derive(Debug)]
pub(crate) struct LoadJob {
    pub(crate) id: RequestId,
    /// The chain from its root to the last block to load.
    pub(crate) keys: Vec<BlockKey>,
    /// Places for the last blocks of the chain.
    pub(crate) pages: Vec<(PageId, PageBuffer)>,
    pub(crate) asked_at: Instant,
    pub(crate) deadline: Instant,
}

/// What became of a [`LoadJob`].
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) id: RequestId,
    /// All pages of the job. Those behind the loaded ones hold anything.
    pub(crate) pages: Vec<(PageId, PageBuffer)>,
    /// Where each of the loaded blocks, the first ones of the job, was found.
    pub(crate) tiers: Vec<Tier>,
    /// Why not all were loaded.
    pub(crate) miss: Option<Miss>,
    pub(crate) took: Duration,
}

/// Full pages to write.
#[derive(Debug)]
pub(crate) struct WriteJob {
    /// The chain from its root to the last page.
    pub(crate) keys: Vec<BlockKey>,
    /// The pages of the last blocks of the chain.
    pub(crate) pages: Vec<(PageId, Arc<PageBuffer>)>,
}

/// What became of a [`WriteJob`].
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) pages: Vec<PageId>,
    /// Blocks that were sealed now.
    pub(crate) sealed: usize,
    /// Whether the store now has all of them.
    pub(crate) complete: bool,
}

/// Where results go. Never called by more threads than [`Traffic::start`] makes.
pub(crate) trait Results: Clone + Send + 'static {
    fn loaded(&self, loaded: Loaded);
    fn written(&self, written: Written);
}

/// The queues and their threads.
#[derive(Debug)]
pub(crate) struct Traffic {
    loads: SyncSender<LoadJob>,
    writes: SyncSender<WriteJob>,
    /// When set, no call to the store goes beyond it.
    stop_by: Arc<OnceLock<Instant>>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts the threads. Each job that was taken gives exactly one result.
    pub(crate) fn start(
        store: &Store,
        settings: TrafficSettings,
        results: impl Results,
    ) -> std::io::Result<Self> {
        let (loads, load_jobs) = sync_channel::<LoadJob>(settings.loads_max);
        let (writes, write_jobs) = sync_channel::<WriteJob>(WRITES_QUEUED_MAX);
        let load_jobs = Arc::new(Mutex::new(load_jobs));
        let stop_by = Arc::new(OnceLock::new());
        let mut threads = vec![];
        for index in 0..LOAD_THREADS {
            let (store, results, jobs) = (store.clone(), results.clone(), Arc::clone(&load_jobs));
            let work = move || {
                while let Some(job) = next(&jobs) {
                    results.loaded(load(&store, job));
                }
            };
            threads.push(thread::Builder::new().name(format!("hearth-load-{index}")).spawn(work)?);
        }
        let (store, stop) = (store.clone(), Arc::clone(&stop_by));
        let work = move || {
            for job in write_jobs {
                let deadline = Instant::now() + settings.write_deadline;
                let deadline = stop.get().map_or(deadline, |stop| deadline.min(*stop));
                results.written(write(&store, job, settings.durability, deadline));
            }
        };
        threads.push(thread::Builder::new().name("hearth-write".to_owned()).spawn(work)?);
        Ok(Self { loads, writes, stop_by, threads })
    }

    /// Queues a load, or gives the job back when the queue is full.
    pub(crate) fn load(&self, job: LoadJob) -> Result<(), LoadJob> {
        self.loads.try_send(job).map_err(unsent)
    }

    /// Queues a write-back, or gives the job back when the queue is full.
    pub(crate) fn write(&self, job: WriteJob) -> Result<(), WriteJob> {
        self.writes.try_send(job).map_err(unsent)
    }

    /// Ends the threads after what is queued. Write-backs that are not done by `by` are given up. Blocks
    /// until then, and for as long as loads may take.
    pub(crate) fn stop(self, by: Instant) {
        self.stop_by.set(by).expect("traffic is stopped once");
        drop((self.loads, self.writes));
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread that moved pages panicked");
            }
        }
    }
}

fn unsent<T>(error: TrySendError<T>) -> T {
    match error {
        TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
    }
}

/// The next job; `None` when there will be no more.
fn next(jobs: &Mutex<Receiver<LoadJob>>) -> Option<LoadJob> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn load(store: &Store, mut job: LoadJob) -> Loaded {
    let first = job.keys.len() - job.pages.len();
    // Half of the time for the store to bring blocks into memory, half for copying them.
    let now = Instant::now();
    let acquired_by = now + job.deadline.saturating_duration_since(now) / 2;
    let acquired = store.acquire(&job.keys, first..job.keys.len(), acquired_by);
    let mut miss = acquired.miss;
    let mut tiers = vec![];
    if let Some(lease) = acquired.lease {
        let found = lease.tiers().iter().zip(&mut job.pages);
        for (index, (tier, (_, buffer))) in found.enumerate() {
            let read = if Instant::now() < job.deadline {
                lease.read(index, buffer.bytes_mut())
            } else {
                Err(Miss::Deadline)
            };
            if let Err(reason) = read {
                miss = Some(reason);
                break;
            }
            tiers.push(*tier);
        }
    }
    Loaded { id: job.id, pages: job.pages, tiers, miss, took: job.asked_at.elapsed() }
}

fn write(store: &Store, job: WriteJob, durability: Durability, deadline: Instant) -> Written {
    let first = job.keys.len() - job.pages.len();
    let reservation = store.reserve(&job.keys, first, deadline);
    let mut complete = reservation.miss().is_none() && reservation.refused() == 0;
    let mut sealed = 0;
    for &index in reservation.granted() {
        let (_, buffer) = &job.pages[index - first];
        if let Err(error) = reservation.write(index, buffer.bytes()) {
            tracing::debug!(%error, "a block was not written to the store");
            complete = false;
        }
    }
    if !reservation.granted().is_empty() {
        match reservation.seal(durability, deadline) {
            Ok(done) => sealed = done.blocks,
            Err(error) => {
                tracing::debug!(%error, "blocks were not sealed in the store");
                complete = false;
            }
        }
    }
    // The buffers go before the result, so that nobody else owns a page when the loop gets it back.
    let pages = job.pages.into_iter().map(|(page, _)| page).collect();
    Written { pages, sealed, complete }
}
