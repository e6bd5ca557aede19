//! Why something was not done, grouped by what the caller does next.

use std::fmt;

/// What the caller of a failed call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Call again later; nothing is wrong with the call.
    Retry,
    /// The connection is gone or useless: open a new one, then call again.
    Reconnect,
    /// Go on without the block: compute it.
    TreatAsMiss,
    /// The call itself is wrong and will fail again.
    FixCall,
    /// A person has to act: a wrong secret, another model's identity, a wrong release.
    GiveUp,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal, $action:ident;)*) => {
        /// An error code of the wire protocol. Numbers are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Code { $($(#[$doc])* $name = $number,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The code with this number. Unknown numbers, from a newer peer, are [`Code::Internal`].
            pub fn from_number(number: u32) -> Self {
                match number { $($number => Self::$name,)* _ => Self::Internal }
            }

            /// What the caller does next.
            pub fn action(self) -> Action {
                match self { $(Self::$name => Action::$action,)* }
            }

            /// Lower-case name for logs and metric labels.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

codes! {
    /// The node failed in a way that has no better name.
    Internal = 1, "internal", TreatAsMiss;
    /// A field is missing, out of range or malformed.
    InvalidArgument = 2, "invalid_argument", FixCall;
    /// The first request of a session was not Hello, or Hello came twice.
    OutOfOrder = 3, "out_of_order", FixCall;
    /// The tenant is unknown, or the proof of its secret is wrong or too old.
    Unauthenticated = 4, "unauthenticated", GiveUp;
    /// Another identity is registered for this model; the field and both values are named.
    IdentityMismatch = 5, "identity_mismatch", GiveUp;
    /// The peers speak different protocols.
    VersionUnsupported = 6, "version_unsupported", GiveUp;
    /// No room, and nothing that may be evicted.
    Full = 7, "full", TreatAsMiss;
    /// The lease or reservation is not, or no longer, held by this session.
    Stale = 8, "stale", TreatAsMiss;
    /// Not done by the deadline.
    Deadline = 9, "deadline", TreatAsMiss;
    /// The node is starting, stopping or overloaded.
    Unavailable = 10, "unavailable", Retry;
    /// The message, chain or block is over a limit.
    TooLarge = 11, "too_large", FixCall;
    /// The device failed; other tiers still serve.
    Io = 12, "io", TreatAsMiss;
    /// The connection broke.
    Disconnected = 13, "disconnected", Reconnect;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_unknown_ones_are_internal() {
        for &code in Code::ALL {
            assert_eq!(Code::from_number(code as u32), code);
        }
        assert_eq!(Code::from_number(0), Code::Internal);
        assert_eq!(Code::from_number(9_999), Code::Internal);
    }
}
