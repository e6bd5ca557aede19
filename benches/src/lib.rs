//! One harness for every measurement of Hearth.
//!
//! A [`Suite`](suite::Suite) is a list of [`Case`](case::Case)s; a case measures several
//! [`System`](system::System)s that do the same work: Hearth, its peers, and what the machine could
//! do at best (`limit:memcpy`). They are measured *interleaved*: every round runs each system once,
//! in an order that turns from round to round, so that a machine that slows down slows them all, and
//! ratios hold where absolute numbers drift. The first rounds warm up and are not counted.
//!
//! A report is a table on the terminal ([`table`]) and a JSON file ([`report`]) of medians with the
//! extremes beside them. Names of cases, systems and metrics stay as they are once published.
//!
//! To add a suite: a file in `suite/`, its line in [`suite::SUITES`]. To add a peer: a branch in
//! `peers/setup`, and a system that speaks to it.

pub mod case;
pub mod cli;
pub mod machine;
pub mod memory;
pub mod peer;
pub mod progress;
pub mod report;
pub mod setting;
pub mod suite;
pub mod system;
pub mod table;
