//! Which crate may depend on which.
//!
//! Every kind of dependency counts, those of tests and build scripts too: a test that needs the
//! crate above is a test of the crate above.

use crate::Finding;

/// A package of this workspace and the workspace packages that it names as dependencies.
#[derive(Debug, Clone)]
pub struct Package {
    /// Package name.
    pub name: String,
    /// Names of the workspace packages it depends on, in any way.
    pub uses: Vec<String>,
}

/// Every package of the workspace with what it may use. What is not listed is forbidden.
const ALLOWED: &[(&str, &[&str])] = &[
    ("hearth-proto", &[]),
    ("hearth-prompt", &[]),
    ("hearth-transfer", &[]),
    ("hearth-cachesvc", &["hearth-proto", "hearth-transfer"]),
    ("hearth-connector", &["hearth-proto", "hearth-transfer"]),
    ("hearth-engine", &["hearth-connector", "hearth-transfer", "hearth-prompt"]),
    ("hearth-router", &["hearth-proto", "hearth-prompt"]),
    ("hearth", EVERY_LIBRARY),
    ("hearth-benches", EVERY_LIBRARY),
    ("hearth-tidy", &[]),
];

const EVERY_LIBRARY: &[&str] = &[
    "hearth-proto",
    "hearth-prompt",
    "hearth-transfer",
    "hearth-cachesvc",
    "hearth-connector",
    "hearth-engine",
    "hearth-router",
];

/// Arrows that the table does not have, and packages that it does not know.
pub fn forbidden(packages: &[Package]) -> Vec<Finding> {
    packages.iter().flat_map(of_package).collect()
}

fn of_package(package: &Package) -> Vec<Finding> {
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
        return vec![Finding::of(&package.name, "not in the table of arrows: say there what it may use")];
    };
    package
        .uses
        .iter()
        .filter(|used| !allowed.contains(&used.as_str()))
        .map(|used| {
            let what =
                format!("may not depend on {used} (allowed: {allowed:?}); move the shared part down a crate");
            Finding::of(&package.name, what)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &[&str]) -> Package {
        Package { name: name.to_owned(), uses: uses.iter().map(|used| (*used).to_owned()).collect() }
    }

    #[test]
    fn the_drawn_arrows_pass() {
        let good = [
            package("hearth-proto", &[]),
            package("hearth-engine", &["hearth-connector", "hearth-transfer"]),
            package("hearth-benches", &["hearth-router", "hearth-cachesvc"]),
        ];
        assert_eq!(forbidden(&good), []);
    }

    #[test]
    fn a_client_that_links_the_store_is_found() {
        let found = forbidden(&[package("hearth-connector", &["hearth-proto", "hearth-cachesvc"])]);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("hearth-cachesvc"), "{}", found[0]);
    }

    #[test]
    fn nothing_may_use_the_benches() {
        assert_eq!(forbidden(&[package("hearth", &["hearth-benches"])]).len(), 1);
    }

    #[test]
    fn a_package_outside_the_table_is_found() {
        assert_eq!(forbidden(&[package("hearth-utils", &[])]).len(), 1);
    }
}
