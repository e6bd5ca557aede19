//! Probing what a machine and a file system allow, and picking from it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hearth_transfer::{Region, RegionSlice};
use rustix::io::Errno;

use crate::io::psync::{Psync, PsyncConfig};
use crate::io::uring::Uring;
use crate::io::{
    BlockIo, Buffers, Caching, FileId, IO_ALIGN_BYTES, IoConfig, IoFault, IoKind, IoMode, IoOp, IoOpenError,
    IoPick, IoTag, Open, Refusal, Wait,
};

/// Opens a folder for block I/O by the best way that really works there: each is tried with a write, a sync and a read
/// of one page, as a file system may accept `O_DIRECT` at open and refuse the first transfer. Blocks.
///
/// # Errors
/// When what `mode` requires is refused, or the folder cannot be written and read at all.
pub fn open(config: &IoConfig) -> Result<Box<dyn BlockIo>, IoOpenError> {
    let refused = match config.mode {
        IoMode::Psync => None,
        IoMode::Auto | IoMode::Uring => match uring(config)? {
            Ok(io) => return Ok(Box::new(io)),
            Err(refusal) if config.mode == IoMode::Uring => return Err(IoOpenError::Required(refusal)),
            Err(refusal) => Some(refusal),
        },
    };
    Ok(Box::new(threads(config, refused)?))
}

fn uring(config: &IoConfig) -> Result<Result<Uring, Refusal>, IoOpenError> {
    let mut io = match Uring::new(config.queue_depth, config.files_max) {
        Ok(io) => io,
        Err(refusal) => return Ok(Err(refusal)),
    };
    match probe(&mut io, &config.dir)? {
        Ok(()) => Ok(Ok(io)),
        Err(errno) => Ok(Err(Refusal::Direct(errno))),
    }
}

fn threads(config: &IoConfig, refused: Option<Refusal>) -> Result<Psync, IoOpenError> {
    let (direct, errno) = psync(config, Caching::Direct)?;
    let Some(errno) = errno else {
        let pick = IoPick { refused, ..direct.pick().clone() };
        return Ok(direct.with_pick(pick));
    };
    let (buffered, broken) = psync(config, Caching::Buffered)?;
    match broken {
        None => {
            let pick =
                IoPick { refused: refused.or(Some(Refusal::Direct(errno))), ..buffered.pick().clone() };
            Ok(buffered.with_pick(pick))
        }
        Some(errno) => Err(IoOpenError::Probe { path: config.dir.clone(), errno }),
    }
}

fn psync(config: &IoConfig, caching: Caching) -> Result<(Psync, Option<Errno>), IoOpenError> {
    let (queue_depth, files_max) = (config.queue_depth, config.files_max);
    let started = Psync::new(PsyncConfig { caching, queue_depth, files_max });
    let mut io = started.map_err(|error| IoOpenError::Probe {
        path: config.dir.clone(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
    })?;
    let outcome = probe(&mut io, &config.dir)?;
    Ok((io, outcome.err()))
}

/// Writes a page to a new file, syncs it, reads it back, and removes the file. The inner error is what the system said.
fn probe(io: &mut dyn BlockIo, dir: &Path) -> Result<Result<(), Errno>, IoOpenError> {
    let path = probe_path(dir);
    let outcome = match io.open(&path, Open::New) {
        Err(errno) => Err(errno),
        Ok(file) => {
            let outcome = write_and_read(io, file);
            io.close(file);
            outcome
        }
    };
    // A file system that refuses O_DIRECT may have made the file before it refused.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a probe file stays behind; it can be deleted");
        }
        _ => {}
    }
    match outcome {
        Ok(true) => Ok(Ok(())),
        Ok(false) => Err(IoOpenError::Mismatch(path)),
        // What is stored can be read all the same, and a transfer that is refused later is reported then.
        Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => {
            tracing::warn!(path = %path.display(), %errno, "no room to probe the file system: it is taken as it is");
            Ok(Ok(()))
        }
        Err(errno) => Ok(Err(errno)),
    }
}

fn probe_path(dir: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("probe-{}-{count}.tmp", std::process::id()))
}

