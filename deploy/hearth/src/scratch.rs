//! Directories that live as long as a run.
//!
//! A directory is locked by the process that uses it. What a killed process left behind carries no
//! lock, and the next run beside it removes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Longest path of a unix socket, without its final zero (`sockaddr_un` on Linux).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Room that a directory of sockets leaves for the name of one.
const SOCKET_NAME_BYTES_MAX: usize = 16;

/// A directory that is removed when this is dropped, unless it is kept.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
    _lock: File,
}

impl Scratch {
    /// Makes `PARENT/PREFIX-RANDOM` after removing what dead processes left of that prefix.
    pub(crate) fn new(parent: &Path, prefix: &str) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        remove_abandoned(parent, &format!("{prefix}-"));
        loop {
            let dir = tempfile::Builder::new().prefix(&format!("{prefix}-")).tempdir_in(parent)?;
            // A run that starts at the same time may take the directory for abandoned before it is locked.
            if let Some(lock) = lock_directory(dir.path())? {
                return Ok(Self { dir, _lock: lock });
            }
        }
    }

    /// A directory whose path leaves room for the names of unix sockets: in `near` when that is short
    /// enough, else in the system's folder for temporary files.
    pub(crate) fn for_sockets(near: &Path, prefix: &str) -> io::Result<Self> {
        let longest = near.as_os_str().len() + prefix.len() + "/-XXXXXX/".len() + SOCKET_NAME_BYTES_MAX;
        if longest <= SOCKET_PATH_BYTES_MAX {
            Self::new(near, prefix)
        } else {
            Self::new(&std::env::temp_dir(), prefix)
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves the directory where it is.
    pub(crate) fn keep(self) -> PathBuf {
        self.dir.keep()
    }
}

/// Locks a directory for this process. `None` when another one holds it, or it is gone.
pub(crate) fn lock_directory(dir: &Path) -> io::Result<Option<File>> {
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let same = fs::metadata(dir).is_ok_and(|now| file.metadata().is_ok_and(|held| held.ino() == now.ino()));
    Ok(same.then_some(file))
}

/// Where this user's caches lie: `$XDG_CACHE_HOME/hearth`, else `~/.cache/hearth`, else the system's
/// folder for temporary files.
pub(crate) fn cache_dir() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("hearth")
}

fn remove_abandoned(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix))
            && entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !ours {
            continue;
        }
        if let Ok(Some(lock)) = lock_directory(&entry.path()) {
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::debug!(path = %entry.path().display(), %error, "an abandoned directory stays");
            }
            drop(lock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_run_left_is_removed_and_what_lives_stays() {
        let parent = tempfile::tempdir().unwrap();
        let alive = Scratch::new(parent.path(), "run").unwrap();
        let abandoned = parent.path().join("run-dead");
        fs::create_dir_all(abandoned.join("deep")).unwrap();
        let foreign = parent.path().join("other-dead");
        fs::create_dir(&foreign).unwrap();
        let second = Scratch::new(parent.path(), "run").unwrap();
        assert!(alive.path().exists() && second.path().exists() && foreign.exists());
        assert!(!abandoned.exists());
        let path = alive.path().to_owned();
        drop(alive);
        assert!(!path.exists());
    }

    #[test]
    fn a_kept_directory_stays() {
        let parent = tempfile::tempdir().unwrap();
        let kept = Scratch::new(parent.path(), "run").unwrap().keep();
        assert!(kept.exists());
    }

    #[test]
    fn a_directory_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let lock = lock_directory(dir.path()).unwrap();
        assert!(lock.is_some());
        assert!(lock_directory(dir.path()).unwrap().is_none());
        drop(lock);
        assert!(lock_directory(dir.path()).unwrap().is_some());
        assert!(lock_directory(&dir.path().join("gone")).unwrap().is_none());
    }

    #[test]
    fn sockets_get_a_short_path() {
        let parent = tempfile::tempdir().unwrap();
        let deep = parent.path().join("x".repeat(100));
        let sockets = Scratch::for_sockets(&deep, "hearth").unwrap();
        assert!(sockets.path().join("0123456789abcdef").as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
    }
}
