//! The header that precedes a block's payload wherever it is stored.
//!
//! 4,096 bytes, little-endian, so that the payload after it is page-aligned:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `HEARTHB1` |
//! | 8 | 4 | CRC-32 (IEEE) of bytes 12..4096 |
//! | 12 | 4 | block format |
//! | 16 | 32 | key |
//! | 48 | 32 | fingerprint |
//! | 80 | 16 | tenant |
//! | 96 | 32 | parent key, zero for the first block of a run |
//! | 128 | 8 | generation of the slot |
//! | 136 | 8 | payload bytes |
//! | 144 | 4 | depth: index of the block in its run |
//! | 148 | 4 | bytes of one checksum range |
//! | 152 | 4 | number of ranges |
//! | 156 | 4 | zero |
//! | 160 | 8 | segment, all ones in memory |
//! | 168 | 8 | slot, all ones in memory |
//! | 176 | 80 | zero |
//! | 256 | 3840 | CRC-32 of each range, then zeros |

use thiserror::Error;

use crate::identity::Fingerprint;
use crate::key::BlockKey;
use crate::limit::PAYLOAD_BYTES_MAX;
use crate::tenant::TenantId;
use crate::version::BLOCK_FORMAT;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 4096;
/// Checksum ranges that a header can hold.
pub const RANGES_MAX: usize = (HEADER_BYTES - CRCS_AT) / 4;

const MAGIC: [u8; 8] = *b"HEARTHB1";
const CRCS_AT: usize = 256;

const _: () = assert!(RANGES_MAX == 960 && HEADER_BYTES.is_multiple_of(4096));

/// Generation of a slot: grows with every reuse of any slot of a node, and is never used twice, restarts included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// Where a block lies on a device. A header that names another place than where it was read is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// Number of the segment; `u64::MAX` in memory.
    pub segment: u64,
    /// Slot within the segment; `u64::MAX` in memory.
    pub slot: u64,
}

impl Location {
    /// The location of every block that is in memory.
    pub const MEMORY: Self = Self { segment: u64::MAX, slot: u64::MAX };
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Name of the block.
    pub key: BlockKey,
    /// Identity of its bytes.
    pub fingerprint: Fingerprint,
    /// Owner.
    pub tenant: TenantId,
    /// Block before it in its run, if it is not the first.
    pub parent: Option<BlockKey>,
    /// Index in its run, from 0.
    pub depth: u32,
    /// Use of the slot.
    pub generation: Generation,
    /// Place on the device.
    pub location: Location,
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// Bytes of one checksum range; the last may be shorter.
    pub range_bytes: u32,
    /// CRC-32 (IEEE) of each range.
    pub range_crcs: Vec<u32>,
}

/// Bytes that are no header of ours, or a damaged one. To a reader it is a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The slot was never written.
    #[error("no block header here")]
    Magic,
    /// The header's own checksum does not match.
    #[error("the block header is damaged: its checksum does not match")]
    Checksum,
    /// Written by another format.
    #[error("the block header has format {0}, this build reads format {BLOCK_FORMAT}")]
    Format(u32),
    /// Lengths or counts contradict each other.
    #[error("the block header contradicts itself")]
    Inconsistent,
}

