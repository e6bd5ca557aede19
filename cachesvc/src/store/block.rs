//! The blocks that a shard knows, and in which order they may be evicted.

use std::collections::{BTreeSet, HashMap};

use hearth_proto::header::{BlockHeader, Generation};
use hearth_proto::key::BlockKey;

use super::message::{GrantId, Shape};
use crate::slots::{Slot, SlotBytes};

/// A block of one tenant within a shard. Reused after the block is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(u32);

/// A sealed block. It exists while at least one tier holds it.
#[derive(Debug)]
pub struct Block {
    /// Name.
    pub key: BlockKey,
    /// Block before it in its run.
    pub parent: Option<BlockKey>,
    /// Index in its run.
    pub depth: u32,
    /// Shape of its bytes.
    pub shape: Shape,
    /// Copy in the pinned tier.
    pub pinned: Pinned,
    /// Copy on NVMe.
    pub nvme: OnNvme,
    /// Leases on the pinned copy.
    pub leases: u32,
    /// A reader found the pinned copy damaged: nobody gets it any more, and it goes as soon as nothing uses it.
    pub doomed: bool,
    /// When it was last used; a parent's stamp is never below its child's when runs are used from the root.
    stamp: u64,
    /// Stamps under which it stands in the eviction orders, if it may be evicted.
    listed_pinned: Option<u64>,
    listed_nvme: Option<u64>,
}

/// State of the pinned copy.
#[expect(missing_docs, reason = "the line above each variant speaks of its fields")]
#[derive(Debug, PartialEq, Eq)]
pub enum Pinned {
    /// There is none.
    None,
    /// Being read from NVMe; these acquires wait for it.
    Filling { slot: Slot, generation: Generation, waiting: Vec<GrantId> },
    /// Readable.
    Ready { slot: Slot, generation: Generation },
}

/// State of the copy on NVMe.
#[expect(missing_docs, reason = "the line above each variant speaks of its fields")]
#[derive(Debug, PartialEq, Eq)]
pub enum OnNvme {
    /// There is none.
    None,
    /// To be written when the device has room; the header carries the checksums.
    Queued { header: Box<BlockHeader>, durable: Vec<GrantId> },
    /// Being written from the pinned slot.
    Writing { slot: Slot, generation: Generation, durable: Vec<GrantId> },
    /// Written.
    Ready { slot: Slot, generation: Generation },
}

impl Block {
    pub(crate) fn new(key: BlockKey, parent: Option<BlockKey>, depth: u32, shape: Shape) -> Self {
        Self {
            key,
            parent,
            depth,
            shape,
            pinned: Pinned::None,
            nvme: OnNvme::None,
            leases: 0,
            doomed: false,
            stamp: 0,
            listed_pinned: None,
            listed_nvme: None,
        }
    }

    /// Whether the pinned copy is damaged and nothing reads its slot any more.
    pub fn must_go(&self) -> bool {
        self.doomed && self.leases == 0 && !matches!(self.nvme, OnNvme::Writing { .. })
    }

    /// Whether the pinned copy may be dropped. A write that somebody waits for, or that reads the slot now, holds it.
    fn pinned_evictable(&self) -> bool {
        let free = match &self.nvme {
            OnNvme::None | OnNvme::Ready { .. } => true,
            OnNvme::Queued { durable, .. } => durable.is_empty(),
            OnNvme::Writing { .. } => false,
        };
        free && self.leases == 0 && matches!(self.pinned, Pinned::Ready { .. })
    }

    /// Whether the copy on NVMe may be dropped: nobody is reading it.
    fn nvme_evictable(&self) -> bool {
        matches!(self.nvme, OnNvme::Ready { .. }) && !matches!(self.pinned, Pinned::Filling { .. })
    }
}

/// An eviction order for each slot class: least recently used first.
#[derive(Debug, Default)]
pub struct Order(HashMap<SlotBytes, BTreeSet<(u64, BlockId)>>);

impl Order {
    /// The block of this class to evict next.
    pub fn oldest(&self, class: SlotBytes) -> Option<BlockId> {
        self.0.get(&class)?.first().map(|&(_, id)| id)
    }

    /// All blocks that may be evicted, in no useful order.
    pub fn all(&self) -> impl Iterator<Item = BlockId> {
        self.0.values().flatten().map(|&(_, id)| id)
    }

