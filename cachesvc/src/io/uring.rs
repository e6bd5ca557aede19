//! Block I/O by io_uring, with `O_DIRECT` and registered files.
//!
//! Who owns what: a [`Flight`] owns the operation, so its buffers, and the iovecs that the kernel was given, from the
//! submission until the completion was reaped. A ring that is dropped with operations in flight waits for them; if
//! they do not end in time their flights are leaked, as the device may still write into the buffers.

#![expect(
    unsafe_code,
    reason = "the submission queue takes raw addresses; every other module of the seam is safe"
)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::EventfdFlags;
use rustix::io::Errno;

use crate::io::files::Files;
use crate::io::progress::{Next, Progress, Step};
use crate::io::{Backend, BlockIo, Caching, FileId, IoDone, IoOp, IoPick, Open, Refusal, Wait};
use crate::sys::vectored;

/// Marks the completion of the poll on the waker's eventfd. Operations are marked with their index, which is smaller.
const WAKE: u64 = u64::MAX;
/// How long a ring that is dropped waits for operations in flight.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Pause before a ring is tried again that the kernel refused to serve for want of memory.
const ENTER_AGAIN: Duration = Duration::from_millis(1);

/// One ring.
pub struct Uring {
    ring: IoUring,
    files: Files,
    registered: bool,
    flights: Box<[Option<Flight>]>,
    free: Vec<usize>,
    /// Flights whose next step waits for room in the submission queue.
    unstarted: VecDeque<usize>,
    wake: Arc<WakeFd>,
    wake_armed: bool,
    pick: IoPick,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("in_flight", &self.in_flight())
            .field("pick", &self.pick)
            .finish_non_exhaustive()
    }
}

