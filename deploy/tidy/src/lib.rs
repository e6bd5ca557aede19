//! Checks of the shape of this workspace.
//!
//! A rule is a pure function from text or metadata to [`Finding`]s, with a test on a bad sample
//! beside it; `tests/workspace.rs` applies every rule to the tree. What clippy can hold is held
//! there (`clippy.toml`, the lints in `Cargo.toml`); this crate holds what it cannot.
//!
//! | module | holds |
//! |---|---|
//! | [`arrows`] | which crate may depend on which |
//! | [`trees`] | which foreign crates may never reach a crate |
//! | [`layout`] | the folders at the top, no `mod.rs`, names that say something |
//! | [`manifest`] | lints and versions come from the workspace; no dependency that nothing uses |
//! | [`modules`] | no source file that nothing compiles |
//! | [`size`] | lines per file and per function, as a ratchet |
//! | [`tokens`] | where `unsafe` may stand, channels without a bound, sleeps, string errors |
//! | [`marks`] | leftover marks, tests ignored without a reason, words that stay out |
//!
//! [`source`] is a parsed file, [`workspace`] the tree as git sees it.

pub mod arrows;
mod finding;
pub mod layout;
pub mod manifest;
pub mod marks;
pub mod modules;
pub mod size;
pub mod source;
pub mod tokens;
pub mod trees;
pub mod workspace;

pub use finding::Finding;
pub use source::Source;
pub use workspace::Workspace;
