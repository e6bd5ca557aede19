//! The allocator against a model that keeps a plain set of taken slots: none is handed out twice, none is lost, and
//! the bytes never exceed the budget.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SEGMENT_BYTES: u64 = 256 * 1024;
const SEGMENTS_MAX: u32 = 5;

fn config() -> SlotsConfig {
    SlotsConfig {
        segment_bytes: SEGMENT_BYTES,
        segment_head_bytes: 4096,
        segment_tail_bytes: 4096,
        segments_max: SEGMENTS_MAX,
    }
}

fn class(payload_pages: u64) -> SlotBytes {
    SlotBytes::for_payload(payload_pages * 4096)
}

#[test]
fn a_slot_holds_header_and_padded_payload() {
    assert_eq!(SlotBytes::for_payload(1).get(), 8192);
    assert_eq!(SlotBytes::for_payload(4096).get(), 8192);
    assert_eq!(SlotBytes::for_payload(4097).get(), 12288);
    assert_eq!(SlotBytes::for_payload(4097).payload_area(), 8192);
    assert_eq!(SlotBytes::from_stored(4096), None);
    assert_eq!(SlotBytes::from_stored(8193), None);
    assert_eq!(SlotBytes::from_stored(8192), Some(class(1)));
}

#[test]
fn an_empty_segment_serves_its_class_again_and_then_another() {
    let mut slots = Slots::new(SlotsConfig { segments_max: 1, ..config() });
    let first = slots.take(class(1)).expect("free");
    assert!(first.segment_is_new);
    slots.give(first.slot);
    let again = slots.take(class(1)).expect("free");
    assert_eq!(again, Taken { slot: first.slot, segment_is_new: false });
    assert_eq!(slots.take(class(2)), None, "held by the first class");
    let holder = slots.emptiest_segment_of_other_class(class(2)).expect("the only one");
    assert_eq!((holder.segment, holder.used), (0, 1));
    for slot in slots.taken_in(0).collect::<Vec<_>>() {
        slots.give(slot);
    }
    assert!(slots.take(class(2)).expect("free").segment_is_new);
    assert_eq!(slots.classes().collect::<Vec<_>>(), [class(2)]);
}

#[test]
fn a_closed_segment_hands_out_nothing_until_it_is_new_again() {
    let mut slots = Slots::new(SlotsConfig { segments_max: 1, ..config() });
    let slot = slots.take(class(1)).expect("free").slot;
    slots.close(0);
    assert_eq!(slots.take(class(1)), None);
    slots.give(slot);
    assert!(slots.take(class(1)).expect("free").segment_is_new);
}

#[test]
fn a_bound_on_segments_holds_and_can_be_lifted() {
    let mut slots = Slots::new(config());
    let big = class(50);
    assert!(slots.take(big).is_some());
    slots.limit_assigned(1);
    assert_eq!(slots.take(big), None);
    assert_eq!(slots.assigned_bytes(), SEGMENT_BYTES);
    slots.limit_assigned(u32::MAX);
    assert!(slots.take(big).is_some());
    slots.clear(0);
    assert_eq!((slots.assigned(), slots.used_bytes()), (1, big.get()));
}

#[test]
fn what_cannot_be_restored_is_refused() {
    let mut slots = Slots::new(config());
    let slot = Slot { segment: 1, index: 3 };
    assert_eq!(slots.restore(slot, class(1)), Ok(()));
    assert_eq!(slots.restore(slot, class(1)), Err(RestoreError::Taken(slot)));
    assert!(matches!(slots.restore(slot, class(2)), Err(RestoreError::Class { segment: 1, .. })));
    for outside in [Slot { segment: 5, index: 0 }, Slot { segment: 1, index: 31 }] {
        assert_eq!(slots.restore(outside, class(1)), Err(RestoreError::OutOfRange(outside)));
    }
    assert_eq!(slots.take(class(1)).map(|taken| taken.slot), Some(Slot { segment: 1, index: 0 }));
    assert_eq!(slots.take(class(1_000)), None, "larger than a segment");
}

