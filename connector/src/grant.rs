//! Pure: checks that what a node answers is what it was asked and lies where it may.

use std::collections::BTreeMap;
use std::ops::Range;

use hearth_proto::header::{Generation, HEADER_BYTES};
use hearth_proto::v1;

use crate::error::{Miss, Violation};
use crate::local::{Place, SessionMemory, Slot};
use crate::store::Tier;

/// A lease as granted.
#[derive(Debug)]
pub(crate) struct Leased {
    pub(crate) id: u64,
    pub(crate) slots: Vec<Slot>,
    pub(crate) tiers: Vec<Tier>,
}

/// A reservation as granted.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) id: u64,
    pub(crate) indices: Vec<usize>,
    pub(crate) slots: Vec<Slot>,
}

/// Reads an answer to Match for `asked` blocks.
pub(crate) fn matched(answer: &v1::Matched, asked: usize) -> Result<Vec<Tier>, Violation> {
    if answer.tiers.len() > asked {
        return Err(Violation::Columns);
    }
    answer.tiers.iter().map(|&tier| Tier::from_wire(tier)).collect()
}

/// Reads an answer to Acquire for `asked` blocks of `payload_bytes` each: the lease, if any, and why it is short.
pub(crate) fn acquired(
    answer: &v1::Acquired,
    asked: usize,
    payload_bytes: usize,
    memory: &SessionMemory,
) -> Result<(Option<Leased>, Option<Miss>), Violation> {
    let count = answer.region.len();
    let columns = [answer.offset.len(), answer.generation.len(), answer.tier.len()];
    if count > asked || columns.iter().any(|&len| len != count) {
        return Err(Violation::Columns);
    }
    if (answer.lease == 0) != (count == 0) {
        return Err(Violation::Nameless);
    }
    let short = (count < asked).then(|| Miss::from_wire(answer.miss).unwrap_or(Miss::Absent));
    if count == 0 {
        return Ok((None, short));
    }
    let places = places(&answer.region, &answer.offset, &answer.generation);
    let slots = places.map(|place| memory.slot(place, payload_bytes)).collect::<Result<_, _>>()?;
    let tiers = answer.tier.iter().map(|&tier| Tier::from_wire(tier)).collect::<Result<_, _>>()?;
    Ok((Some(Leased { id: answer.lease, slots, tiers }), short))
}

/// Reads an answer to Reserve for the blocks `asked` of a chain.
pub(crate) fn reserved(
    answer: &v1::Reserved,
    asked: &Range<usize>,
    payload_bytes: usize,
    memory: &SessionMemory,
) -> Result<Option<Granted>, Violation> {
    let count = answer.index.len();
    let columns = [answer.region.len(), answer.offset.len(), answer.generation.len()];
    let refused = usize::try_from(answer.refused).unwrap_or(usize::MAX);
    if columns.iter().any(|&len| len != count) || count.saturating_add(refused) > asked.len() {
        return Err(Violation::Columns);
    }
    if (answer.reservation == 0) != (count == 0) {
        return Err(Violation::Nameless);
    }
    if count == 0 {
        return Ok(None);
    }
    apart(answer, payload_bytes)?;
    let places = places(&answer.region, &answer.offset, &answer.generation);
    let mut slots = BTreeMap::new();
    for (&raw, place) in answer.index.iter().zip(places) {
        let index = usize::try_from(raw).ok().filter(|index| asked.contains(index));
        let index = index.ok_or(Violation::Index(raw))?;
        if slots.insert(index, memory.slot(place, payload_bytes)?).is_some() {
            return Err(Violation::Index(raw));
        }
    }
    let (indices, slots) = slots.into_iter().unzip();
    Ok(Some(Granted { id: answer.reservation, indices, slots }))
}

fn places<'a>(
    regions: &'a [u32],
    offsets: &'a [u64],
    generations: &'a [u64],
) -> impl Iterator<Item = Place> + 'a {
    regions.iter().zip(offsets).zip(generations).map(|((&region, &offset), &generation)| Place {
        region,
        offset,
        generation: Generation(generation),
    })
}

/// No two slots to be written share a byte.
fn apart(answer: &v1::Reserved, payload_bytes: usize) -> Result<(), Violation> {
    let mut starts: Vec<(u32, u64)> =
        answer.region.iter().copied().zip(answer.offset.iter().copied()).collect();
    starts.sort_unstable();
    let slot_bytes = (HEADER_BYTES + payload_bytes) as u64;
    for pair in starts.windows(2) {
        let ((region_a, a), (region_b, b)) = (pair[0], pair[1]);
        if region_a == region_b && b - a < slot_bytes {
            return Err(Violation::Slot { region: region_b, offset: b });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_transfer::Region;
    use proptest::prelude::*;

    const PAYLOAD_BYTES: usize = 8192;
    const REGION_BYTES: u64 = 64 << 10;

    fn memory() -> SessionMemory {
        let region = Region::heap(REGION_BYTES as usize).expect("memory");
        SessionMemory::new(1, vec![(7, region)])
    }

    /// Mostly what an honest node says, so that one lie at a time gets through.
    fn place() -> impl Strategy<Value = (u32, u64)> {
        let region = prop_oneof![9 => Just(7), 1 => any::<u32>()];
        let offset = prop_oneof![9 => (0u64..20).prop_map(|slot| slot * 4096), 1 => any::<u64>()];
        (region, offset)
    }

    fn columns() -> impl Strategy<Value = (Vec<u32>, Vec<u64>)> {
        prop::collection::vec(place(), 0..6).prop_map(|places| places.into_iter().unzip())
    }

    proptest! {
        #[test]
        fn any_lease_is_within_its_region_or_refused(
            (region, offset) in columns(), lease in 0u64..2, tier in prop_oneof![9 => 1i32..4, 1 => any::<i32>()],
            lost in prop_oneof![9 => Just(0usize), 1 => 0usize..3], asked in 0usize..6,
        ) {
            let count = region.len();
            let generation = vec![1; count.saturating_sub(lost)];
            let answer = v1::Acquired { lease, region, offset, generation, tier: vec![tier; count], miss: 0 };
            if let Ok((leased, miss)) = acquired(&answer, asked, PAYLOAD_BYTES, &memory()) {
                prop_assert!(answer.offset.iter().all(|at| at + 4096 + PAYLOAD_BYTES as u64 <= REGION_BYTES));
                prop_assert_eq!(leased.map_or(0, |leased| leased.slots.len()), count);
                prop_assert_eq!(miss.is_some(), count < asked);
            }
        }

        #[test]
        fn any_reservation_has_slots_of_its_own_or_is_refused(
            (region, offset) in columns(), index in prop::collection::vec(0u32..12, 0..6), refused in 0u32..4,
        ) {
            let (count, generation) = (index.len(), vec![1; index.len()]);
            let reservation = u64::from(count > 0);
            let answer = v1::Reserved { reservation, index, region, offset, generation, refused };
            if let Ok(granted) = reserved(&answer, &(2..10), PAYLOAD_BYTES, &memory()) {
                let indices = granted.map_or_else(Vec::new, |granted| granted.indices);
                prop_assert!(indices.len() == count && indices.windows(2).all(|pair| pair[0] < pair[1]));
                let mut offsets = answer.offset.clone();
                offsets.sort_unstable();
                prop_assert!(offsets.windows(2).all(|pair| pair[1] - pair[0] >= 4096 + PAYLOAD_BYTES as u64));
            }
        }
    }
}
