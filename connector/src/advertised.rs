//! What the engine's own pages hold, and what of it the node has been told: messages are the difference.
//!
//! Both sides converge whatever the order of calls: a block that comes and goes before it was told costs no
//! message, one message is on its way at a time, and after a reconnect everything is told again. Ancestors of a held block are remembered, held or not,
//! because the node needs the chain from the root.

use std::collections::{HashMap, HashSet, VecDeque};

use hearth_proto::key::{self, BlockKey};
use hearth_proto::v1;

use crate::backend::Op;

/// Keys of one Withdraw.
const WITHDRAW_KEYS_MAX: usize = 4096;

#[derive(Debug)]
pub(crate) struct Advertised {
    blocks: HashMap<BlockKey, Block>,
    /// Each block whose `held` and `told` differ, once; those on their way may be missing. Of a chain the last comes
    /// first, because a message about it covers those before it.
    queue: VecDeque<BlockKey>,
    on_its_way: Option<Message>,
    blocks_max: usize,
}

/// A message that the node has not acknowledged.
#[derive(Debug)]
enum Message {
    Advertise(Vec<BlockKey>),
    Withdraw(Vec<BlockKey>),
}

#[derive(Debug)]
struct Block {
    parent: Option<BlockKey>,
    depth: usize,
    /// Remembered blocks whose parent this is.
    children: usize,
    held: bool,
    told: Told,
    queued: bool,
}

/// Whether the node has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    No,
    /// A message is on its way, or was refused when part of it may have been taken.
    Maybe,
    Yes,
}

impl Advertised {
    /// `blocks_max` bounds the blocks remembered.
    pub(crate) fn new(blocks_max: usize) -> Self {
        Self { blocks: HashMap::new(), queue: VecDeque::new(), on_its_way: None, blocks_max }
    }

    /// The engine holds blocks `first..` of `chain`. Returns how many of them were remembered; fewer when there are
    /// too many.
    pub(crate) fn advertise(&mut self, chain: &[BlockKey], first: usize) -> usize {
        let known = (0..first.min(chain.len())).rev().find(|&at| self.blocks.contains_key(&chain[at]));
        let from = known.map_or(0, |at| at + 1);
        let remembered = (from..chain.len())
            .take_while(|&at| self.remember(chain[at], at.checked_sub(1).map(|before| chain[before]), at))
            .count();
        for at in (from..from + remembered).rev() {
            let block = self.blocks.get_mut(&chain[at]).expect("just remembered");
            block.held |= at >= first;
            self.enqueue(chain[at]);
        }
        (from + remembered).saturating_sub(first)
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
        let block = Block { parent, depth, children: 0, held: false, told: Told::No, queued: false };
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
        self.on_its_way = None;
        for block in self.blocks.values_mut() {
            block.told = Told::No;
        }
        let mut all: Vec<(usize, BlockKey)> =
            self.blocks.iter().map(|(key, block)| (block.depth, *key)).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        for (_, key) in all {
            self.enqueue(key);
        }
    }

    fn enqueue(&mut self, key: BlockKey) {
        let block = self.blocks.get_mut(&key).expect("only remembered blocks are queued");
        if !block.queued {
            block.queued = true;
            self.queue.push_back(key);
        }
    }

    /// The next message that brings the node nearer to what is held; none while one is on its way. The caller says
    /// with [`settled`](Self::settled) what became of it.
    pub(crate) fn next(&mut self) -> Option<Op> {
        if self.on_its_way.is_some() {
            return None;
        }
        while let Some(key) = self.queue.pop_front() {
            let block = self.blocks.get_mut(&key).expect("queued blocks are remembered");
            block.queued = false;
            match (block.held, block.told) {
                (true, Told::No | Told::Maybe) => return Some(self.advertise_message(key)),
                (false, Told::Yes | Told::Maybe) => return Some(self.withdraw_message(key)),
                (true, Told::Yes) => {}
                (false, Told::No) => self.prune(key),
            }
        }
        None
    }

    /// The node has taken the message on its way, or has not and must be told again.
    pub(crate) fn settled(&mut self, taken: bool) {
        let (keys, told) = match (self.on_its_way.take(), taken) {
            (None, _) => return,
            (Some(Message::Advertise(keys)), true) => (keys, Told::Yes),
            (Some(Message::Withdraw(keys)), true) => (keys, Told::No),
            (Some(Message::Advertise(keys) | Message::Withdraw(keys)), false) => (keys, Told::Maybe),
        };
        for key in &keys {
            self.blocks.get_mut(key).expect("told blocks are remembered").told = told;
        }
        if taken {
            keys.into_iter().for_each(|key| self.prune(key));
        } else {
            self.enqueue_first(keys);
        }
    }

    /// Puts blocks before all others and in this order, so that one message covers them again.
    fn enqueue_first(&mut self, keys: Vec<BlockKey>) {
        let these: HashSet<BlockKey> = keys.iter().copied().collect();
        self.queue.retain(|key| !these.contains(key));
        for key in keys.into_iter().rev() {
            self.blocks.get_mut(&key).expect("told blocks are remembered").queued = true;
            self.queue.push_front(key);
        }
    }