fn write_and_read(io: &mut dyn BlockIo, file: FileId) -> Result<bool, Errno> {
    let memory = Region::heap(2 * IO_ALIGN_BYTES).map_err(|_| Errno::NOMEM)?;
    let window = |start| memory.slice(start..start + IO_ALIGN_BYTES).expect("within the region");
    let (written, read): (RegionSlice, _) = (window(0), window(IO_ALIGN_BYTES));
    let pattern: Vec<u8> = (0..IO_ALIGN_BYTES).map(|i| (i % 251) as u8).collect();
    written.copy_from(&pattern).expect("of one length, and ours");
    let steps = [
        IoKind::Write { offset: 0, from: Buffers::one(written) },
        IoKind::Sync,
        IoKind::Read { offset: 0, into: Buffers::one(read.clone()) },
    ];
    for kind in steps {
        io.submit(IoOp { tag: IoTag(0), file, kind }).expect("nothing is in flight");
        let mut done = Vec::new();
        while done.is_empty() {
            io.reap(&mut done, Wait::Forever);
        }
        match done.remove(0).result {
            Ok(()) => {}
            Err(IoFault::Os(errno)) => return Err(errno),
            Err(IoFault::Short) => return Ok(false),
        }
    }
    Ok(read.to_vec() == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::mount::Mount;
    use crate::io::{Backend, QUEUE_DEPTH_MAX};
    use crate::sys::seccomp;

    fn config(dir: &Path, mode: IoMode) -> IoConfig {
        IoConfig { mode, dir: dir.to_owned(), queue_depth: 4, files_max: 2 }
    }

    /// Opens in a thread for which the kernel refuses rings.
    fn without_rings(config: IoConfig) -> Result<IoPick, IoOpenError> {
        let thread = std::thread::Builder::new().spawn(move || {
            seccomp::refuse(libc::SYS_io_uring_setup).expect("a filter");
            open(&config).map(|io| io.pick().clone())
        });
        thread.expect("a thread").join().expect("no panic")
    }

    #[test]
    fn a_refused_ring_is_replaced_by_threads_unless_it_is_required() {
        let dir = tempfile::tempdir().expect("a folder");
        let refused = Some(Refusal::Ring(Errno::PERM));
        let auto = without_rings(config(dir.path(), IoMode::Auto)).expect("opens");
        assert_eq!((auto.backend, &auto.refused), (Backend::Psync, &refused));
        assert!(auto.to_string().starts_with("psync "), "{auto}");
        assert!(auto.to_string().contains("seccomp"), "{auto}");
        let required = without_rings(config(dir.path(), IoMode::Uring)).expect_err("required");
        assert!(matches!(required, IoOpenError::Required(Refusal::Ring(Errno::PERM))));
        assert!(required.to_string().contains("use auto or psync"), "{required}");
        let asked = without_rings(config(dir.path(), IoMode::Psync)).expect("opens");
        assert_eq!((asked.backend, asked.refused), (Backend::Psync, None), "as asked for");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0, "no probe is left");
    }

    #[test]
    fn a_file_system_without_direct_transfers_is_used_through_the_page_cache() {
        let Some(mount) = Mount::new("ramfs", "mode=0700") else { return };
        let auto = open(&config(mount.path(), IoMode::Auto)).expect("opens");
        let pick = auto.pick();
        assert_eq!((pick.backend, pick.caching), (Backend::Psync, Caching::Buffered));
        assert!(matches!(pick.refused, Some(Refusal::Direct(_))), "{pick}");
        let required = open(&config(mount.path(), IoMode::Uring)).err();
        assert!(matches!(required, Some(IoOpenError::Required(Refusal::Direct(_)))));
        assert_eq!(std::fs::read_dir(mount.path()).expect("a folder").count(), 0, "no probe is left");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let missing = dir.path().join("missing");
        for mode in [IoMode::Auto, IoMode::Psync] {
            let refused = open(&config(&missing, mode)).err();
            assert!(matches!(refused, Some(IoOpenError::Probe { errno: Errno::NOENT, .. })), "{refused:?}");
        }
    }

    #[test]
    fn the_deepest_queue_can_be_had() {
        let dir = tempfile::tempdir().expect("a folder");
        let deep = IoConfig { queue_depth: QUEUE_DEPTH_MAX, ..config(dir.path(), IoMode::Auto) };
        assert!(open(&deep).is_ok());
    }
}
