//! Who uses which page, and which pages still hold blocks that another request may use.
//!
//! A page is free, held by requests and write-backs, or idle: held by nobody, but it still has a block that can be
//! found by its key. Idle pages are given up when a page is needed, the end of a run before what it follows, least
//! recently used first. It knows no bytes and no clock.
//!
//! Two rules hold together: a page before a held one counts as held, and a published page outlives the pages
//! published behind it. So every published page can be reached from the root of its run, and every idle page can be
//! given up.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use hearth_connector::proto::key::BlockKey;

use super::pages::PageId;

/// The pages of an engine by use.
#[derive(Debug)]
pub struct Pool {
    slots: Vec<Slot>,
    free: Vec<PageId>,
    published: HashMap<BlockKey, PageId>,
    /// Idle pages that nothing published follows, in the order of giving up.
    ends: BTreeSet<(u64, PageId)>,
    idle: usize,
    clock: u64,
    given_up: Vec<BlockKey>,
}

#[derive(Debug, Default)]
struct Slot {
    holders: u32,
    block: Option<Block>,
}

/// What a published page holds.
#[derive(Debug)]
struct Block {
    key: BlockKey,
    parent: Option<PageId>,
    /// Published pages that follow this one.
    children: u32,
    /// Those of them that are not idle.
    children_held: u32,
    used: u64,
    stored: bool,
}

/// How many pages are in which use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolCounts {
    /// Hold nothing.
    pub free: usize,
    /// Held by nobody, but findable.
    pub idle: usize,
    /// Held.
    pub held: usize,
}

impl Pool {
    /// `count` free pages.
    pub fn new(count: usize) -> Self {
        let count = u32::try_from(count).expect("pages are far fewer than 2^32");
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
            free: (0..count).rev().map(PageId).collect(),
            published: HashMap::new(),
            ends: BTreeSet::new(),
            idle: 0,
            clock: 0,
            given_up: vec![],
        }
    }

    /// Pages that [`Self::take`] can give.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle
    }

    /// How many pages are in which use.
    pub fn counts(&self) -> PoolCounts {
        let (free, idle) = (self.free.len(), self.idle);
        PoolCounts { free, idle, held: self.slots.len() - free - idle }
    }

    /// A page with nothing in it, held once. Gives up an idle one when none is free.
    pub fn take(&mut self) -> Option<PageId> {
        let page = self.free.pop().or_else(|| self.give_up())?;
        let slot = self.slot(page);
        assert!(slot.holders == 0 && slot.block.is_none(), "a free page is nobody's");
        slot.holders = 1;
        Some(page)
    }

    /// The page that holds a block, if any. Not held by this.
    pub fn find(&self, key: &BlockKey) -> Option<PageId> {
        self.published.get(key).copied()
    }

    /// Whether a published page is idle.
    pub fn is_idle(&self, page: PageId) -> bool {
        self.slots[page.0 as usize].is_unused()
    }

    /// Whether exactly one holds a page.
    pub fn is_held_once(&self, page: PageId) -> bool {
        self.slots[page.0 as usize].holders == 1
    }

    /// One more holder of a published or held page.
    pub fn hold(&mut self, page: PageId) {
        let was_idle = self.is_idle(page);
        self.slot(page).holders += 1;
        if was_idle {
            self.leave_idle(page);
        }
    }

    /// One holder less. The last one leaves a published page idle and any other free.
    pub fn release(&mut self, page: PageId) {
        self.clock += 1;
        let slot = self.slot(page);
        slot.holders = slot.holders.checked_sub(1).expect("a page is released once per holder");
        if slot.is_unused() {
            if slot.block.is_some() {
                self.become_idle(page);
            } else {
                self.free.push(page);
            }
        }
    }

    /// Pages before one that was idle and is held now are no longer idle.
    fn leave_idle(&mut self, page: PageId) {
        let mut next = Some(page);
        while let Some(page) = next {
            let block = self.slots[page.0 as usize].block.as_ref().expect("only published pages are idle");
            self.idle -= 1;
            self.ends.remove(&(block.used, page));
            next = block.parent.filter(|&parent| {
                let was_idle = self.is_idle(parent);
                self.published_block(parent).children_held += 1;
                was_idle
            });
        }
    }

    /// Pages before one that has become idle may be idle, too.
    fn become_idle(&mut self, page: PageId) {
        let clock = self.clock;
        let mut next = Some(page);
        while let Some(page) = next {
            let block = self.published_block(page);
            block.used = clock;
            let (is_end, parent) = (block.children == 0, block.parent);
            self.idle += 1;
            if is_end {
                self.ends.insert((clock, page));
            }
            next = parent.filter(|&parent| {
                self.published_block(parent).children_held -= 1;
                self.is_idle(parent)
            });
        }
    }

    /// Makes a full page findable. `parent` is the page before it in its run, held by the same request and published.
    ///
    /// When another page already holds this block, that one is returned, held in place of `page`, which is released.
    pub fn publish(&mut self, page: PageId, key: BlockKey, parent: Option<PageId>) -> PageId {
        if let Some(other) = self.find(&key) {
            assert_ne!(other, page, "a page is published once");
            self.hold(other);
            self.release(page);
            return other;
        }
        if let Some(parent) = parent {
            let block = self.published_block(parent);
            block.children += 1;
            block.children_held += 1;
        }
        let slot = self.slot(page);
        assert!(slot.holders > 0 && slot.block.is_none(), "a page is published by who filled it");
        slot.block = Some(Block { key, parent, children: 0, children_held: 0, used: 0, stored: false });
        self.published.insert(key, page);
        page
    }

    /// Whether the store is known to have the block of a published page, or to be about to.
    pub fn is_stored(&self, page: PageId) -> bool {
        self.slots[page.0 as usize].block.as_ref().is_some_and(|block| block.stored)
    }

    /// Notes whether the store has the block of a published page.
    pub fn set_stored(&mut self, page: PageId, stored: bool) {
        if let Some(block) = &mut self.slot(page).block {
            block.stored = stored;
        }
    }

    /// Keys of the blocks given up since the last call.
    pub fn drain_given_up(&mut self) -> Vec<BlockKey> {
        std::mem::take(&mut self.given_up)
    }

    fn give_up(&mut self) -> Option<PageId> {
        let (_, page) = self.ends.pop_first()?;
        let block = self.slot(page).block.take().expect("idle pages are published");
        self.idle -= 1;
        self.published.remove(&block.key);
        self.given_up.push(block.key);
        if let Some(parent) = block.parent {
            let block = self.published_block(parent);
            block.children -= 1;
            let (is_end, used) = (block.children == 0, block.used);
            if is_end && self.is_idle(parent) {
                self.ends.insert((used, parent));
            }
        }
        Some(page)
    }

    fn slot(&mut self, page: PageId) -> &mut Slot {
        &mut self.slots[page.0 as usize]
    }

    fn published_block(&mut self, page: PageId) -> &mut Block {
        self.slot(page)
            .block
            .as_mut()
            .expect("runs are published from their root on, and given up from their end")
    }
}

impl Slot {
    /// Nobody holds the page or one behind it.
    fn is_unused(&self) -> bool {
        self.holders == 0 && self.block.as_ref().is_none_or(|block| block.children_held == 0)
    }
}
