//! What is held of one chain of blocks, and the pass over a chain that finds it out.

use std::sync::Arc;

use hearth_proto::v1::Tier;

use super::places::{PlaceId, PlaceSet, Places};

/// What is held of one chain of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Engines that hold a beginning of the chain in their own pages, each with the number of blocks.
    pub engines: Vec<HolderMatch>,
    /// Which blocks the store can load, in order.
    pub store: Vec<StoreSpan>,
}

/// How much of a chain an engine holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderMatch {
    /// The name that the engine gave itself.
    pub holder: Arc<str>,
    /// Blocks from the first on.
    pub blocks: usize,
}

/// Consecutive blocks of a chain in one tier of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSpan {
    /// Position of the first one in the chain.
    pub first: usize,
    /// Position after the last one.
    pub end: usize,
    /// The fastest tier that has them.
    pub tier: Tier,
}

/// Blocks that the store can load, by tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loadable {
    /// From pinned memory.
    pub pinned: usize,
    /// From NVMe.
    pub nvme: usize,
}

impl Match {
    /// Blocks that `holder` holds from the first on.
    pub fn held_by(&self, same: impl Fn(&str) -> bool) -> usize {
        self.engines.iter().filter(|held| same(&held.holder)).map(|held| held.blocks).max().unwrap_or(0)
    }

    /// What the store can add, without a hole, to the first `held` blocks.
    pub fn loadable_after(&self, held: usize) -> Loadable {
        let mut loadable = Loadable::default();
        let mut next = held;
        for span in self.store.iter().skip_while(|span| span.end <= held) {
            if span.first > next {
                break;
            }
            let blocks = span.end - next;
            match span.tier {
                Tier::Pinned => loadable.pinned += blocks,
                _ => loadable.nvme += blocks,
            }
            next = span.end;
        }
        loadable
    }
}

/// One pass over a chain.
pub(super) struct Walk<'a> {
    places: &'a Places,
    /// Blocks passed.
    pub(super) blocks: usize,
    /// Engines that hold all of them. `None` before the first block.
    alive: Option<PlaceSet>,
    found: Match,
}

impl<'a> Walk<'a> {
    pub(super) fn new(places: &'a Places) -> Self {
        Self { places, blocks: 0, alive: None, found: Match::default() }
    }

    /// Passes `blocks` that `holders` hold. Tells whether it is worth going on.
    pub(super) fn step(&mut self, blocks: usize, holders: &PlaceSet) -> bool {
        let engines = self.places.engines_of(holders);
        let alive = match self.alive.take() {
            None => engines,
            Some(before) => {
                let after = before.and(&engines);
                if after != before {
                    let ended: Vec<PlaceId> = before.iter().filter(|&id| !after.contains(id)).collect();
                    ended.into_iter().for_each(|id| self.end(id));
                }
                after
            }
        };
        let tier = self.places.store_tier_of(holders);
        if tier.is_none() && alive.is_empty() {
            self.alive = Some(alive);
            return false;
        }
        let first = self.blocks;
        self.blocks += blocks;
        if let Some(tier) = tier {
            match self.found.store.last_mut() {
                Some(span) if span.end == first && span.tier == tier => span.end = self.blocks,
                _ => self.found.store.push(StoreSpan { first, end: self.blocks, tier }),
            }
        }
        self.alive = Some(alive);
        true
    }

    /// The engine holds what was passed and no more.
    fn end(&mut self, id: PlaceId) {
        let holder = Arc::clone(&self.places.place(id).holder);
        self.found.engines.push(HolderMatch { holder, blocks: self.blocks });
    }

    pub(super) fn finish(mut self) -> Match {
        for id in self.alive.take().unwrap_or_default().iter() {
            self.end(id);
        }
        self.found
    }
}
