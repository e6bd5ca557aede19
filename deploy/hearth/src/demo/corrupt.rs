//! Damages one stored block on disk, as a failing device would, while its store node is down.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hearth_proto::header::{BlockHeader, HEADER_BYTES, HeaderError};
use serde::Serialize;

/// Slots and the superblock before them start at multiples of this.
const ALIGNMENT_BYTES: u64 = 4096;
/// How many bytes are flipped, from the middle of the payload on.
const FLIPPED_BYTES: usize = 8;

/// What was damaged.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Damage {
    /// The segment file.
    pub(crate) file: PathBuf,
    /// Where in it the flipped bytes begin.
    pub(crate) offset: u64,
    /// Which block of the document.
    pub(crate) block: u32,
}

/// No block was damaged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CorruptError {
    /// The files cannot be read or written.
    #[error("cannot damage a block in {path}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No such block is on disk.
    #[error("block {block} of the document is not in {path}, so it cannot be damaged")]
    NotFound {
        /// Which block.
        block: u32,
        /// Where it was looked for.
        path: PathBuf,
    },
}

/// Flips some bytes in the middle of the payload of block `block` of a run, in whichever segment file of
/// `store` it lies.
pub(crate) fn damage(store: &Path, block: u32) -> Result<Damage, CorruptError> {
    let mut segments = Vec::new();
    find_segments(store, &mut segments)
        .map_err(|source| CorruptError::Io { path: store.to_owned(), source })?;
    for path in segments {
        let io_error = |source| CorruptError::Io { path: path.clone(), source };
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io_error)?;
        if let Some(offset) = find_payload_middle(&file, block).map_err(io_error)? {
            flip(&file, offset).map_err(io_error)?;
            return Ok(Damage { file: path, offset, block });
        }
    }
    Err(CorruptError::NotFound { block, path: store.to_owned() })
}

fn find_segments(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            find_segments(&path, found)?;
        } else if name.starts_with("seg-") && name.ends_with(".hearth") {
            found.push(path);
        }
    }
    Ok(())
}

/// Walks over the headers of a segment: a block follows its header and is as long as that says.
fn find_payload_middle(file: &File, block: u32) -> io::Result<Option<u64>> {
    let bytes = file.metadata()?.len();
    let mut header = vec![0; HEADER_BYTES];
    let mut offset = 0;
    while offset + (HEADER_BYTES as u64) < bytes {
        file.read_exact_at(&mut header, offset)?;
        offset += ALIGNMENT_BYTES;
        let Ok(header) = decode(&header) else { continue };
        if header.depth == block && header.payload_bytes > 0 {
            return Ok(Some(offset + header.payload_bytes / 2));
        }
        offset += header.payload_bytes.next_multiple_of(ALIGNMENT_BYTES);
    }
    Ok(None)
}

fn decode(bytes: &[u8]) -> Result<BlockHeader, HeaderError> {
    BlockHeader::decode(bytes.try_into().expect("read as many as a header has"))
}

fn flip(file: &File, offset: u64) -> io::Result<()> {
    let mut bytes = [0; FLIPPED_BYTES];
    file.read_exact_at(&mut bytes, offset)?;
    file.write_all_at(&bytes.map(|byte| !byte), offset)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use hearth_proto::header::{Generation, Location};
    use hearth_proto::identity::Fingerprint;
    use hearth_proto::key::BlockKey;
    use hearth_proto::tenant::TenantId;

    use super::*;

    fn block(depth: u32, payload: &[u8]) -> Vec<u8> {
        let header = BlockHeader {
            key: BlockKey([1; 32]),
            fingerprint: Fingerprint([2; 32]),
            tenant: TenantId([3; 16]),
            parent: (depth > 0).then_some(BlockKey([4; 32])),
            depth,
            generation: Generation(1),
            location: Location { segment: 0, slot: u64::from(depth) },
            payload_bytes: payload.len() as u64,
            range_bytes: u32::try_from(payload.len()).unwrap(),
            range_crcs: vec![0],
        };
        [header.encode().as_slice(), payload].concat()
    }

    #[test]
    fn the_payload_of_the_asked_block_is_changed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("class").join("seg-00000000.hearth");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let before = [vec![9; 4096], block(7, &[5; 8192]), vec![0; 8192], block(8, &[6; 8192])].concat();
        fs::write(&path, &before).unwrap();
        let damage = damage(dir.path(), 8).unwrap();
        let after = fs::read(&path).unwrap();
        let changed: Vec<usize> = (0..before.len()).filter(|&at| before[at] != after[at]).collect();
        let start = usize::try_from(damage.offset).unwrap();
        assert_eq!(changed, (start..start + FLIPPED_BYTES).collect::<Vec<_>>());
        assert_eq!((damage.file, before[start]), (path, 6));
    }

    #[test]
    fn a_block_that_is_not_there_is_said() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("seg-1.hearth"), block(0, &[5; 4096])).unwrap();
        assert!(matches!(damage(dir.path(), 1), Err(CorruptError::NotFound { block: 1, .. })));
        assert!(matches!(damage(&dir.path().join("none"), 1), Err(CorruptError::Io { .. })));
    }
}
