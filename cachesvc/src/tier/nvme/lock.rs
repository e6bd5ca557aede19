//! One process per data directory.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

const FILE: &str = "LOCK";
/// Longest content of the file that is read: a process id.
const PID_BYTES_MAX: u64 = 20;

/// The right to use a data directory. Held by an open file, so the system gives it back when the process ends, however
/// it ends.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

/// The data directory cannot be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{dir} is in use by another process{holder}: stop that one, or give this one another --data-dir",
        dir = .dir.display(),
        holder = .pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who has it, as far as the file tells.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("{path} cannot be locked: {errno}; check the permissions of the data directory", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
}

impl DataLock {
    /// Takes the lock of a directory, without waiting.
    ///
    /// # Errors
    /// When another process has it, or the file cannot be used.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(FILE);
        let at = |errno| LockError::File { path: path.clone(), errno };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(at)?;
        let mut file = File::from(fd);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(LockError::Held { dir: dir.to_owned(), pid: pid_in(&mut file) });
            }
            Err(errno) => return Err(at(errno)),
        }
        let io = |error: std::io::Error| at(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

/// The process id that a lock file names. Whoever locks it writes that a moment later, so there may be none.
fn pid_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_learns_who_has_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let held = DataLock::acquire(dir.path()).expect("free");
        let refused = DataLock::acquire(dir.path()).expect_err("held");
        assert!(matches!(refused, LockError::Held { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(refused.to_string().contains("--data-dir"), "{refused}");
        drop(held);
        DataLock::acquire(dir.path()).expect("given back");
    }

    #[test]
    fn what_the_file_holds_does_not_matter() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(FILE), [0xff; 4096]).expect("write");
        let _held = DataLock::acquire(dir.path()).expect("free");
        let text = std::fs::read_to_string(dir.path().join(FILE)).expect("read");
        assert_eq!(text, format!("{}\n", std::process::id()));
    }
}
