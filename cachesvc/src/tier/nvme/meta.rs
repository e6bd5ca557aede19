//! The data directory of a node: its lock, its identity, and how often it was opened.
//!
//! `FORMAT` is text, so that a person can read it; its last line is a checksum of those before. It is replaced as a
//! whole: written beside, synced, renamed, and the directory synced.

use std::fmt::Write as _;
use std::fs::{DirBuilder, File};
use std::io::{Read, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

use crate::tier::nvme::format::StoreId;
use crate::tier::nvme::lock::{DataLock, LockError};

/// Version of the data directory.
pub const DIR_FORMAT: u32 = 1;
/// Shards that a data directory may be split over.
pub const SHARDS_MAX: u32 = 1024;

const FILE: &str = "FORMAT";
const FILE_NEW: &str = "FORMAT.new";
const FILE_BYTES_MAX: u64 = 4096;
const TITLE: &str = "hearth-data";

/// A data directory in use by this process, until dropped.
#[derive(Debug)]
pub struct DataDir {
    dir: PathBuf,
    meta: Meta,
    shards_configured: u32,
    _lock: DataLock,
}

/// The data directory cannot be used. Nothing in it was changed.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// Another process uses it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file or folder in it cannot be used.
    #[error("{path} cannot be used: {errno}; check permissions and free space", path = .path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
    /// Another version wrote it.
    #[error(
        "{path} has format {found}, this build reads format {DIR_FORMAT}: start the version of Hearth that wrote it, \
         or move the data directory away to begin with an empty one",
        path = .path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It is damaged.
    #[error(
        "{path} is damaged: put it back from a copy, or move the data directory away to begin with an empty one",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It is not there, though segments are.
    #[error(
        "{path} is missing though {dir} exists: put it back from a copy, or move the data directory away to begin \
         with an empty one",
        path = .path.display(),
        dir = .dir.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The folder that shows it was there.
        dir: PathBuf,
    },
    /// The number of shards is impossible.
    #[error("{0} shards cannot be: use 1 to {SHARDS_MAX}")]
    Shards(u32),
}

impl DataDir {
    /// Takes the directory, making it (readable by its owner alone) when it does not exist, and counts the opening:
    /// the new count is on the device before this returns. A directory keeps the number of shards it was made with;
    /// when `shards` is another, that is logged and [`DataDir::shards`] is what counts.
    ///
    /// # Errors
    /// When another process has it, it is of another version or damaged, or cannot be written.
    pub fn open(dir: &Path, shards: u32) -> Result<Self, DataDirError> {
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(DataDirError::Shards(shards));
        }
        make_private(dir)?;
        let lock = DataLock::acquire(dir)?;
        let mut meta = match read(dir)? {
            Some(meta) => meta,
            None => fresh(dir, shards)?,
        };
        meta.incarnation += 1;
        write(dir, &meta)?;
        if meta.shards != shards {
            tracing::warn!(
                configured = shards,
                kept = meta.shards,
                "the data directory was made with another number of shards; it keeps that until it is made anew"
            );
        }
        Ok(Self { dir: dir.to_owned(), meta, shards_configured: shards, _lock: lock })
    }

    /// The store's id.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.meta.store
    }

    /// Shards that the directory is split over: those it was made with.
    #[must_use]
    pub fn shards(&self) -> u32 {
        self.meta.shards
    }

    /// Shards that were asked for at this opening.
    #[must_use]
    pub fn shards_configured(&self) -> u32 {
        self.shards_configured
    }

    /// How often the directory was opened, this time included: never the same twice.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.meta.incarnation
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Folder of one shard's segments.
    #[must_use]
    pub fn shard_dir(&self, shard: u32) -> PathBuf {
        shard_dir(&self.dir, shard)
    }
}

/// What `FORMAT` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Meta {
    store: StoreId,
    shards: u32,
    incarnation: u64,
}

/// Why a text is no `FORMAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ParseError {
    Version(u32),
    Damaged,
}

impl Meta {
    fn to_text(self) -> String {
        let Self { store, shards, incarnation } = self;
        let mut text =
            format!("{TITLE} {DIR_FORMAT}\nstore {store}\nshards {shards}\nincarnation {incarnation}\n");
        let crc = crc32fast::hash(text.as_bytes());
        writeln!(text, "crc {crc:08x}").expect("a string takes any text");
        text
    }

    fn parse(text: &str) -> Result<Self, ParseError> {
        let version = text.lines().next().and_then(|line| line.strip_prefix(TITLE)?.trim().parse().ok());
        match version {
            Some(DIR_FORMAT) => Self::parse_current(text).ok_or(ParseError::Damaged),
            Some(other) => Err(ParseError::Version(other)),
            None => Err(ParseError::Damaged),
        }
    }

