//! Proof that a client holds a tenant's secret, without sending it.
//!
//! The node sends a challenge; the client answers with BLAKE3 keyed by a key derived from the secret, over the
//! purpose and the challenge. A proof for one purpose is no proof for another.

use crate::tenant::TenantSecret;

/// What a proof is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A session of the local protocol.
    Session,
    /// The event feed.
    Watch,
}

/// The answer to a challenge.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof([u8; 32]);

impl Proof {
    /// The proof that the holder of `secret` gives for `challenge`.
    pub fn new(secret: &TenantSecret, purpose: Purpose, challenge: &[u8]) -> Self {
        let label: &[u8] = match purpose {
            Purpose::Session => b"session\0",
            Purpose::Watch => b"watch\0",
        };
        let mut hasher = blake3::Hasher::new_keyed(&secret.derive("hearth v1 tenant proof"));
        hasher.update(label).update(challenge);
        Self(*hasher.finalize().as_bytes())
    }

    /// The bytes to send.
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// Whether `received` is this proof. Takes the same time wherever they differ.
    pub fn accepts(self, received: &[u8]) -> bool {
        let Ok(received) = <[u8; 32]>::try_from(received) else { return false };
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(received)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_secret_purpose_and_challenge_only() {
        let secret = TenantSecret::from_bytes([1; 32]);
        let proof = Proof::new(&secret, Purpose::Session, b"c1").to_bytes();
        assert!(Proof::new(&secret, Purpose::Session, b"c1").accepts(&proof));
        assert!(!Proof::new(&secret, Purpose::Session, b"c2").accepts(&proof));
        assert!(!Proof::new(&secret, Purpose::Watch, b"c1").accepts(&proof));
        assert!(!Proof::new(&TenantSecret::from_bytes([2; 32]), Purpose::Session, b"c1").accepts(&proof));
        assert!(!Proof::new(&secret, Purpose::Session, b"c1").accepts(&proof[..31]));
    }
}
