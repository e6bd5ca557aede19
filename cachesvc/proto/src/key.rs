//! From tokens to block keys.
//!
//! A key names a block by everything before it: `key[i] = H(parent ‖ extra ‖ tokens)`, where the parent of the
//! first block is the identity's fingerprint and `H` is BLAKE3 keyed with a key derived from the tenant's secret.
//! Equal prompts of two tenants get unrelated keys. The encoding under the hash is, in this order: one byte
//! (0 for the first block, 1 after it), 32 bytes of parent, the length of `extra` and `extra`, the number of
//! tokens and the tokens; all numbers are little-endian `u32`.

use std::fmt;

use thiserror::Error;

use crate::identity::{CacheIdentity, Fingerprint};
use crate::limit::CHAIN_BLOCKS_MAX;
use crate::tenant::TenantSecret;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// Name of one block: 32 bytes, the same in every process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey(pub [u8; KEY_BYTES]);

impl BlockKey {
    /// The first eight bytes as a number: a key is uniformly distributed, so this is a good hash of it.
    pub fn prefix(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(bytes)
    }

    /// The first 16 hexadecimal digits, for logs.
    pub fn short(&self) -> String {
        self.0[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockKey({})", self.short())
    }
}

/// Makes the keys of one tenant for one identity.
#[derive(Clone, Debug)]
pub struct KeyChain {
    key: Secret,
    fingerprint: Fingerprint,
    block_tokens: usize,
}

#[derive(Clone)]
struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl KeyChain {
    /// The chain of `secret`'s tenant for blocks of `identity`.
    pub fn new(secret: &TenantSecret, identity: &CacheIdentity) -> Self {
        let block_tokens = usize::try_from(identity.block_tokens).expect("validated to fit");
        assert!(block_tokens > 0, "an identity has at least one token per block");
        Self {
            key: Secret(secret.derive("hearth v1 block keys")),
            fingerprint: identity.fingerprint(),
            block_tokens,
        }
    }

    /// Tokens of one block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Keys of all full blocks of `tokens`, from the first on. A rest shorter than a block has no key.
    ///
    /// `salt` separates prompts that must not share blocks though their tokens are equal; it enters the first
    /// block and, through the chain, all others.
    pub fn keys(&self, salt: &[u8], tokens: &[u32]) -> Vec<BlockKey> {
        let mut keys = Vec::with_capacity(tokens.len() / self.block_tokens);
        self.extend(&mut keys, salt, tokens);
        keys
    }

    /// Appends the keys of the full blocks of `tokens` that `keys` does not hold yet.
    ///
    /// `keys` must be what this chain returned for a prefix of `tokens` under the same salt.
    pub fn extend(&self, keys: &mut Vec<BlockKey>, salt: &[u8], tokens: &[u32]) {
        let known = keys.len() * self.block_tokens;
        for block in tokens.get(known..).unwrap_or_default().chunks_exact(self.block_tokens) {
            let extra = if keys.is_empty() { salt } else { &[] };
            let key = self.next(keys.last(), extra, block);
            keys.push(key);
        }
    }

    /// Key of the block that follows `parent` (or is the first) and holds `tokens`. `extra` carries whatever else
    /// changes the block: a salt in the first one, hashes of images whose tokens lie in it.
    pub fn next(&self, parent: Option<&BlockKey>, extra: &[u8], tokens: &[u32]) -> BlockKey {
        let len =
            |n: usize| u32::try_from(n).expect("a block is far below 2^32 tokens and bytes").to_le_bytes();
        let mut buffer = Vec::with_capacity(1 + KEY_BYTES + 8 + extra.len() + 4 * tokens.len());
        match parent {
            None => {
                buffer.push(0);
                buffer.extend_from_slice(&self.fingerprint.0);
            }
            Some(parent) => {
                buffer.push(1);
                buffer.extend_from_slice(&parent.0);
            }
        }
        buffer.extend_from_slice(&len(extra.len()));
        buffer.extend_from_slice(extra);
        buffer.extend_from_slice(&len(tokens.len()));
        for token in tokens {
            buffer.extend_from_slice(&token.to_le_bytes());
        }
        BlockKey(*blake3::keyed_hash(&self.key.0, &buffer).as_bytes())
    }
}

/// A packed list of keys is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeysError {
    /// The length is no multiple of 32.
    #[error("packed keys have {0} bytes, which is no multiple of {KEY_BYTES}")]
    Length(usize),
    /// There are too many.
    #[error("a chain of {0} blocks is over the limit of {CHAIN_BLOCKS_MAX}; split the request")]
    Count(usize),
}

