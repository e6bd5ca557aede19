//! Why a tier does not open.

use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

use crate::io::{IoFault, IoOpenError};
use crate::tier::nvme::format::{SEGMENT_FORMAT, StoreId};

/// A tier does not open. Nothing was deleted.
#[derive(Debug, Error)]
pub enum NvmeError {
    /// The device cannot be driven.
    #[error(transparent)]
    Io(#[from] IoOpenError),
    /// The configuration is impossible.
    #[error("{0}")]
    Config(ConfigError),
    /// A file or folder cannot be used.
    #[error("{path} cannot be used: {fault}; check that it exists, is ours and is healthy", path = .path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What the system said.
        fault: IoFault,
    },
    /// The limit of open files is reached: each segment is one.
    #[error(
        "{path} cannot be opened, the limit of open files is reached: raise it (ulimit -n, LimitNOFILE), or configure \
         larger segments",
        path = .0.display()
    )]
    FileLimit(PathBuf),
    /// A segment was written by another version.
    #[error(
        "{path} has segment format {found}, this build reads format {SEGMENT_FORMAT}: start the version of Hearth that \
         wrote it, or move the data directory away to begin with an empty one",
        path = .path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A segment belongs to another store.
    #[error(
        "{path} belongs to store {found}, this data directory is store {ours}: move the file back to where it came \
         from, or away",
        path = .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its store.
        found: StoreId,
        /// The store that is being opened.
        ours: StoreId,
    },
    /// A segment lies under another name or in another shard's folder than it was made for.
    #[error(
        "{path} was made as segment {segment} of shard {shard}: give it its name and folder back, or move it away",
        path = .path.display()
    )]
    Misnamed {
        /// The file.
        path: PathBuf,
        /// The segment it says it is.
        segment: u32,
        /// The shard it says it belongs to.
        shard: u32,
    },
    /// A segment has another size than is configured.
    #[error(
        "{path} was made with segments of {found} bytes, {configured} are configured: configure {found}, or move the \
         data directory away to begin with an empty one",
        path = .path.display()
    )]
    SegmentBytes {
        /// The file.
        path: PathBuf,
        /// Segment bytes it was made with.
        found: u64,
        /// Segment bytes configured.
        configured: u64,
    },
    /// No thread could be started.
    #[error("the thread of the nvme tier cannot be started: {0}; raise the limit of processes (ulimit -u)")]
    Thread(#[source] std::io::Error),
    /// The thread ended without a word: our own mistake.
    #[error("the thread of the nvme tier ended while it opened {path}; this is a bug of Hearth", path = .0.display())]
    Gone(PathBuf),
}

/// A configuration is impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The budget is smaller than a segment.
    #[error(
        "{bytes_max} bytes for the nvme tier of a shard are less than one segment of {segment_bytes} bytes"
    )]
    Budget {
        /// The budget.
        bytes_max: u64,
        /// Bytes of a segment.
        segment_bytes: u64,
    },
    /// The budget is too many segments.
    #[error("{bytes_max} bytes for the nvme tier of a shard are too many segments of {segment_bytes} bytes: configure \
             larger segments (at most {max} per shard)", max = crate::tier::nvme::SEGMENTS_MAX)]
    Segments {
        /// The budget.
        bytes_max: u64,
        /// Bytes of a segment.
        segment_bytes: u64,
    },
    /// Segments of this size cannot be.
    #[error("segments of {0} bytes cannot be: use a multiple of 4096, from 64 KiB to 1 TiB")]
    SegmentBytes(u64),
    /// The queue cannot be so deep.
    #[error("a queue depth of {0} cannot be: use 1 to {max}", max = crate::io::QUEUE_DEPTH_MAX)]
    QueueDepth(u32),
}

impl NvmeError {
    /// For mapping an error on `path`.
    pub(crate) fn at(path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| match errno {
            Errno::MFILE | Errno::NFILE => Self::FileLimit(path),
            errno => Self::Path { path, fault: IoFault::Os(errno) },
        }
    }
}
