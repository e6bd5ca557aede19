//! The rules of the event feed, for those who keep a copy of what a node holds.
//!
//! A node is split in shards. Each shard first sends a snapshot (`SnapshotBegin`, any number of `Stored`,
//! `SnapshotEnd`), then every change with a sequence number that grows by one. A gap, a new incarnation or a
//! digest that differs means: drop the copy and join again. [`Digest`] is what both sides compare.

use crate::key::BlockKey;
use crate::v1::Tier;

/// An order-free digest of the entries of one shard as one tenant sees them.
///
/// An entry is a key in a tier at a holder. Adding and removing the same entry cancel out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Number of entries.
    pub entries: u64,
    /// Exclusive or of the entries' hashes.
    pub bits: u64,
}

impl Digest {
    /// An entry came.
    pub fn add(&mut self, key: &BlockKey, tier: Tier, holder: &str) {
        self.entries += 1;
        self.bits ^= entry_hash(key, tier, holder);
    }

    /// An entry went. It must have been added.
    pub fn remove(&mut self, key: &BlockKey, tier: Tier, holder: &str) {
        self.entries = self.entries.checked_sub(1).expect("only what was added is removed");
        self.bits ^= entry_hash(key, tier, holder);
    }
}

/// The key's prefix, mixed with the tier and with FNV-1a of the holder's name.
fn entry_hash(key: &BlockKey, tier: Tier, holder: &str) -> u64 {
    let name = holder.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let tier = u64::try_from(tier as i32).expect("tiers are small positive numbers");
    (key.prefix() ^ name).wrapping_add(tier).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_removal_cancels() {
        let (a, b) = (BlockKey([1; 32]), BlockKey([2; 32]));
        let mut one = Digest::default();
        one.add(&a, Tier::Pinned, "");
        one.add(&b, Tier::Engine, "e1");
        let mut two = Digest::default();
        two.add(&b, Tier::Engine, "e1");
        two.add(&a, Tier::Nvme, "");
        assert_ne!(one, two);
        two.remove(&a, Tier::Nvme, "");
        two.add(&a, Tier::Pinned, "");
        assert_eq!(one, two);
    }
}