impl BlockHeader {
    /// Writes the header.
    ///
    /// Panics when there are more than [`RANGES_MAX`] ranges or they do not cover the payload: the caller checked.
    pub fn encode(&self) -> Box<[u8; HEADER_BYTES]> {
        assert!(self.consistent(), "a header is built from a valid layout");
        let mut bytes = Box::new([0; HEADER_BYTES]);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(12, &BLOCK_FORMAT.to_le_bytes());
        put(16, &self.key.0);
        put(48, &self.fingerprint.0);
        put(80, &self.tenant.0);
        put(96, &self.parent.map_or([0; 32], |key| key.0));
        put(128, &self.generation.0.to_le_bytes());
        put(136, &self.payload_bytes.to_le_bytes());
        put(144, &self.depth.to_le_bytes());
        put(148, &self.range_bytes.to_le_bytes());
        put(152, &u32::try_from(self.range_crcs.len()).expect("at most RANGES_MAX").to_le_bytes());
        put(160, &self.location.segment.to_le_bytes());
        put(168, &self.location.slot.to_le_bytes());
        for (i, crc) in self.range_crcs.iter().enumerate() {
            put(CRCS_AT + 4 * i, &crc.to_le_bytes());
        }
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header and checks its own checksum and that it does not contradict itself. Whether it is the header
    /// that was asked for is the caller's to check: key, fingerprint, tenant, generation and location.
    ///
    /// # Errors
    /// When these bytes are no header of this format, or damaged.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        if bytes[..8] != MAGIC {
            return Err(HeaderError::Magic);
        }
        if crc32fast::hash(&bytes[12..]) != word(bytes, 8) {
            return Err(HeaderError::Checksum);
        }
        if word(bytes, 12) != BLOCK_FORMAT {
            return Err(HeaderError::Format(word(bytes, 12)));
        }
        let count = usize::try_from(word(bytes, 152)).unwrap_or(usize::MAX);
        if count > RANGES_MAX {
            return Err(HeaderError::Inconsistent);
        }
        let depth = word(bytes, 144);
        let parent: [u8; 32] = array(bytes, 96);
        let header = Self {
            key: BlockKey(array(bytes, 16)),
            fingerprint: Fingerprint(array(bytes, 48)),
            tenant: TenantId(array(bytes, 80)),
            parent: (depth > 0).then_some(BlockKey(parent)),
            depth,
            generation: Generation(long(bytes, 128)),
            location: Location { segment: long(bytes, 160), slot: long(bytes, 168) },
            payload_bytes: long(bytes, 136),
            range_bytes: word(bytes, 148),
            range_crcs: (0..count).map(|i| word(bytes, CRCS_AT + 4 * i)).collect(),
        };
        if header.consistent() { Ok(header) } else { Err(HeaderError::Inconsistent) }
    }

    /// Whether the ranges cover the payload exactly.
    fn consistent(&self) -> bool {
        self.payload_bytes > 0
            && self.payload_bytes <= PAYLOAD_BYTES_MAX
            && self.range_bytes > 0
            && self.range_crcs.len() <= RANGES_MAX
            && self.payload_bytes.div_ceil(u64::from(self.range_bytes)) == self.range_crcs.len() as u64
            && self.parent.is_some() == (self.depth > 0)
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has N bytes")
}

fn word(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn long(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> BlockHeader {
        BlockHeader {
            key: BlockKey([1; 32]),
            fingerprint: Fingerprint([2; 32]),
            tenant: TenantId([3; 16]),
            parent: Some(BlockKey([4; 32])),
            depth: 7,
            generation: Generation(9),
            location: Location { segment: 5, slot: 6 },
            payload_bytes: 1000,
            range_bytes: 300,
            range_crcs: vec![10, 11, 12, 13],
        }
    }

    #[test]
    fn round_trips() {
        let header = sample();
        assert_eq!(BlockHeader::decode(&header.encode()), Ok(header));
        let root = BlockHeader { parent: None, depth: 0, location: Location::MEMORY, ..sample() };
        assert_eq!(BlockHeader::decode(&root.encode()), Ok(root));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = sample().encode();
        for at in 0..HEADER_BYTES {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(BlockHeader::decode(&damaged).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn contradictions_are_refused_even_with_a_good_checksum() {
        let damage = |at: usize, value: &[u8]| {
            let mut bytes = sample().encode();
            bytes[at..at + value.len()].copy_from_slice(value);
            let crc = crc32fast::hash(&bytes[12..]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            BlockHeader::decode(&bytes)
        };
        assert_eq!(damage(12, &2u32.to_le_bytes()), Err(HeaderError::Format(2)));
        assert_eq!(damage(152, &u32::MAX.to_le_bytes()), Err(HeaderError::Inconsistent));
        assert_eq!(damage(152, &3u32.to_le_bytes()), Err(HeaderError::Inconsistent));
        assert_eq!(damage(148, &0u32.to_le_bytes()), Err(HeaderError::Inconsistent));
        assert_eq!(damage(136, &u64::MAX.to_le_bytes()), Err(HeaderError::Inconsistent));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(seed in prop::collection::vec(any::<u8>(), HEADER_BYTES)) {
            let mut bytes: [u8; HEADER_BYTES] = seed.try_into().expect("length");
            let _ = BlockHeader::decode(&bytes);
            bytes[..8].copy_from_slice(&MAGIC);
            let crc = crc32fast::hash(&bytes[12..]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            let _ = BlockHeader::decode(&bytes);
        }
    }
}
