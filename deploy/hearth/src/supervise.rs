//! Runs parts of Hearth as separate processes of this program, and leaves none behind.
//!
//! A child is in a process group of its own (a Ctrl-C on the terminal reaches the supervisor alone,
//! which then stops its children in order) and is tied to the supervisor's life by
//! [`crate::lifeline`]: even SIGKILL of the supervisor ends it. Start children from the main thread
//! only; that is the thread whose end the kernel reports.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::lifeline;

/// How often a child is looked at while something is awaited of it.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Bytes of a log's end that are read for its last lines.
const LOG_TAIL_BYTES: u64 = 16 << 10;
/// Last lines of a log that a message shows.
const LOG_TAIL_LINES: usize = 12;
/// Most bytes of a ready file.
const READY_BYTES_MAX: u64 = 64 << 10;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// What messages call it.
    pub(crate) name: String,
    /// The program; this one, outside tests.
    pub(crate) program: PathBuf,
    /// Arguments of the program.
    pub(crate) args: Vec<OsString>,
    /// Where its output goes, appended.
    pub(crate) log: PathBuf,
    /// What it writes when it is ready.
    pub(crate) ready_file: PathBuf,
}

/// A part did not start, or did not keep running.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperviseError {
    /// The process could not be started.
    #[error("cannot start {name} ({program})")]
    Spawn {
        /// What was to be started.
        name: String,
        /// Its program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The log file could not be opened.
    #[error("cannot write the log {path}; is the directory writable and the disk not full?")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It ended when it should not have.
    #[error("{name} ended ({status}); its log {log} ends with:\n{tail}")]
    Ended {
        /// What ended.
        name: String,
        /// How.
        status: ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// Last lines of the log.
        tail: String,
    },
    /// It is alive and not ready.
    #[error("{name} was not ready after {waited:?}; its log {log} ends with:\n{tail}")]
    NotReady {
        /// What is not ready.
        name: String,
        /// How long it was given.
        waited: Duration,
        /// Its log file.
        log: PathBuf,
        /// Last lines of the log.
        tail: String,
    },
    /// Its ready file does not say where it listens.
    #[error(
        "{name} wrote a ready file {path} that cannot be read; the programs may be of different versions"
    )]
    Ready {
        /// Who wrote it.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The state of the child could not be asked.
    #[error("cannot ask for the state of {name}")]
    Wait {
        /// Of whom.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// A running child. Dropping it kills its whole process group and waits for its end.
#[derive(Debug)]
pub(crate) struct Process {
    job: Job,
    child: Child,
}

impl Process {
    /// Starts the job, tied to the life of this process.
    pub(crate) fn start(job: Job) -> Result<Self, SuperviseError> {
        let log_error = |source| SuperviseError::Log { path: job.log.clone(), source };
        let log = OpenOptions::new().create(true).append(true).open(&job.log).map_err(log_error)?;
        let errors = log.try_clone().map_err(log_error)?;
        match fs::remove_file(&job.ready_file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(SuperviseError::Ready { name: job.name, path: job.ready_file, source });
            }
            _ => {}
        }
        let child = Command::new(&job.program)
            .args(&job.args)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn();
        match child {
            Ok(child) => Ok(Self { job, child }),
            Err(source) => Err(SuperviseError::Spawn { name: job.name, program: job.program, source }),
        }
    }

    /// Process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What runs.
    pub(crate) fn job(&self) -> &Job {
        &self.job
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, SuperviseError> {
        self.child.try_wait().map_err(|source| SuperviseError::Wait { name: self.job.name.clone(), source })
    }

    /// Waits until the child has written its ready file, and parses that. Cancel-safe.
    pub(crate) async fn ready<T>(&mut self, patience: Duration) -> Result<T, SuperviseError>
    where
        T: serde::de::DeserializeOwned,
    {
        let start = Instant::now();
        loop {
            // The file is renamed into place, so it is either absent or whole.
            match read_ready(&self.job.ready_file) {
                Ok(Some(bytes)) => return self.parse_ready(&bytes),
                Ok(None) => {}
                Err(source) => return Err(self.ready_error(source)),
            }
            if let Some(status) = self.ended()? {
                return Err(self.ended_error(status));
            }
            if start.elapsed() > patience {
                let (name, log, tail) =
                    (self.job.name.clone(), self.job.log.clone(), log_tail(&self.job.log));
                return Err(SuperviseError::NotReady { name, waited: patience, log, tail });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits for the child's own end, which has to be a success. Cancel-safe.
    pub(crate) async fn success(&mut self) -> Result<(), SuperviseError> {
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.ended_error(status)),
                None => tokio::time::sleep(LOOK_INTERVAL).await,
            }
        }
    }

    /// SIGKILL to the whole group, and waits for the end, which takes milliseconds.
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::KILL);
        // An error means that there is nothing to wait for.
        self.child.wait().ok();
    }

    /// The error that tells of this child's end.
    pub(crate) fn ended_error(&self, status: ExitStatus) -> SuperviseError {
        let Job { name, log, .. } = &self.job;
        SuperviseError::Ended { name: name.clone(), status, log: log.clone(), tail: log_tail(log) }
    }

    fn parse_ready<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, SuperviseError> {
        serde_json::from_slice(bytes).map_err(|error| self.ready_error(error.into()))
    }

    fn ready_error(&self, source: io::Error) -> SuperviseError {
        let Job { name, ready_file, .. } = &self.job;
        SuperviseError::Ready { name: name.clone(), path: ready_file.clone(), source }
    }

    fn signal(&mut self, signal: Signal) {
        // A reaped child's id may belong to somebody else.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may end between the look and the signal; then there is nobody to signal.
            kill_process_group(group, signal).ok();
        }
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Stops processes together: SIGTERM to all, then SIGKILL to those that still run after `grace` or
/// when `hurried` says so. Blocks until all have ended.
pub(crate) fn stop_all<'a>(
    processes: impl IntoIterator<Item = &'a mut Process>,
    grace: Duration,
    hurried: impl Fn() -> bool,
) {
    let mut processes: Vec<_> = processes.into_iter().collect();
    for process in &mut processes {
        process.signal(Signal::TERM);
    }
    let start = Instant::now();
    while processes.iter_mut().any(|process| process.is_running()) && start.elapsed() < grace && !hurried() {
        std::thread::sleep(LOOK_INTERVAL);
    }
    for process in processes {
        process.kill9();
    }
}

/// This program, to run its other subcommands.
pub(crate) fn own_program() -> PathBuf {
    // The kernel's link works even when the file was replaced or removed meanwhile.
    std::env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| "/proc/self/exe".into())
}

/// Arguments of a server that is a child: they tie it to this process and name its ready file.
pub(crate) fn child_arguments(ready_file: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = lifeline::arguments().into_iter().map(OsString::from).collect();
    args.push("--ready-file".into());
    args.push(ready_file.into());
    args
}

fn read_ready(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(READY_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The last lines of a log, indented; a sentence when there are none.
pub(crate) fn log_tail(path: &Path) -> String {
    let text = read_tail(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return "  (the log is empty)".to_owned();
    }
    let from = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines[from..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

#[cfg(test)]
mod tests;
