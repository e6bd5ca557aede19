//! Memory that is measured fairly: touched before, larger than the caches, walked out of order.

/// The golden ratio in 64 bits: an odd step that visits all values.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills a block with bytes that follow from its number and from nothing else, so that any reader can
/// check them; touches every page on the way.
pub fn fill(block: &mut [u8], number: usize) {
    let mut state = (number as u64 + 1).wrapping_mul(STEP);
    for word in block.chunks_mut(8) {
        state = state.wrapping_add(STEP);
        word.copy_from_slice(&mixed(state).to_le_bytes()[..word.len()]);
    }
}

/// Whether a block holds what [`fill`] gives that number.
pub fn holds(block: &[u8], number: usize) -> bool {
    let mut state = (number as u64 + 1).wrapping_mul(STEP);
    block.chunks(8).all(|word| {
        state = state.wrapping_add(STEP);
        *word == mixed(state).to_le_bytes()[..word.len()]
    })
}

/// The finisher of splitmix64.
fn mixed(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Blocks of equal size in one allocation, every page touched.
pub fn touched(blocks: usize, block_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; blocks * block_bytes];
    for (number, block) in bytes.chunks_mut(block_bytes).enumerate() {
        fill(block, number);
    }
    bytes
}

/// An endless walk over blocks in scattered order: every block once per lap, the same order each lap,
/// so that a block comes again only after all others.
#[derive(Debug, Clone)]
pub struct Walk {
    order: Vec<usize>,
    at: usize,
}

impl Walk {
    /// A walk over `blocks` blocks (at least one); the seed decides the order.
    pub fn new(blocks: usize, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..blocks).collect();
        order.sort_by_key(|block| mixed((*block as u64 + 1).wrapping_mul(STEP) ^ seed));
        Self { order, at: 0 }
    }

    /// The next block.
    pub fn step(&mut self) -> usize {
        let block = self.order[self.at];
        self.at = (self.at + 1) % self.order.len();
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_its_own_bytes_and_no_others() {
        let bytes = touched(3, 1001);
        assert!(holds(&bytes[1001..2002], 1));
        assert!(!holds(&bytes[1001..2002], 2));
    }

    #[test]
    fn a_walk_visits_every_block_once_per_lap_out_of_order() {
        let mut walk = Walk::new(64, 1);
        let lap: Vec<usize> = (0..64).map(|_| walk.step()).collect();
        let mut sorted = lap.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..64).collect::<Vec<_>>());
        assert_ne!(lap, sorted);
        assert_eq!(walk.step(), lap[0]);
    }
}
