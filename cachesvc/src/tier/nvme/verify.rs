//! Whether bytes that came from a device are the block that was asked for.

use std::num::NonZeroUsize;

use hearth_proto::header::{BlockHeader, HEADER_BYTES, RANGES_MAX};
use hearth_proto::limit::PAYLOAD_BYTES_MAX;
use hearth_transfer::{RegionSlice, digest_ranges};

use crate::slots::{Slot, SlotBytes};
use crate::tier::nvme::command::{BlockName, Damage};
use crate::tier::nvme::format::location;

/// Reads the header that lay in `slot`, of a segment of `class`.
pub(super) fn header(
    bytes: &[u8; HEADER_BYTES],
    slot: Slot,
    class: SlotBytes,
) -> Result<BlockHeader, Damage> {
    let header = BlockHeader::decode(bytes)?;
    if header.location != location(slot) {
        return Err(Damage::Misplaced);
    }
    if SlotBytes::for_payload(header.payload_bytes) != class {
        return Err(Damage::OtherBlock);
    }
    Ok(header)
}

/// Whether a header is of the block that was asked for.
pub(super) fn named(header: &BlockHeader, expect: &BlockName) -> Result<(), Damage> {
    if BlockName::from(header) == *expect { Ok(()) } else { Err(Damage::OtherBlock) }
}

/// Whether every checksum of the header is that of the payload as it landed.
pub(super) fn payload(header: &BlockHeader, area: &RegionSlice) -> Result<(), Damage> {
    let length = usize::try_from(header.payload_bytes).ok();
    let range = usize::try_from(header.range_bytes).ok().and_then(NonZeroUsize::new);
    let (Some(length), Some(range)) = (length, range) else { return Err(Damage::OtherBlock) };
    let Ok(bytes) = area.slice(..length) else { return Err(Damage::OtherBlock) };
    let landed = digest_ranges(&bytes, range);
    let differs = landed.iter().zip(&header.range_crcs).position(|(landed, written)| landed != written);
    match differs {
        Some(range) => Err(Damage::Payload { range: u32::try_from(range).expect("at most RANGES_MAX") }),
        None if landed.len() == header.range_crcs.len() => Ok(()),
        None => Err(Damage::OtherBlock),
    }
}

/// Whether a header can be written: it does not contradict itself.
pub(super) fn well_formed(header: &BlockHeader) -> bool {
    let ranges = u64::try_from(header.range_crcs.len()).expect("a length fits 64 bits");
    (1..=PAYLOAD_BYTES_MAX).contains(&header.payload_bytes)
        && header.range_bytes > 0
        && header.range_crcs.len() <= RANGES_MAX
        && header.payload_bytes.div_ceil(u64::from(header.range_bytes)) == ranges
        && header.parent.is_some() == (header.depth > 0)
}
