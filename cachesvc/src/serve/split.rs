//! Which shard a block lives in.
//!
//! A run is cut into segments of [`SEGMENT_BLOCKS`] blocks; a segment lives in the shard that the key of its first block
//! names. So a run stays together as far as a shard works best, while prompts that begin alike and then fork spread out
//! after the first segment, whatever they have in common.

use hearth_proto::key::BlockKey;

use crate::store::message::Link;

/// Blocks of one run that stay in one shard.
pub const SEGMENT_BLOCKS: usize = 64;

/// The blocks `from..` of a chain, with those before them in their segments if `heads` asks for it, by shard.
pub fn split(chain: &[BlockKey], range: std::ops::Range<usize>, shards: usize) -> Vec<Vec<Link>> {
    assert!(range.end <= chain.len(), "the caller checked the range");
    let mut parts = vec![Vec::new(); shards];
    for index in range {
        let parent = index.checked_sub(1).map(|before| chain[before]);
        let link = Link {
            index: u32::try_from(index).expect("bounded by CHAIN_BLOCKS_MAX"),
            key: chain[index],
            parent,
        };
        parts[shard_of(chain, index, shards)].push(link);
    }
    parts
}

/// The shard of block `index` of a chain.
pub fn shard_of(chain: &[BlockKey], index: usize, shards: usize) -> usize {
    let head = &chain[index - index % SEGMENT_BLOCKS];
    let shards = u64::try_from(shards).expect("usize fits u64");
    usize::try_from(head.prefix() % shards).expect("below the number of shards")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(blocks: usize, seed: u64) -> Vec<BlockKey> {
        let key = |i: usize| {
            let mut key = [0; 32];
            let mixed =
                (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
            key[..8]
                .copy_from_slice(&mixed.wrapping_mul(0x94d0_49bb_1331_11eb).rotate_left(29).to_le_bytes());
            BlockKey(key)
        };
        (0..blocks).map(key).collect()
    }

    #[test]
    fn every_block_is_in_one_shard_with_its_segment() {
        let chain = chain(300, 1);
        let parts = split(&chain, 10..300, 4);
        let mut seen: Vec<u32> = parts.iter().flatten().map(|link| link.index).collect();
        seen.sort_unstable();
        assert_eq!(seen, (10..300).collect::<Vec<u32>>());
        for (shard, part) in parts.iter().enumerate() {
            assert!(part.windows(2).all(|pair| pair[0].index < pair[1].index));
            for link in part {
                let index = link.index as usize;
                assert_eq!(shard_of(&chain, index - index % SEGMENT_BLOCKS, 4), shard);
                assert_eq!(link.parent, index.checked_sub(1).map(|i| chain[i]));
            }
        }
    }

    #[test]
    fn forks_of_one_prompt_spread_over_all_shards() {
        let common = chain(SEGMENT_BLOCKS, 1);
        let mut used = std::collections::BTreeSet::new();
        for fork in 2..40 {
            let mut run = common.clone();
            run.extend(chain(SEGMENT_BLOCKS, fork));
            used.insert(shard_of(&run, SEGMENT_BLOCKS, 8));
        }
        assert_eq!(used.len(), 8);
    }
}