#[derive(Clone, Debug)]
enum Step {
    Take(u64),
    Give(prop::sample::Index),
    Close(u32),
    Clear(u32),
    Limit(u32),
    Restore { slot: Slot, pages: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let pages = prop::sample::select(vec![1u64, 2, 7, 40]);
    let slot = (0..SEGMENTS_MAX + 1, 0..40u32).prop_map(|(segment, index)| Slot { segment, index });
    prop_oneof![
        8 => pages.clone().prop_map(Step::Take),
        6 => any::<prop::sample::Index>().prop_map(Step::Give),
        1 => (0..SEGMENTS_MAX).prop_map(Step::Close),
        1 => (0..SEGMENTS_MAX).prop_map(Step::Clear),
        1 => (0..SEGMENTS_MAX + 1).prop_map(Step::Limit),
        2 => (slot, pages).prop_map(|(slot, pages)| Step::Restore { slot, pages }),
    ]
}

/// Byte ranges of the slots taken.
type Model = BTreeMap<Slot, (SlotBytes, u64)>;

fn apply(slots: &mut Slots, model: &mut Model, step: Step) {
    match step {
        Step::Take(pages) => {
            let Some(taken) = slots.take(class(pages)) else { return };
            let at = slots.offset(taken.slot);
            assert_eq!(model.insert(taken.slot, (class(pages), at)), None, "handed out twice");
        }
        Step::Give(pick) => {
            let Some(&slot) =
                (!model.is_empty()).then(|| model.keys().nth(pick.index(model.len()))).flatten()
            else {
                return;
            };
            model.remove(&slot);
            slots.give(slot);
        }
        Step::Close(segment) => slots.close(segment),
        Step::Clear(segment) => {
            model.retain(|slot, _| slot.segment != segment);
            slots.clear(segment);
        }
        Step::Limit(max) => slots.limit_assigned(max),
        Step::Restore { slot, pages } => {
            if slots.restore(slot, class(pages)).is_ok() {
                let at = slots.offset(slot);
                assert_eq!(model.insert(slot, (class(pages), at)), None, "restored over a taken slot");
            }
        }
    }
}

fn check(slots: &Slots, model: &Model) {
    let used: u64 = model.values().map(|(class, _)| class.get()).sum();
    assert_eq!(slots.used_bytes(), used);
    assert!(slots.assigned_bytes() <= SEGMENT_BYTES * u64::from(SEGMENTS_MAX));
    let mut ranges: Vec<_> = model.values().map(|(class, at)| (*at, at + class.get())).collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "slots overlap");
    for (slot, (class, at)) in model {
        assert_eq!(slots.offset(*slot), *at, "a taken slot stays where it is");
        assert_eq!(slots.slot_at(*at), Some(*slot));
        assert_eq!(slots.slot_at(at + class.get() - 1), Some(*slot));
        let end = at % SEGMENT_BYTES + class.get();
        assert!(at % SEGMENT_BYTES >= 4096 && end <= SEGMENT_BYTES - 4096, "reaches outside its segment");
    }
    let listed: Vec<_> = (0..SEGMENTS_MAX).flat_map(|segment| slots.taken_in(segment)).collect();
    assert_eq!(listed, model.keys().copied().collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn agrees_with_a_set_of_taken_slots(steps in prop::collection::vec(step(), 1..300)) {
        let (mut slots, mut model) = (Slots::new(config()), Model::new());
        for step in steps {
            apply(&mut slots, &mut model, step);
            check(&slots, &model);
        }
        for slot in model.into_keys() {
            slots.give(slot);
        }
        prop_assert_eq!(slots.used_bytes(), 0);
        slots.limit_assigned(SEGMENTS_MAX);
        let full = u64::from(SEGMENTS_MAX) * u64::from(config().slots_per_segment(class(3)));
        let mut count = 0;
        while slots.take(class(3)).is_some() {
            count += 1;
        }
        prop_assert_eq!(count, full, "every byte given back serves any class");
    }
}
