//! The suites, one file each.

use crate::case::Case;
use crate::setting::Setting;

mod copy;
mod store;

/// A list of cases about one thing.
pub struct Suite {
    /// Name on the command line and in the report.
    pub name: &'static str,
    /// What it measures, in one line.
    pub about: &'static str,
    /// Its cases, for this setting; nothing is opened yet.
    pub cases: fn(&Setting) -> Vec<Case>,
}

/// Every suite.
pub const SUITES: &[Suite] = &[copy::SUITE, store::SUITE];
