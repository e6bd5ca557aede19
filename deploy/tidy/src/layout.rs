//! Where files may stand and what they may be called.

use crate::Finding;

/// What may stand at the top of the tree.
const TOP: &[&str] = &[
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "benches",
    "cachesvc",
    "clippy.toml",
    "connector",
    "deny.toml",
    "deploy",
    "engine",
    "router",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "transfer",
];

/// Module names that name no thing of the domain.
const EMPTY_NAMES: &[&str] =
    &["common", "helper", "helpers", "manager", "misc", "mod", "shared", "stuff", "types", "util", "utils"];

/// Files that stand where nothing of that name belongs.
pub fn misplaced(files: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in files {
        let top = path.split('/').next().unwrap_or_default();
        if !TOP.contains(&top) {
            findings.push(Finding::of(path, "nothing of this name belongs at the top of the tree"));
        }
        if path.ends_with("/mod.rs") {
            findings.push(Finding::of(path, "no mod.rs: name.rs beside the folder name/"));
        } else if let Some(stem) = empty_name(path) {
            findings.push(Finding::of(path, format!("{stem:?} says nothing: name it after what it holds")));
        }
    }
    findings
}

fn empty_name(path: &str) -> Option<&str> {
    let stem = path
        .rsplit('/')
        .next()?
        .strip_suffix(".rs")
        .or_else(|| path.rsplit('/').next()?.strip_suffix(".py"))?;
    EMPTY_NAMES.contains(&stem).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_places_pass() {
        let good = ["README.md", "engine/src/step.rs", "deploy/tidy/src/lib.rs", ".ci/run"];
        assert_eq!(misplaced(&good), []);
    }

    #[test]
    fn a_new_top_level_folder_is_found() {
        assert_eq!(misplaced(&["scripts/build.sh"]).len(), 1);
        assert_eq!(misplaced(&["notes.md"]).len(), 1);
    }

    #[test]
    fn mod_rs_and_empty_names_are_found() {
        assert_eq!(misplaced(&["engine/src/step/mod.rs"]).len(), 1);
        assert_eq!(misplaced(&["engine/src/utils.rs", "connector/python/helpers.py"]).len(), 2);
    }
}
