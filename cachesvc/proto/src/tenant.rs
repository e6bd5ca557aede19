//! Who owns a block: tenant names, ids and secrets.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Name of a tenant: 1 to 63 of `a-z`, `0-9`, `-`, not starting or ending with `-` (a DNS label, so that it can be
/// a Kubernetes name).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantName(String);

/// The text is no tenant name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no tenant name: use 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends")]
pub struct TenantNameError(String);

impl TenantName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id that block headers carry.
    pub fn id(&self) -> TenantId {
        let digest = blake3::derive_key("hearth v1 tenant id", self.0.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        TenantId(id)
    }
}

impl FromStr for TenantName {
    type Err = TenantNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let good = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|&b| inner(b) || b == b'-')
            && inner(bytes[0])
            && inner(bytes[bytes.len() - 1]);
        if good { Ok(Self(text.to_owned())) } else { Err(TenantNameError(text.chars().take(80).collect())) }
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Sixteen bytes derived from a tenant's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub [u8; 16]);

/// A tenant's secret: 32 random bytes from which its block keys and its session proofs are derived.
///
/// Whoever holds it can name and read the tenant's blocks. It is never sent and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct TenantSecret([u8; 32]);

/// The text is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a tenant secret is 64 hexadecimal digits; make one with: head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'"
)]
pub struct TenantSecretError;

impl TenantSecret {
    /// From 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// As 64 hexadecimal digits, to be written to a secret file.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A key for one purpose. The context is a constant of the caller, as BLAKE3 asks for.
    pub(crate) fn derive(&self, context: &'static str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }
}

impl FromStr for TenantSecret {
    type Err = TenantSecretError;

    /// Reads 64 hexadecimal digits; white space around them is ignored, as files end with a line feed.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim().as_bytes();
        if digits.len() != 64 {
            return Err(TenantSecretError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(TenantSecretError);
            let value = nibble(pair[0])? << 4 | nibble(pair[1])?;
            *byte = u8::try_from(value).expect("two hexadecimal digits fit one byte");
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for TenantSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "default", "team-7", "0x"] {
            assert!(good.parse::<TenantName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a b", "a\0", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<TenantName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_round_trip_and_stay_out_of_debug() {
        let secret = TenantSecret::from_bytes([0xa5; 32]);
        assert_eq!(format!("{}\n", secret.to_hex()).parse(), Ok(secret.clone()));
        assert!(!format!("{secret:?}").contains("a5"));
        for bad in ["", "zz", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<TenantSecret>().is_err());
        }
    }
}
