//! Block I/O by plain system calls on a few threads.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::io::files::Files;
use crate::io::progress::{Next, Progress, Step};
use crate::io::{Backend, BlockIo, Caching, FileId, IoDone, IoOp, IoPick, Open, Wait};
use crate::sys::vectored;

/// Threads that carry out operations: how deep the device's queue gets, at most.
const THREADS_MAX: u32 = 8;
/// How long a back end that is dropped waits for operations in flight.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// `preadv` and `pwritev` on threads.
#[derive(Debug)]
pub struct Psync {
    files: Files,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    pick: IoPick,
    queue_depth: usize,
    in_flight: usize,
}

/// Size of a [`Psync`].
#[derive(Clone, Copy, Debug)]
pub struct PsyncConfig {
    /// Whether files are opened with `O_DIRECT`.
    pub caching: Caching,
    /// Operations in flight at most.
    pub queue_depth: u32,
    /// Files open at most.
    pub files_max: u32,
}

impl Psync {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system starts none.
    pub fn new(config: PsyncConfig) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let threads = config.queue_depth.clamp(1, THREADS_MAX);
        let mut this = Self {
            files: Files::new(config.files_max, config.caching),
            shared,
            threads: Vec::new(),
            pick: IoPick { backend: Backend::Psync, caching: config.caching, refused: None },
            queue_depth: usize::try_from(config.queue_depth).expect("a depth fits a usize"),
            in_flight: 0,
        };
        for number in 0..threads {
            let shared = Arc::clone(&this.shared);
            let builder = std::thread::Builder::new().name(format!("hearth-psync-{number}"));
            match builder.spawn(move || shared.serve()) {
                Ok(thread) => this.threads.push(thread),
                Err(error) if number == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, threads = number, "fewer I/O threads than wanted could be started");
                    break;
                }
            }
        }
        Ok(this)
    }

    pub(super) fn with_pick(mut self, pick: IoPick) -> Self {
        self.pick = pick;
        self
    }
}

impl BlockIo for Psync {
    fn pick(&self) -> &IoPick {
        &self.pick
    }

    fn open(&mut self, path: &Path, open: Open) -> Result<FileId, Errno> {
        self.files.open(path, open)
    }

    fn allocate(&mut self, file: FileId, bytes: u64) -> Result<(), Errno> {
        self.files.allocate(file, bytes)
    }

    fn file_bytes(&self, file: FileId) -> Result<u64, Errno> {
        self.files.bytes(file)
    }

    fn close(&mut self, file: FileId) {
        self.files.close(file);
    }

    fn submit(&mut self, op: IoOp) -> Result<(), IoOp> {
        if self.in_flight == self.queue_depth {
            return Err(op);
        }
        let fd = Arc::clone(self.files.shared_fd(op.file));
        let progress = Progress::new(op);
        self.files.begin(progress.op().file);
        self.in_flight += 1;
        self.shared.lock().jobs.push_back(Job { progress, fd });
        self.shared.work.notify_one();
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<IoDone>, wait: Wait) {
        let until = match wait {
            Wait::For(longest) => Instant::now().checked_add(longest),
            Wait::Poll | Wait::Forever => None,
        };
        let mut queues = self.shared.lock();
        while queues.done.is_empty() && !queues.woken && wait != Wait::Poll {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            queues = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let waited = self.shared.news.wait_timeout(queues, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.shared.news.wait(queues).unwrap_or_else(PoisonError::into_inner),
            };
        }
        queues.woken = false;
        let landed = std::mem::take(&mut queues.done);
        drop(queues);
        self.in_flight -= landed.len();
        for completion in &landed {
            self.files.end(completion.op.file);
        }
        done.extend(landed);
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.shared))
    }
}

impl Drop for Psync {
    fn drop(&mut self) {
        let until = Instant::now() + DRAIN_MAX;
        while self.in_flight > 0 && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            self.reap(&mut Vec::new(), Wait::For(left));
        }
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        if self.in_flight > 0 {
            // The threads own the buffers of what they are stuck in, and give them back if they ever return.
            tracing::error!(operations = self.in_flight, "operations did not end; their memory is kept");
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an I/O thread had panicked");
            }
        }
    }
}

/// What the submitter and the threads share.
#[derive(Debug, Default)]
struct Shared {
    queues: Mutex<Queues>,
    /// For the threads: a job, or the end.
    work: Condvar,
    /// For the submitter: a completion, or a wake-up.
    news: Condvar,
}

/// Both queues hold `queue_depth` entries at most, together.
#[derive(Debug, Default)]
struct Queues {
    jobs: VecDeque<Job>,
    done: Vec<IoDone>,
    woken: bool,
    closing: bool,
}

#[derive(Debug)]
struct Job {
    progress: Progress,
    fd: Arc<OwnedFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out jobs until the end.
    fn serve(&self) {
        let mut queues = self.lock();
        loop {
            if let Some(job) = queues.jobs.pop_front() {
                drop(queues);
                let done = carry_out(job);
                queues = self.lock();
                queues.done.push(done);
                self.news.notify_one();
            } else if queues.closing {
                return;
            } else {
                queues = self.work.wait(queues).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.lock().woken = true;
        self.news.notify_one();
    }
}

fn carry_out(job: Job) -> IoDone {
    let Job { mut progress, fd } = job;
    let fd = fd.as_fd();
    loop {
        let answer = match progress.step() {
            Step::Read { offset, windows } => vectored::read_at(fd, &windows, offset),
            Step::Write { offset, windows } => vectored::write_at(fd, &windows, offset),
            Step::Sync => rustix::fs::fdatasync(fd).map(|()| 0),
        };
        match progress.after(answer) {
            Next::Again(rest) => progress = rest,
            Next::Done(done) => return done,
        }
    }
}
