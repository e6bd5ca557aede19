//! One run of the program, and what it leaves behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything takes; reached by hangs only.
const PATIENCE: Duration = Duration::from_secs(240);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// In the environment of a run and so of all it starts.
const MARK: &str = "HEARTH_TEST_RUN";

/// A run of the program with a folder of its own.
pub(crate) struct Run {
    child: Child,
    folder: tempfile::TempDir,
    mark: String,
}

/// A folder for one run, or for several after each other.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

impl Run {
    /// Starts `hearth ARGS` with its working directory and its cache in `folder`.
    pub(crate) fn start<S: AsRef<OsStr>>(folder: tempfile::TempDir, args: &[S]) -> Self {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        let file = |name| File::create(folder.path().join(name)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .args(args)
            .current_dir(folder.path())
            .env("XDG_CACHE_HOME", folder.path().join("cache"))
            .env_remove("RUST_LOG")
            .env(MARK, &mark)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap();
        Self { child, folder, mark }
    }

    /// The folder of the run.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Process ids of the run, children included.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let wanted = format!("{MARK}={}", self.mark);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // What ended meanwhile, a zombie included, has no environment.
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
                found.push(pid);
            }
        }
        found
    }

    /// Whether the program itself has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The process that runs this subcommand, if one does.
    pub(crate) fn find_part(&self, subcommand: &str) -> Option<u32> {
        let runs = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1).is_some_and(|argument| argument == subcommand.as_bytes())
        };
        self.processes().into_iter().find(runs)
    }

    /// The process that runs this subcommand.
    pub(crate) fn part(&self, subcommand: &str) -> u32 {
        self.find_part(subcommand).unwrap_or_else(|| panic!("no {subcommand} runs"))
    }

    /// Sends a signal to the program itself.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.child.id(), signal);
    }

    /// Waits for the program's end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the program ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits until nothing of the run is alive.
    pub(crate) fn wait_all_gone(&self) {
        until("all processes of the run ended", || self.processes().is_empty());
    }

    /// What it wrote, both streams.
    pub(crate) fn output(&self) -> String {
        let read = |name| fs::read_to_string(self.path().join(name)).unwrap_or_default();
        format!("{}{}", read("stdout"), read("stderr"))
    }

    /// The folder, for another run. To be called after the end of this one.
    pub(crate) fn into_folder(mut self) -> tempfile::TempDir {
        assert_eq!(self.processes(), Vec::<u32>::new(), "something is left of the run");
        std::mem::replace(&mut self.folder, folder())
    }

    /// Directories of runs below the cache.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        let cache = self.path().join("cache/hearth");
        let entries =
            fs::read_dir(cache).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| vec![]);
        entries
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("demo-")))
            .collect()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A failed test leaves nothing running either.
        for pid in self.processes() {
            kill(pid, Signal::KILL);
        }
        self.child.wait().ok();
    }
}

/// Sends a signal to a process that may have ended.
pub(crate) fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).ok();
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(LOOK_INTERVAL);
    }
}