    fn relist(&mut self, class: SlotBytes, id: BlockId, from: Option<u64>, to: Option<u64>) {
        if from == to {
            return;
        }
        let set = self.0.entry(class).or_default();
        if let Some(stamp) = from {
            let was = set.remove(&(stamp, id));
            assert!(was, "a listed block stands in its order");
        }
        if let Some(stamp) = to {
            set.insert((stamp, id));
        }
    }
}

/// The blocks of one tenant in one shard.
#[derive(Debug, Default)]
pub struct Blocks {
    by_key: HashMap<BlockKey, BlockId>,
    blocks: Vec<Option<Block>>,
    free: Vec<BlockId>,
    clock: u64,
    /// Who may be evicted from the pinned tier.
    pub pinned_order: Order,
    /// Who may be evicted from NVMe.
    pub nvme_order: Order,
}

impl Blocks {
    /// The block with this name.
    pub fn find(&self, key: &BlockKey) -> Option<BlockId> {
        self.by_key.get(key).copied()
    }

    /// The block with this id, which must exist.
    pub fn at(&self, id: BlockId) -> &Block {
        self.blocks[index(id)].as_ref().expect("an id in use names a block")
    }

    /// Every block.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, &Block)> {
        let id = |i: usize| BlockId(u32::try_from(i).expect("inserted as u32"));
        self.blocks.iter().enumerate().filter_map(move |(i, block)| Some((id(i), block.as_ref()?)))
    }

    /// Adds a block that is not there yet.
    pub fn insert(&mut self, block: Block) -> BlockId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.blocks.push(None);
            BlockId(u32::try_from(self.blocks.len() - 1).expect("fewer than 2^32 blocks fit a shard"))
        });
        let before = self.by_key.insert(block.key, id);
        assert!(before.is_none(), "a block is inserted once");
        self.blocks[index(id)] = Some(block);
        self.change(id, |_| ());
        id
    }

    /// Changes a block and keeps the eviction orders true. Removes it when no tier holds it any more.
    pub fn change<T>(&mut self, id: BlockId, apply: impl FnOnce(&mut Block) -> T) -> T {
        let block = self.blocks[index(id)].as_mut().expect("an id in use names a block");
        let result = apply(block);
        let class = block.shape.class();
        let pinned = block.pinned_evictable().then_some(block.stamp);
        self.pinned_order.relist(class, id, block.listed_pinned, pinned);
        block.listed_pinned = pinned;
        let nvme = block.nvme_evictable().then_some(block.stamp);
        self.nvme_order.relist(class, id, block.listed_nvme, nvme);
        block.listed_nvme = nvme;
        if block.pinned == Pinned::None && block.nvme == OnNvme::None && block.leases == 0 {
            let key = block.key;
            self.by_key.remove(&key);
            self.blocks[index(id)] = None;
            self.free.push(id);
        }
        result
    }

    /// Marks a run as used now, given from its root: last to first, so that leaves go before their parents.
    pub fn touch(&mut self, run: &[BlockId]) {
        for &id in run.iter().rev() {
            self.clock += 1;
            let stamp = self.clock;
            self.change(id, |block| block.stamp = stamp);
        }
    }

    /// Gives recovered blocks an order: by generation, and never a parent before its child.
    pub fn order_recovered(&mut self) {
        let mut all: Vec<(u32, Option<BlockKey>, u64, BlockId)> = self
            .iter()
            .map(|(id, block)| {
                let age = match block.nvme {
                    OnNvme::Ready { generation, .. } => generation.0,
                    _ => 0,
                };
                (block.depth, block.parent, age, id)
            })
            .collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        let mut stamps: HashMap<BlockId, u64> = HashMap::with_capacity(all.len());
        for &(_, parent, age, id) in &all {
            let stamp = *stamps.entry(id).and_modify(|stamp| *stamp = age.max(*stamp)).or_insert(age);
            if let Some(parent) = parent.and_then(|key| self.find(&key)) {
                let least = stamps.entry(parent).or_insert(0);
                *least = (stamp + 1).max(*least);
            }
            self.clock = self.clock.max(stamp + 1);
        }
        for (id, stamp) in stamps {
            self.change(id, |block| block.stamp = stamp);
        }
    }
}

fn index(id: BlockId) -> usize {
    usize::try_from(id.0).expect("u32 fits usize")
}
