//! Where blocks can be: a tier of the store, or the pages of an engine.

use std::sync::Arc;

use hearth_proto::limit::NAME_BYTES_MAX;
use hearth_proto::v1::Tier;

/// Places of one index that hold something. A place that holds nothing is reused.
pub const PLACES_MAX: usize = 4096;

/// A place's number within one index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PlaceId(u16);

/// A tier, and whose.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) tier: Tier,
    /// Empty for the node's own tiers; else the name that the engine gave itself.
    pub(crate) holder: Arc<str>,
    /// Blocks held.
    entries: u64,
}

/// All places that the feed has named.
#[derive(Debug, Default)]
pub(crate) struct Places {
    list: Vec<Place>,
    engine: PlaceSet,
    pinned: PlaceSet,
    nvme: PlaceSet,
}

impl Places {
    /// The number of a place, new or known. `None` when the table is full or the name too long.
    pub(crate) fn intern(&mut self, tier: Tier, holder: &str) -> Option<PlaceId> {
        if let Some(id) = self.find(tier, holder) {
            return Some(id);
        }
        if holder.len() > NAME_BYTES_MAX {
            return None;
        }
        let place = Place { tier, holder: holder.into(), entries: 0 };
        let index = match self.list.iter().position(|place| place.entries == 0) {
            Some(index) => {
                self.list[index] = place;
                index
            }
            None if self.list.len() < PLACES_MAX => {
                self.list.push(place);
                self.list.len() - 1
            }
            None => return None,
        };
        let id = PlaceId(u16::try_from(index).expect("PLACES_MAX fits 16 bits"));
        for (mask, of) in
            [(&mut self.engine, Tier::Engine), (&mut self.pinned, Tier::Pinned), (&mut self.nvme, Tier::Nvme)]
        {
            *mask = if tier == of { mask.with(id) } else { mask.without(id) };
        }
        Some(id)
    }

    /// The number of a known place.
    pub(crate) fn find(&self, tier: Tier, holder: &str) -> Option<PlaceId> {
        let index = self.list.iter().position(|place| place.tier == tier && *place.holder == *holder)?;
        Some(PlaceId(u16::try_from(index).expect("PLACES_MAX fits 16 bits")))
    }

    pub(crate) fn place(&self, id: PlaceId) -> &Place {
        &self.list[usize::from(id.0)]
    }

    /// Blocks came to a place.
    pub(crate) fn came(&mut self, id: PlaceId, blocks: u64) {
        self.list[usize::from(id.0)].entries += blocks;
    }

    /// Blocks left a place.
    pub(crate) fn went(&mut self, id: PlaceId, blocks: u64) {
        let entries = &mut self.list[usize::from(id.0)].entries;
        *entries = entries.checked_sub(blocks).expect("only blocks that came can go");
    }

    /// The part of `set` that is engines' pages.
    pub(crate) fn engines_of(&self, set: &PlaceSet) -> PlaceSet {
        set.and(&self.engine)
    }

    /// The fastest tier of the store in `set`.
    pub(crate) fn store_tier_of(&self, set: &PlaceSet) -> Option<Tier> {
        if set.meets(&self.pinned) {
            Some(Tier::Pinned)
        } else if set.meets(&self.nvme) {
            Some(Tier::Nvme)
        } else {
            None
        }
    }
}

/// A set of places: one word while there are up to 64 of them, a slice of words beyond.
///
/// The slice form is used only where a number above 63 is in the set and never ends in a zero word, so that equal
/// sets are equal values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlaceSet {
    Word(u64),
    Words(Box<[u64]>),
}

impl Default for PlaceSet {
    fn default() -> Self {
        Self::Word(0)
    }
}

impl PlaceSet {
    fn words(&self) -> &[u64] {
        match self {
            Self::Word(word) => std::slice::from_ref(word),
            Self::Words(words) => words,
        }
    }

    fn from_words(mut words: Vec<u64>) -> Self {
        while words.len() > 1 && words.last() == Some(&0) {
            words.pop();
        }
        match words.as_slice() {
            [] => Self::Word(0),
            [word] => Self::Word(*word),
            _ => Self::Words(words.into_boxed_slice()),
        }
    }