    fn parse_current(text: &str) -> Option<Self> {
        let mut lines = text.lines().skip(1);
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let meta = Self {
            store: value("store")?.parse().ok()?,
            shards: value("shards")?.parse().ok()?,
            incarnation: value("incarnation")?.parse().ok()?,
        };
        // The checksum and every name and separator are checked at once: there is one text for a meaning.
        let sound = (1..=SHARDS_MAX).contains(&meta.shards) && meta.incarnation < u64::MAX;
        (sound && meta.to_text() == text).then_some(meta)
    }
}

/// The identity of a new directory. Refused where shards exist already: their identity was lost, not absent.
fn fresh(dir: &Path, shards: u32) -> Result<Meta, DataDirError> {
    let first = shard_dir(dir, 0);
    if first.exists() {
        return Err(DataDirError::Missing { path: dir.join(FILE), dir: first });
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| DataDirError::Path { path: dir.join(FILE), errno: Errno::IO })?;
    Ok(Meta { store: StoreId(id), shards, incarnation: 0 })
}

fn shard_dir(dir: &Path, shard: u32) -> PathBuf {
    dir.join(format!("shard-{shard:04}"))
}

fn read(dir: &Path) -> Result<Option<Meta>, DataDirError> {
    let path = dir.join(FILE);
    let mut text = Vec::new();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&path)(error)),
    };
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed(&path))?;
    match std::str::from_utf8(&text).map_or(Err(ParseError::Damaged), Meta::parse) {
        Ok(meta) => Ok(Some(meta)),
        Err(ParseError::Version(found)) => Err(DataDirError::Version { path, found }),
        Err(ParseError::Damaged) => Err(DataDirError::Damaged { path }),
    }
}

fn write(dir: &Path, meta: &Meta) -> Result<(), DataDirError> {
    let (path, new) = (dir.join(FILE), dir.join(FILE_NEW));
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new).map_err(failed(&new))?;
    file.write_all(meta.to_text().as_bytes()).map_err(failed(&new))?;
    file.sync_all().map_err(failed(&new))?;
    std::fs::rename(&new, &path).map_err(failed(&path))?;
    sync_dir(dir).map_err(failed(dir))
}

/// Makes the folder and those above it, for its owner alone: what a store holds can be turned back into prompts.
pub(crate) fn make_private(dir: &Path) -> Result<(), DataDirError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> DataDirError {
    let path = path.to_owned();
    move |error| DataDirError::Path { path, errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_stays_and_openings_are_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("new/data");
        let first = DataDir::open(&path, 4).expect("new");
        let id = first.store_id();
        assert_eq!((first.incarnation(), first.shards()), (1, 4));
        assert!(matches!(DataDir::open(&path, 4), Err(DataDirError::Lock(LockError::Held { .. }))));
        drop(first);
        let second = DataDir::open(&path, 2).expect("there");
        assert_eq!((second.store_id(), second.incarnation()), (id, 2));
        assert_eq!((second.shards(), second.shards_configured()), (4, 2), "keeps what it was made with");
    }

    #[test]
    fn another_version_damage_and_loss_are_told_apart() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join(FILE);
        drop(DataDir::open(dir.path(), 1).expect("new"));
        let good = std::fs::read_to_string(&file).expect("read");

        std::fs::write(&file, good.replace("hearth-data 1", "hearth-data 7")).expect("write");
        let error = DataDir::open(dir.path(), 1).expect_err("version");
        assert!(matches!(error, DataDirError::Version { found: 7, .. }));
        assert!(error.to_string().contains("format 7") && error.to_string().contains("format 1"), "{error}");

        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] ^= 1;
            std::fs::write(&file, &bad).expect("write");
            let error = DataDir::open(dir.path(), 1).expect_err("damaged");
            assert!(
                matches!(error, DataDirError::Damaged { .. } | DataDirError::Version { .. }),
                "byte {at}"
            );
        }
        for bad in ["", "hearth-data", "hearth-data 1\n", "hearth-data 1\nstore\nshards\nincarnation\ncrc\n"]
        {
            std::fs::write(&file, bad).expect("write");
            assert!(matches!(DataDir::open(dir.path(), 1), Err(DataDirError::Damaged { .. })), "{bad:?}");
        }
        std::fs::remove_file(&file).expect("remove");
        std::fs::create_dir(shard_dir(dir.path(), 0)).expect("make");
        assert!(matches!(DataDir::open(dir.path(), 1), Err(DataDirError::Missing { .. })));
        assert!(matches!(DataDir::open(dir.path(), 0), Err(DataDirError::Shards(0))));
    }

    #[test]
    fn a_crash_between_write_and_rename_leaves_the_old_file() {
        let dir = tempfile::tempdir().expect("a folder");
        drop(DataDir::open(dir.path(), 1).expect("new"));
        std::fs::write(dir.path().join(FILE_NEW), "torn").expect("write");
        assert_eq!(DataDir::open(dir.path(), 1).expect("there").incarnation(), 2);
    }
}