    /// Tells the held blocks that end with `key` and that the node does not know.
    fn advertise_message(&mut self, key: BlockKey) -> Op {
        let mut chain = Vec::with_capacity(self.blocks[&key].depth + 1);
        let mut told = Vec::new();
        let mut ended = false;
        let mut next = Some(key);
        while let Some(key) = next {
            let block = self.blocks.get_mut(&key).expect("ancestors are remembered");
            ended |= !block.held || block.told == Told::Yes;
            if !ended {
                block.told = Told::Maybe;
                told.push(key);
            }
            next = block.parent;
            chain.push(key);
        }
        chain.reverse();
        let first = u32::try_from(chain.len() - told.len()).expect("a chain is under 2^32 blocks");
        self.on_its_way = Some(Message::Advertise(told));
        Op::Advertise(v1::Advertise { keys: key::pack(&chain), first })
    }

    /// Withdraws `key` and those queued behind it that go, too.
    fn withdraw_message(&mut self, key: BlockKey) -> Op {
        let mut keys = vec![key];
        while keys.len() < WITHDRAW_KEYS_MAX {
            let Some(next) = self.queue.front().copied() else { break };
            let block = self.blocks.get_mut(&next).expect("queued blocks are remembered");
            if block.held || block.told == Told::No {
                break;
            }
            block.queued = false;
            keys.push(next);
            self.queue.pop_front();
        }
        let message = v1::Withdraw { keys: key::pack(&keys) };
        self.on_its_way = Some(Message::Withdraw(keys));
        Op::Withdraw(message)
    }

    /// Forgets a block that nobody needs, and the ancestors that were remembered for it alone.
    fn prune(&mut self, key: BlockKey) {
        let mut next = Some(key);
        while let Some(key) = next {
            let Some(block) = self.blocks.get(&key) else { return };
            if block.held || block.told != Told::No || block.queued || block.children > 0 {
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

    /// A node that believes what it is told, of which it may miss some.
    #[derive(Default)]
    struct Node {
        told: BTreeSet<BlockKey>,
    }

    impl Node {
        fn hear(&mut self, op: &Op, taken: bool) {
            let heard = |key: &BlockKey| taken || key.0[1].is_multiple_of(2);
            match op {
                Op::Advertise(op) => {
                    let keys = key::unpack(&op.keys).unwrap();
                    for (at, block) in keys.iter().enumerate() {
                        assert_eq!(usize::from(block.0[1]), at, "the chain is whole, from its root");
                    }
                    let first = usize::try_from(op.first).unwrap();
                    assert!(first < keys.len(), "a message says something");
                    self.told.extend(keys[first..].iter().filter(|key| heard(key)));
                }
                Op::Withdraw(op) => {
                    let keys = key::unpack(&op.keys).unwrap();
                    assert!(!keys.is_empty(), "a message says something");
                    self.told.retain(|key| !keys.contains(key) || !heard(key));
                }
                other => panic!("unexpected {other:?}"),
            }
        }

        fn hear_all(&mut self, advertised: &mut Advertised) {
            while let Some(op) = advertised.next() {
                self.hear(&op, true);
                advertised.settled(true);
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
        /// Whether the node takes the message on its way.
        Settle(bool),
        Reconnect,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..4, 1u8..14, 0u8..14).prop_map(|(c, len, first)| Step::Advertise(c, len, first)),
            (0u8..4, 1u8..14, 0u8..14).prop_map(|(c, len, first)| Step::Withdraw(c, len, first)),
            Just(Step::Send),
            any::<bool>().prop_map(Step::Settle),
            Just(Step::Reconnect),
        ]
    }

    #[test]
    fn what_stays_is_told_though_the_end_of_its_chain_goes() {
        let (mut advertised, mut node, chain) = (Advertised::new(100), Node::default(), chain(0, 6));
        advertised.advertise(&chain, 2);
        node.hear_all(&mut advertised);
        advertised.advertise(&chain[..5], 0);
        advertised.withdraw(&chain[2..5]);
        node.hear_all(&mut advertised);
        assert_eq!(node.told, [chain[0], chain[1], chain[5]].into());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_node_comes_to_know_what_is_held(steps in prop::collection::vec(step(), 0..80)) {
            let mut advertised = Advertised::new(1000);
            let mut node = Node::default();
            let mut held = BTreeSet::new();
            let mut on_its_way = None;
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
                        let next = advertised.next();
                        prop_assert!(on_its_way.is_none() || next.is_none(), "one at a time");
                        on_its_way = on_its_way.or(next);
                    }
                    Step::Settle(taken) => {
                        if let Some(op) = on_its_way.take() {
                            node.hear(&op, taken);
                            advertised.settled(taken);
                        }
                    }
                    Step::Reconnect => {
                        node = Node::default();
                        on_its_way = None;
                        advertised.forget_told();
                    }
                }
            }
            if let Some(op) = on_its_way {
                node.hear(&op, true);
                advertised.settled(true);
            }
            node.hear_all(&mut advertised);
            prop_assert_eq!(&node.told, &held);
            let all: Vec<_> = held.iter().copied().collect();
            advertised.withdraw(&all);
            node.hear_all(&mut advertised);
            prop_assert!(node.told.is_empty());
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
            node.hear_all(&mut advertised);
        }
    }
}
