//! What the engine's own pages hold, and what of it the node has been told: messages are the difference.
//!
//! Both sides converge whatever the order of calls: a block that comes and goes before it was told costs no
//! message, and after a reconnect everything is told again. Ancestors of a held block are remembered, held or not,
//! because the node needs the chain from the root.

use std::collections::{HashMap, VecDeque};

use hearth_proto::key::{self, BlockKey};
use hearth_proto::v1;

use crate::backend::Op;

/// Keys of one Withdraw.
const WITHDRAW_KEYS_MAX: usize = 4096;

#[derive(Debug)]
pub(crate) struct Advertised {
    blocks: HashMap<BlockKey, Block>,
    /// Blocks whose `held` and `told` may differ; each at most once.
    queue: VecDeque<BlockKey>,
    blocks_max: usize,
}

#[derive(Debug)]
struct Block {
    parent: Option<BlockKey>,
    depth: usize,
    /// Remembered blocks whose parent this is.
    children: usize,
    held: bool,
    told: bool,
    queued: bool,
}

impl Advertised {
    /// `blocks_max` bounds the blocks remembered.
    pub(crate) fn new(blocks_max: usize) -> Self {
        Self { blocks: HashMap::new(), queue: VecDeque::new(), blocks_max }
    }

    /// The engine holds blocks `first..` of `chain`. Returns how many of them were remembered; fewer when there are
    /// too many.
    pub(crate) fn advertise(&mut self, chain: &[BlockKey], first: usize) -> usize {
        let known = (0..first.min(chain.len())).rev().find(|&at| self.blocks.contains_key(&chain[at]));
        let from = known.map_or(0, |at| at + 1);
        let mut last = None;
        let mut held = 0;
        for at in from..chain.len() {
            let parent = at.checked_sub(1).map(|before| chain[before]);
            if !self.remember(chain[at], parent, at) {
                break;
            }
            let block = self.blocks.get_mut(&chain[at]).expect("just remembered");
            block.held |= at >= first;
            held += usize::from(at >= first);
            last = Some(chain[at]);
        }
        if let Some(last) = last {
            self.enqueue(last);
        }
        held
    }

    /// False when there is no room, or when the block is known in another place: keys chain, so that is no chain.
    fn remember(&mut self, key: BlockKey, parent: Option<BlockKey>, depth: usize) -> bool {
        if let Some(known) = self.blocks.get(&key) {
            return known.parent == parent && known.depth == depth;
        }
        if self.blocks.len() >= self.blocks_max {
            return false;
        }
        if let Some(parent) = parent {
            self.blocks.get_mut(&parent).expect("parents are remembered first").children += 1;
        }
        let block = Block { parent, depth, children: 0, held: false, told: false, queued: false };
        self.blocks.insert(key, block);
        true
    }

    /// The engine no longer holds these blocks.
    pub(crate) fn withdraw(&mut self, keys: &[BlockKey]) {
        for key in keys {
            if let Some(block) = self.blocks.get_mut(key) {
                block.held = false;
                self.enqueue(*key);
            }
        }
    }

    /// The node knows nothing any more: a new session began.
    pub(crate) fn forget_told(&mut self) {
        for block in self.blocks.values_mut() {
            block.told = false;
        }
        let leaves: Vec<BlockKey> =
            self.blocks.iter().filter(|(_, block)| block.children == 0).map(|(key, _)| *key).collect();
        for leaf in leaves {
            self.enqueue(leaf);
        }
    }

    fn enqueue(&mut self, key: BlockKey) {
        let block = self.blocks.get_mut(&key).expect("only remembered blocks are queued");
        if !block.queued {
            block.queued = true;
            self.queue.push_back(key);
        }
    }

    /// The next message that brings the node nearer to what is held. It counts as told.
    pub(crate) fn next(&mut self) -> Option<Op> {
        while let Some(key) = self.queue.pop_front() {
            let block = self.blocks.get_mut(&key).expect("queued blocks are remembered");
            block.queued = false;
            match (block.held, block.told) {
                (true, false) => return Some(self.advertise_message(key)),
                (false, true) => return Some(self.withdraw_message(key)),
                (true, true) => self.requeue_below(key),
                (false, false) => {
                    self.requeue_below(key);
                    self.prune(key);
                }
            }
        }
        None
    }

    /// A branch's end needs nothing, but blocks below it may.
    fn requeue_below(&mut self, key: BlockKey) {
        let mut above = self.blocks[&key].parent;
        while let Some(key) = above {
            let block = &self.blocks[&key];
            if block.held && !block.told {
                return self.enqueue(key);
            }
            above = block.parent;
        }
    }

    /// Tells the held blocks that end with `key` and that the node does not know.
    fn advertise_message(&mut self, key: BlockKey) -> Op {
        let mut chain = Vec::with_capacity(self.blocks[&key].depth + 1);
        let mut next = Some(key);
        let mut first = None;
        while let Some(key) = next {
            let block = self.blocks.get_mut(&key).expect("ancestors are remembered");
            if first.is_none() {
                if block.held && !block.told {
                    block.told = true;
                } else {
                    first = Some(block.depth + 1);
                }
            }
            next = block.parent;
            chain.push(key);
        }
        chain.reverse();
        self.requeue_below(key);
        let first = u32::try_from(first.unwrap_or(0)).expect("a chain is under 2^32 blocks");
        Op::Advertise(v1::Advertise { keys: key::pack(&chain), first })
    }

