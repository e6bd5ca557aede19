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