    pub(crate) fn contains(&self, id: PlaceId) -> bool {
        let (word, bit) = id.bit();
        self.words().get(word).is_some_and(|w| w & bit != 0)
    }

    #[must_use]
    pub(crate) fn with(&self, id: PlaceId) -> Self {
        let (word, bit) = id.bit();
        if let (Self::Word(only), 0) = (self, word) {
            return Self::Word(only | bit);
        }
        let mut words = self.words().to_vec();
        words.resize(words.len().max(word + 1), 0);
        words[word] |= bit;
        Self::from_words(words)
    }

    #[must_use]
    pub(crate) fn without(&self, id: PlaceId) -> Self {
        let (word, bit) = id.bit();
        if let Self::Word(only) = self {
            return Self::Word(if word == 0 { only & !bit } else { *only });
        }
        let mut words = self.words().to_vec();
        if let Some(w) = words.get_mut(word) {
            *w &= !bit;
        }
        Self::from_words(words)
    }

    #[must_use]
    pub(crate) fn and(&self, other: &Self) -> Self {
        if let (Self::Word(a), Self::Word(b)) = (self, other) {
            return Self::Word(a & b);
        }
        Self::from_words(self.words().iter().zip(other.words()).map(|(a, b)| a & b).collect())
    }

    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.words().iter().zip(other.words()).any(|(a, b)| a & b != 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Word(0))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = PlaceId> + '_ {
        self.words().iter().enumerate().flat_map(|(index, &word)| {
            (0..64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| PlaceId(u16::try_from(index * 64 + bit).expect("PLACES_MAX fits 16 bits")))
        })
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::Word(_) => 0,
            Self::Words(words) => size_of_val::<[u64]>(words),
        }
    }
}

impl PlaceId {
    fn bit(self) -> (usize, u64) {
        (usize::from(self.0) / 64, 1 << (self.0 % 64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ids: &[u16]) -> PlaceSet {
        ids.iter().fold(PlaceSet::default(), |set, &id| set.with(PlaceId(id)))
    }

    proptest! {
        #[test]
        fn sets_behave_like_sets(a in prop::collection::btree_set(0u16..200, 0..20), b in prop::collection::btree_set(0u16..200, 0..20)) {
            let (va, vb): (Vec<u16>, Vec<u16>) = (a.iter().copied().collect(), b.iter().copied().collect());
            let both: Vec<u16> = a.intersection(&b).copied().collect();
            prop_assert_eq!(set(&va).and(&set(&vb)), set(&both));
            prop_assert_eq!(set(&va).meets(&set(&vb)), !both.is_empty());
            prop_assert_eq!(set(&va).iter().map(|id| id.0).collect::<Vec<_>>(), va.clone());
            let none = vb.iter().fold(set(&vb), |set, &id| set.without(PlaceId(id)));
            prop_assert!(none.is_empty());
            prop_assert_eq!(va.iter().all(|&id| set(&va).contains(PlaceId(id))), true);
        }
    }

    #[test]
    fn a_place_that_holds_nothing_is_reused() {
        let mut places = Places::default();
        let first = places.intern(Tier::Engine, "e1").expect("room");
        places.came(first, 3);
        let second = places.intern(Tier::Engine, "e2").expect("room");
        assert_ne!(first, second);
        places.came(second, 1);
        places.went(first, 3);
        assert_eq!(places.intern(Tier::Pinned, ""), Some(first));
        assert_eq!(places.find(Tier::Engine, "e1"), None);
        assert_eq!(places.store_tier_of(&PlaceSet::default().with(first)), Some(Tier::Pinned));
        assert!(places.engines_of(&PlaceSet::default().with(first)).is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut places = Places::default();
        for n in 0..PLACES_MAX {
            let id = places.intern(Tier::Engine, &format!("e{n}")).expect("room");
            places.came(id, 1);
        }
        assert_eq!(places.intern(Tier::Engine, "one more"), None);
        assert_eq!(Places::default().intern(Tier::Engine, &"x".repeat(NAME_BYTES_MAX + 1)), None);
    }
}