    /// Withdraws `key` and those queued behind it that go, too.
    fn withdraw_message(&mut self, key: BlockKey) -> Op {
        let mut keys = vec![key];
        while keys.len() < WITHDRAW_KEYS_MAX {
            let Some(next) = self.queue.front().copied() else { break };
            let block = self.blocks.get_mut(&next).expect("queued blocks are remembered");
            if block.held || !block.told {
                break;
            }
            block.queued = false;
            keys.push(next);
            self.queue.pop_front();
        }
        for key in &keys {
            self.blocks.get_mut(key).expect("queued blocks are remembered").told = false;
        }
        for key in &keys {
            self.prune(*key);
        }
        Op::Withdraw(v1::Withdraw { keys: key::pack(&keys) })
    }

    /// Forgets a block that nobody needs, and the ancestors that were remembered for it alone.
    fn prune(&mut self, key: BlockKey) {
        let mut next = Some(key);
        while let Some(key) = next {
            let Some(block) = self.blocks.get(&key) else { return };
            if block.held || block.told || block.queued || block.children > 0 {
                return;
            }
            next = block.parent;
            self.blocks.remove(&key);
            if let Some(parent) = next {
                self.blocks.get_mut(&parent).expect("ancestors are remembered").children -= 1;
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.blocks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A node that believes what it is told.
    #[derive(Default)]
    struct Node {
        told: BTreeSet<BlockKey>,
    }

    impl Node {
        fn hear(&mut self, op: &Op) {
            match op {
                Op::Advertise(op) => {
                    let keys = key::unpack(&op.keys).unwrap();
                    for (at, block) in keys.iter().enumerate() {
                        assert_eq!(usize::from(block.0[1]), at, "the chain is whole, from its root");
                    }
                    let first = usize::try_from(op.first).unwrap();
                    assert!(first < keys.len(), "a message says something");
                    assert!(keys[first..].iter().all(|key| self.told.insert(*key)), "nothing is told twice");
                }
                Op::Withdraw(op) => {
                    for key in key::unpack(&op.keys).unwrap() {
                        assert!(self.told.remove(&key), "only what was told is withdrawn");
                    }
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Chains that fork: chain `c` shares its first `share(c)` blocks with chain 0. Byte 1 is the depth.
    fn chain(c: u8, len: u8) -> Vec<BlockKey> {
        (0..len)
            .map(|at| {
                let branch = if at < 3 * c { 0 } else { c };
                let mut bytes = [0; 32];
                (bytes[0], bytes[1]) = (branch, at);
                BlockKey(bytes)
            })
            .collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Advertise(u8, u8, u8),
        Withdraw(u8, u8, u8),
        Send,
        Reconnect,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..4, 1u8..14, 0u8..14).prop_map(|(c, len, first)| Step::Advertise(c, len, first)),
            (0u8..4, 1u8..14, 0u8..14).prop_map(|(c, len, first)| Step::Withdraw(c, len, first)),
            Just(Step::Send),
            Just(Step::Reconnect),
        ]
    }

    proptest! {
        #[test]
        fn the_node_comes_to_know_what_is_held(steps in prop::collection::vec(step(), 0..60)) {
            let mut advertised = Advertised::new(1000);
            let mut node = Node::default();
            let mut held = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Advertise(c, len, first) => {
                        let (chain, first) = (chain(c, len), usize::from(first));
                        advertised.advertise(&chain, first);
                        held.extend(chain.into_iter().skip(first));
                    }
                    Step::Withdraw(c, len, first) => {
                        let keys = chain(c, len).split_off(usize::from(first.min(len)));
                        advertised.withdraw(&keys);
                        held.retain(|key| !keys.contains(key));
                    }
                    Step::Send => {
                        if let Some(op) = advertised.next() {
                            node.hear(&op);
                        }
                    }
                    Step::Reconnect => {
                        node = Node::default();
                        advertised.forget_told();
                    }
                }
            }
            while let Some(op) = advertised.next() {
                node.hear(&op);
            }
            prop_assert_eq!(&node.told, &held);
            let all: Vec<_> = held.iter().copied().collect();
            advertised.withdraw(&all);
            while let Some(op) = advertised.next() {
                node.hear(&op);
            }
            prop_assert_eq!(advertised.len(), 0, "nothing is remembered for nothing");
        }

        #[test]
        fn the_bound_is_kept(calls in prop::collection::vec((0u8..4, 1u8..14, 0u8..14), 0..20), max in 1usize..20) {
            let mut advertised = Advertised::new(max);
            let mut node = Node::default();
            for (c, len, first) in calls {
                advertised.advertise(&chain(c, len), usize::from(first));
                prop_assert!(advertised.len() <= max);
            }
            while let Some(op) = advertised.next() {
                node.hear(&op);
            }
        }
    }
}
