//! Challenges that clients answer with a proof of their tenant's secret.
//!
//! A challenge is the time of its making and a keyed hash of it, so that none has to be remembered.

use std::time::{Duration, Instant};

use hearth_proto::auth::{Proof, Purpose};
use hearth_proto::tenant::TenantSecret;

/// How long a challenge may be answered.
pub const CHALLENGE_TTL: Duration = Duration::from_secs(60);

const CHALLENGE_BYTES: usize = 8 + 32;

/// Makes and checks challenges of one start of a node.
#[derive(Debug)]
pub struct Challenger {
    key: [u8; 32],
    start: Instant,
}

impl Challenger {
    /// With a key of 32 random bytes, made at `start`.
    pub fn new(key: [u8; 32], start: Instant) -> Self {
        Self { key, start }
    }

    /// A challenge made now.
    pub fn challenge(&self, now: Instant) -> Vec<u8> {
        let millis = u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX);
        let mut challenge = millis.to_le_bytes().to_vec();
        challenge.extend_from_slice(self.tag(&challenge).as_bytes());
        challenge
    }

    /// Whether `challenge` is one of ours and not too old, and `proof` answers it for `secret` and `purpose`.
    pub fn accepts(
        &self,
        (challenge, proof): (&[u8], &[u8]),
        secret: &TenantSecret,
        purpose: Purpose,
        now: Instant,
    ) -> bool {
        let Ok(bytes) = <[u8; CHALLENGE_BYTES]>::try_from(challenge) else { return false };
        let (millis, tag) = bytes.split_at(8);
        let Ok(tag) = <[u8; 32]>::try_from(tag) else { return false };
        let Ok(millis) = <[u8; 8]>::try_from(millis) else { return false };
        let made = self.start.checked_add(Duration::from_millis(u64::from_le_bytes(millis)));
        let ours = self.tag(&millis) == blake3::Hash::from_bytes(tag);
        let fresh = made.is_some_and(|made| now.saturating_duration_since(made) <= CHALLENGE_TTL);
        ours && fresh && Proof::new(secret, purpose, challenge).accepts(proof)
    }

    fn tag(&self, millis: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.key, millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fresh_challenge_of_ours_is_accepted() {
        let start = Instant::now();
        let ours = Challenger::new([1; 32], start);
        let secret = TenantSecret::from_bytes([7; 32]);
        let prove = |challenge: &[u8]| Proof::new(&secret, Purpose::Watch, challenge).to_bytes();
        let challenge = ours.challenge(start);
        let accepts = |by: &Challenger, challenge: &[u8], now| {
            by.accepts((challenge, &prove(challenge)), &secret, Purpose::Watch, now)
        };
        assert!(accepts(&ours, &challenge, start + CHALLENGE_TTL));
        assert!(!accepts(&ours, &challenge, start + CHALLENGE_TTL + Duration::from_millis(1)));
        assert!(!accepts(&Challenger::new([2; 32], start), &challenge, start));
        assert!(!accepts(&ours, &challenge[..39], start));
        let mut later = challenge.clone();
        later[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(!accepts(&ours, &later, start));
        assert!(!ours.accepts((&challenge, &prove(&challenge)), &secret, Purpose::Session, start));
    }
}