/// Keys one after another, as messages carry them.
pub fn pack(keys: &[BlockKey]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.0).collect()
}

/// Reads packed keys.
///
/// # Errors
/// When the length is no multiple of 32 or over the limit for one message.
pub fn unpack(bytes: &[u8]) -> Result<Vec<BlockKey>, KeysError> {
    if !bytes.len().is_multiple_of(KEY_BYTES) {
        return Err(KeysError::Length(bytes.len()));
    }
    let count = bytes.len() / KEY_BYTES;
    if count > CHAIN_BLOCKS_MAX {
        return Err(KeysError::Count(count));
    }
    let key = |chunk: &[u8]| BlockKey(chunk.try_into().expect("chunks have the length of a key"));
    Ok(bytes.chunks_exact(KEY_BYTES).map(key).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::sample;
    use proptest::prelude::*;

    fn chain(secret: u8) -> KeyChain {
        KeyChain::new(&TenantSecret::from_bytes([secret; 32]), &sample())
    }

    #[test]
    fn only_full_blocks_have_keys() {
        let tokens: Vec<u32> = (0..40).collect();
        assert_eq!(chain(1).keys(b"", &tokens[..15]).len(), 0);
        assert_eq!(chain(1).keys(b"", &tokens).len(), 2);
    }

    #[test]
    fn tenants_identities_and_salts_are_apart() {
        let tokens: Vec<u32> = (0..32).collect();
        let mut other = sample();
        other.revision.push('x');
        let keys = [
            chain(1).keys(b"", &tokens),
            chain(2).keys(b"", &tokens),
            chain(1).keys(b"s", &tokens),
            KeyChain::new(&TenantSecret::from_bytes([1; 32]), &other).keys(b"", &tokens),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().flatten().collect();
        assert_eq!(distinct.len(), 8);
    }

    #[test]
    fn extra_and_tokens_cannot_trade_bytes() {
        let c = chain(1);
        let first = c.next(None, &[], &[0]);
        assert_ne!(c.next(Some(&first), &[1, 0, 0, 0], &[2]), c.next(Some(&first), &[], &[1, 2]));
        assert_ne!(c.next(None, &[], &[2]), c.next(Some(&BlockKey(sample().fingerprint().0)), &[], &[2]));
    }

    #[test]
    fn packing_refuses_what_is_no_list_of_keys() {
        assert_eq!(unpack(&[0; 33]), Err(KeysError::Length(33)));
        assert!(matches!(unpack(&vec![0; (CHAIN_BLOCKS_MAX + 1) * KEY_BYTES]), Err(KeysError::Count(_))));
    }

    proptest! {
        #[test]
        fn extending_equals_computing_at_once(tokens in prop::collection::vec(any::<u32>(), 0..200), cut in 0usize..200) {
            let c = chain(3);
            let mut keys = c.keys(b"salt", &tokens[..cut.min(tokens.len())]);
            c.extend(&mut keys, b"salt", &tokens);
            prop_assert_eq!(&keys, &c.keys(b"salt", &tokens));
            prop_assert_eq!(unpack(&pack(&keys)), Ok(keys));
        }

        #[test]
        fn a_change_changes_its_block_and_all_after_it(at in 0usize..96, tokens in prop::collection::vec(any::<u32>(), 96)) {
            let mut other = tokens.clone();
            other[at] ^= 1;
            let (a, b) = (chain(1).keys(b"", &tokens), chain(1).keys(b"", &other));
            for i in 0..a.len() {
                prop_assert_eq!(a[i] == b[i], i < at / 16);
            }
        }
    }
}