/// An operation that the kernel has, or is about to get.
struct Flight {
    progress: Progress,
    /// Windows of the step under way. The kernel reads them at submission; they are kept all the same.
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the addresses in `iovecs` are windows of mappings that `progress` keeps mapped, on whatever thread it is;
// nothing dereferences them but the kernel.
unsafe impl Send for Flight {}

impl Uring {
    /// Sets up a ring of `queue_depth` operations and a table of `files_max` files.
    ///
    /// # Errors
    /// When the kernel refuses a ring, or its io_uring is too old.
    pub fn new(queue_depth: u32, files_max: u32) -> Result<Self, Refusal> {
        let refused =
            |error: std::io::Error| Refusal::Ring(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        // One entry more than operations, for the poll on the waker.
        let entries = queue_depth + 1;
        let quiet = IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(entries);
        let ring = match quiet {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries),
            other => other,
        }
        .map_err(refused)?;
        let params = ring.params();
        if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
            return Err(Refusal::Feature("timed waits (Linux 5.11)"));
        }
        let empty = vec![-1; usize::try_from(files_max).expect("a file number fits a usize")];
        let registered = ring.submitter().register_files(&empty);
        if let Err(error) = &registered {
            tracing::debug!(%error, files_max, "files are not registered with the ring; raise the limit of open files");
        }
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Refusal::Ring)?;
        let depth = usize::try_from(queue_depth).expect("a depth fits a usize");
        Ok(Self {
            ring,
            files: Files::new(files_max, Caching::Direct),
            registered: registered.is_ok(),
            flights: std::iter::repeat_with(|| None).take(depth).collect(),
            free: (0..depth).rev().collect(),
            unstarted: VecDeque::with_capacity(depth),
            wake: Arc::new(WakeFd { fd: wake, pending: AtomicBool::new(false) }),
            wake_armed: false,
            pick: IoPick { backend: Backend::Uring, caching: Caching::Direct, refused: None },
        })
    }

    /// Puts the next step of every flight that waits into the submission queue, as far as there is room.
    fn start(&mut self) {
        if !self.wake_armed {
            let poll = opcode::PollAdd::new(Fd(self.wake.fd.as_raw_fd()), POLL_READABLE);
            self.wake_armed = self.push(&poll.build().user_data(WAKE));
        }
        while let Some(&at) = self.unstarted.front() {
            let entry = self.entry(at);
            if !self.push(&entry) {
                return;
            }
            self.unstarted.pop_front();
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: an operation's addresses are owned by its flight until its completion is reaped, a file by the
        // table until nothing is in flight on it, and the eventfd by `self.wake`, which outlives the ring.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// The submission entry for the next step of a flight.
    fn entry(&mut self, at: usize) -> squeue::Entry {
        let flight = self.flights[at].as_mut().expect("a started flight");
        let file = flight.progress.op().file;
        let step = flight.progress.step();
        if let Step::Read { windows, .. } | Step::Write { windows, .. } = &step {
            flight.iovecs = vectored::iovecs(windows);
        }
        let (iovecs, count) =
            (flight.iovecs.as_ptr(), u32::try_from(flight.iovecs.len()).expect("two at most"));
        macro_rules! on_file {
            ($target:expr) => {
                match step {
                    Step::Read { offset, .. } => {
                        opcode::Readv::new($target, iovecs, count).offset(offset).build()
                    }
                    Step::Write { offset, .. } => {
                        opcode::Writev::new($target, iovecs, count).offset(offset).build()
                    }
                    Step::Sync => opcode::Fsync::new($target).flags(FsyncFlags::DATASYNC).build(),
                }
            };
        }
        let entry = if self.registered {
            on_file!(Fixed(file.0))
        } else {
            on_file!(Fd(self.files.fd(file).as_raw_fd()))
        };
        entry.user_data(at as u64)
    }

    /// Hands the queue to the kernel and waits as told.
    fn enter(&mut self, wait: Wait) {
        let outcome = match wait {
            Wait::Poll => self.ring.submit(),
            Wait::Forever => self.ring.submit_and_wait(1),
            Wait::For(longest) => {
                let timespec = Timespec::from(longest);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        let Err(error) = outcome else { return };
        // What completed is there all the same, and what was not taken stays queued for the next call.
        match Errno::from_io_error(&error) {
            Some(Errno::TIME | Errno::INTR) => {}
            Some(Errno::AGAIN | Errno::BUSY) => std::thread::sleep(ENTER_AGAIN),
            _ => {
                tracing::error!(%error, "the ring refuses operations");
                std::thread::sleep(ENTER_AGAIN);
            }
        }
    }

    /// Takes what the kernel completed.
    fn collect(&mut self, done: &mut Vec<IoDone>) -> bool {
        let mut woken = false;
        let completed: Vec<cqueue::Entry> = self.ring.completion().collect();
        for entry in completed {
            if entry.user_data() == WAKE {
                self.wake.clear();
                self.wake_armed = false;
                woken = true;
                continue;
            }
            let at = usize::try_from(entry.user_data()).expect("an index that was sent");
            let flight = self.flights[at].take().expect("one completion per step");
            let answer =
                usize::try_from(entry.result()).map_err(|_| Errno::from_raw_os_error(-entry.result()));
            match flight.progress.after(answer) {
                Next::Again(progress) => {
                    self.flights[at] = Some(Flight { progress, iovecs: flight.iovecs });
                    self.unstarted.push_back(at);
                }
                Next::Done(completion) => {
                    self.files.end(completion.op.file);
                    self.free.push(at);
                    done.push(completion);
                }
            }
        }
        woken
    }

    /// Names a file to the kernel, or takes the name away with -1.
    fn register(&self, file: FileId, fd: i32) -> Result<(), Errno> {
        if !self.registered {
            return Ok(());
        }
        let updated = self.ring.submitter().register_files_update(file.0, &[fd]);
        updated.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

impl BlockIo for Uring {
    fn pick(&self) -> &IoPick {
        &self.pick
    }

    fn open(&mut self, path: &Path, open: Open) -> Result<FileId, Errno> {
        let file = self.files.open(path, open)?;
        if let Err(errno) = self.register(file, self.files.fd(file).as_raw_fd()) {
            self.files.close(file);
            return Err(errno);
        }
        Ok(file)
    }

    fn allocate(&mut self, file: FileId, bytes: u64) -> Result<(), Errno> {
        self.files.allocate(file, bytes)
    }

    fn file_bytes(&self, file: FileId) -> Result<u64, Errno> {
        self.files.bytes(file)
    }

    fn close(&mut self, file: FileId) {
        self.files.close(file);
        if let Err(errno) = self.register(file, -1) {
            tracing::warn!(%errno, "a closed file stays registered with the ring until its number is used again");
        }
    }

    fn submit(&mut self, op: IoOp) -> Result<(), IoOp> {
        let Some(&at) = self.free.last() else { return Err(op) };
        let progress = Progress::new(op);
        self.files.begin(progress.op().file);
        self.free.pop();
        self.flights[at] = Some(Flight { progress, iovecs: Vec::new() });
        self.unstarted.push_back(at);
        self.start();
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<IoDone>, wait: Wait) {
        let until = match wait {
            Wait::For(longest) => Instant::now().checked_add(longest),
            Wait::Poll | Wait::Forever => None,
        };
        let before = done.len();
        let mut wait = wait;
        loop {
            self.start();
            self.enter(wait);
            let woken = self.collect(done);
            if woken || done.len() > before || wait == Wait::Poll {
                break;
            }
            if let Some(until) = until {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                wait = Wait::For(left);
            }
        }
        if !self.unstarted.is_empty() {
            self.start();
            self.enter(Wait::Poll);
        }
    }

    fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.wake))
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let until = Instant::now() + DRAIN_MAX;
        while self.in_flight() > 0 && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            self.reap(&mut Vec::new(), Wait::For(left));
        }
        if self.in_flight() > 0 {
            tracing::error!(
                operations = self.in_flight(),
                "operations did not end; their memory is kept for ever"
            );
            Box::leak(std::mem::take(&mut self.flights));
            self.free.clear();
        } else if self.registered
            && let Err(error) = self.ring.submitter().unregister_files()
        {
            // The kernel takes a ring apart in its own time, and until then deleted files would take up space.
            tracing::warn!(%error, "files stay registered until the kernel has taken the ring apart");
        }
    }
}

/// `POLLIN`, as the submission entry takes it.
const POLL_READABLE: u32 = 0x001;

/// Ends a wait of the ring from any thread.
struct WakeFd {
    fd: OwnedFd,
    /// Whether the eventfd was written since it was last cleared.
    pending: AtomicBool,
}

impl WakeFd {
    /// Makes the eventfd quiet again. What a waker announced before is visible after this.
    fn clear(&self) {
        let mut count = [0; 8];
        match rustix::io::read(&self.fd, &mut count) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => tracing::error!(%errno, "the waker of a ring cannot be read"),
        }
        // After the read: a wake-up in between is swallowed, but its sender's news are seen by who woke up now.
        self.pending.swap(false, Ordering::AcqRel);
    }
}

impl Wake for WakeFd {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
            // Full means that it is readable, which is all that is wanted.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(errno) => tracing::error!(%errno, "a ring cannot be woken"),
        }
    }
}
