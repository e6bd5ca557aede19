//! Versions of the protocol and of the formats, and how two sides agree.

use thiserror::Error;

/// Version of the protocol between processes.
///
/// Two sides work together when their majors are equal; the smaller minor decides which fields are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolVersion {
    /// Raised when old peers can no longer be understood.
    pub major: u32,
    /// Raised when something was added.
    pub minor: u32,
}

/// The protocol that this build speaks.
pub const PROTOCOL: ProtocolVersion = ProtocolVersion { major: 1, minor: 0 };

/// Version of the block header and of the payload order. Part of every fingerprint, so that blocks of
/// another format are never found.
pub const BLOCK_FORMAT: u32 = 1;

/// The two sides speak different protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "protocol {theirs_major}.x is spoken there, {ours_major}.x here: run the same release of Hearth on both sides"
)]
pub struct VersionError {
    ours_major: u32,
    theirs_major: u32,
}

impl ProtocolVersion {
    /// The version that `self` and `theirs` can both use.
    ///
    /// # Errors
    /// When the majors differ.
    pub fn agree(self, theirs: Self) -> Result<Self, VersionError> {
        if self.major != theirs.major {
            return Err(VersionError { ours_major: self.major, theirs_major: theirs.major });
        }
        Ok(self.min(theirs))
    }
}

impl std::fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_majors_agree_on_the_smaller_minor() {
        let old = ProtocolVersion { major: 1, minor: 0 };
        let new = ProtocolVersion { major: 1, minor: 7 };
        assert_eq!(old.agree(new), Ok(old));
        assert_eq!(new.agree(old), Ok(old));
        assert!(new.agree(ProtocolVersion { major: 2, minor: 0 }).is_err());
    }
}
