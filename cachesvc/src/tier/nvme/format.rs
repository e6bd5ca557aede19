//! How a segment file is laid out.
//!
//! `seg-XXXXXXXX.hearth` (its number in hexadecimal) is `segment_bytes` long: a superblock, then slots of one size,
//! then a second copy of the superblock in the last 4,096 bytes. A slot is a block header that names its location,
//! then the payload padded to 4,096 bytes. Everything is little-endian.
//!
//! | offset in the superblock | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `HEARTHSG` |
//! | 8 | 4 | CRC-32 (IEEE) of bytes 12..4096 |
//! | 12 | 4 | segment format |
//! | 16 | 16 | store id |
//! | 32 | 4 | shard |
//! | 36 | 4 | segment number |
//! | 40 | 8 | segment generation: grows with every segment that a tier creates |
//! | 48 | 8 | segment bytes |
//! | 56 | 8 | slot bytes |
//! | 64 | 4 | slots |
//! | 68 | 4028 | zero |
//!
//! Magic, checksum and format keep their places in every version, so that a file of another version is told from a
//! damaged one.

use std::fmt;
use std::str::FromStr;

use hearth_proto::header::Location;
use thiserror::Error;

use crate::slots::{Slot, SlotBytes, SlotsConfig};

/// Version of the segment files.
pub const SEGMENT_FORMAT: u32 = 1;
/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Bytes of a segment, least and most.
pub const SEGMENT_BYTES_RANGE: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 40;

const MAGIC: [u8; 8] = *b"HEARTHSG";
const SUFFIX: &str = ".hearth";

/// Tells a store from every other: 16 random bytes, drawn when the data directory is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(pub [u8; 16]);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text is no store id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a store id is 32 hexadecimal digits")]
pub struct StoreIdError;

impl FromStr for StoreId {
    type Err = StoreIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.as_bytes().iter().all(digit) {
            return Err(StoreIdError);
        }
        Ok(Self(u128::from_str_radix(text, 16).map_err(|_| StoreIdError)?.to_be_bytes()))
    }
}

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Whose it is.
    pub store: StoreId,
    /// Shard that it belongs to.
    pub shard: u32,
    /// Its number.
    pub segment: u32,
    /// Grows with every segment that a tier creates.
    pub generation: u64,
    /// Bytes of the file.
    pub segment_bytes: u64,
    /// Bytes of a slot.
    pub class: SlotBytes,
    /// Number of slots.
    pub slots: u32,
}

/// Bytes that are no superblock of this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SuperblockError {
    /// Damaged, or never written.
    #[error("the superblock is damaged")]
    Damaged,
    /// Whole, and of another format.
    #[error("the superblock has format {0}")]
    Version(u32),
}

impl Superblock {
    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> Box<[u8; SUPERBLOCK_BYTES]> {
        let mut bytes = Box::new([0; SUPERBLOCK_BYTES]);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(12, &SEGMENT_FORMAT.to_le_bytes());
        put(16, &self.store.0);
        put(32, &self.shard.to_le_bytes());
        put(36, &self.segment.to_le_bytes());
        put(40, &self.generation.to_le_bytes());
        put(48, &self.segment_bytes.to_le_bytes());
        put(56, &self.class.get().to_le_bytes());
        put(64, &self.slots.to_le_bytes());
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it, and checks that it does not contradict itself. Whether it is the one that was looked for is the
    /// caller's to check.
    ///
    /// # Errors
    /// When these bytes are damaged or of another format.
    pub fn decode(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<Self, SuperblockError> {
        if bytes[..8] != MAGIC || crc32fast::hash(&bytes[12..]) != word(bytes, 8) {
            return Err(SuperblockError::Damaged);
        }
        if word(bytes, 12) != SEGMENT_FORMAT {
            return Err(SuperblockError::Version(word(bytes, 12)));
        }
        let superblock = Self {
            store: StoreId(array(bytes, 16)),
            shard: word(bytes, 32),
            segment: word(bytes, 36),
            generation: long(bytes, 40),
            segment_bytes: long(bytes, 48),
            class: SlotBytes::from_stored(long(bytes, 56)).ok_or(SuperblockError::Damaged)?,
            slots: word(bytes, 64),
        };
        let size = superblock.segment_bytes;
        let sound = SEGMENT_BYTES_RANGE.contains(&size)
            && size.is_multiple_of(SUPERBLOCK_BYTES as u64)
            && geometry(size, 0).slots_per_segment(superblock.class) == superblock.slots
            && superblock.slots > 0;
        if sound { Ok(superblock) } else { Err(SuperblockError::Damaged) }
    }
}

/// The geometry of a tier of `segments_max` segments: each has a superblock at both ends.
#[must_use]
pub fn geometry(segment_bytes: u64, segments_max: u32) -> SlotsConfig {
    SlotsConfig {
        segment_bytes,
        segment_head_bytes: SUPERBLOCK_BYTES as u64,
        segment_tail_bytes: SUPERBLOCK_BYTES as u64,
        segments_max,
    }
}

/// What the header of a block in this slot must name.
#[must_use]
pub fn location(slot: Slot) -> Location {
    Location { segment: u64::from(slot.segment), slot: u64::from(slot.index) }
}

/// The file name of a segment.
#[must_use]
pub fn file_name(segment: u32) -> String {
    format!("seg-{segment:08x}{SUFFIX}")
}

/// The segment that a file name is of.
#[must_use]
pub fn segment_of(file_name: &str) -> Option<u32> {
    let digits = file_name.strip_prefix("seg-")?.strip_suffix(SUFFIX)?;
    let segment = u32::from_str_radix(digits, 16).ok()?;
    (self::file_name(segment) == file_name).then_some(segment)
}

fn array<const N: usize>(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has N bytes")
}

fn word(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn long(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            store: StoreId([7; 16]),
            shard: 1,
            segment: 2,
            generation: 3,
            segment_bytes: 1 << 20,
            class: SlotBytes::for_payload(1 << 16),
            slots: 14,
        }
    }

    #[test]
    fn round_trips_and_notices_every_flipped_bit() {
        let bytes = sample().encode();
        assert_eq!(Superblock::decode(&bytes), Ok(sample()));
        for at in 0..SUPERBLOCK_BYTES {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert_eq!(Superblock::decode(&damaged), Err(SuperblockError::Damaged), "byte {at}");
        }
    }

    #[test]
    fn another_version_and_contradictions_are_told_apart() {
        let change = |at: usize, value: &[u8]| {
            let mut bytes = sample().encode();
            bytes[at..at + value.len()].copy_from_slice(value);
            let crc = crc32fast::hash(&bytes[12..]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            Superblock::decode(&bytes)
        };
        assert_eq!(change(12, &9u32.to_le_bytes()), Err(SuperblockError::Version(9)));
        for (at, value) in [(48, u64::MAX), (48, 0), (56, 0), (56, 4097), (56, !4095), (64, 0)] {
            assert_eq!(change(at, &value.to_le_bytes()), Err(SuperblockError::Damaged), "{at} {value}");
        }
    }

    #[test]
    fn names_go_both_ways() {
        assert_eq!(file_name(0xab), "seg-000000ab.hearth");
        assert_eq!(segment_of("seg-000000ab.hearth"), Some(0xab));
        for other in [
            "seg-ab.hearth",
            "seg-000000AB.hearth",
            "seg-000000ab.hearth.new",
            "FORMAT",
            "seg-+00000ab.hearth",
        ] {
            assert_eq!(segment_of(other), None, "{other}");
        }
        let id = StoreId([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("+5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5".parse::<StoreId>().is_err());
    }
}
