//! Lints, versions and package fields come from the workspace root.

use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::Finding;

const INHERITED: &[&str] = &["version", "edition", "rust-version", "license", "publish"];
/// Named by generated code that a package includes, and maybe nowhere else.
const IN_GENERATED_CODE: &[&str] = &["prost", "prost-types", "tonic", "tonic-prost"];
const DEPENDENCY_TABLES: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

/// What a member's manifest says for itself that it should take from the root.
pub fn strays(path: &str, manifest: &Table) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !manifest.get("lints").is_some_and(inherits) {
        findings.push(Finding::of(path, "needs [lints] workspace = true"));
    }
    let empty = Table::new();
    let package = manifest.get("package").and_then(Value::as_table).unwrap_or(&empty);
    for field in INHERITED {
        if !package.get(*field).is_some_and(inherits) {
            findings.push(Finding::of(path, format!("needs {field}.workspace = true")));
        }
    }
    if !package.contains_key("description") {
        findings.push(Finding::of(path, "needs a description of one line"));
    }
    let named = package.get("name").and_then(Value::as_str).unwrap_or_default();
    if named != "hearth" && !named.starts_with("hearth-") {
        findings.push(Finding::of(path, format!("package {named:?} is to be called hearth-<folder>")));
    }
    findings.extend(own_versions(path, manifest));
    findings
}

/// Dependencies of a member that none of its files names. `words` are the identifiers of all its
/// Rust files.
pub fn unused(path: &str, manifest: &Table, words: &BTreeSet<String>) -> Vec<Finding> {
    let includes = words.contains("include") || words.contains("include_proto");
    dependencies(manifest)
        .map(|(name, _)| name)
        .filter(|name| !words.contains(&name.replace('-', "_")))
        .filter(|name| !(includes && IN_GENERATED_CODE.contains(&name.as_str())))
        .map(|name| Finding::of(path, format!("{name} is used nowhere in this package: remove it")))
        .collect()
}

/// Shared versions that no member takes.
pub fn unclaimed(root: &Table, members: &[Table]) -> Vec<Finding> {
    let claimed: BTreeSet<&String> = members.iter().flat_map(dependencies).map(|(name, _)| name).collect();
    let shared = root.get("workspace").and_then(|workspace| workspace.get("dependencies")?.as_table());
    shared
        .into_iter()
        .flat_map(Table::keys)
        .filter(|name| !claimed.contains(name))
        .map(|name| Finding::of("Cargo.toml", format!("{name} is used by no member: remove it")))
        .collect()
}

fn dependencies(manifest: &Table) -> impl Iterator<Item = (&String, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    std::iter::once(manifest)
        .chain(targets.filter_map(Value::as_table))
        .flat_map(|scope| DEPENDENCY_TABLES.iter().filter_map(|name| scope.get(*name)?.as_table()))
        .flatten()
}

fn own_versions(path: &str, manifest: &Table) -> Vec<Finding> {
    dependencies(manifest)
        .filter(|(_, dependency)| !inherits(dependency))
        .map(|(name, _)| {
            Finding::of(
                path,
                format!("{name} needs workspace = true: its version belongs in the root Cargo.toml"),
            )
        })
        .collect()
}

fn inherits(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "[package]\nname = \"hearth-x\"\ndescription = \"x\"\nversion.workspace = true\n\
        edition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\n\
        publish.workspace = true\n";

    fn of(rest: &str) -> Vec<Finding> {
        strays("x/Cargo.toml", &format!("{HEAD}{rest}").parse().unwrap())
    }

    #[test]
    fn a_manifest_that_inherits_passes() {
        let rest = "[lints]\nworkspace = true\n[dependencies]\nserde.workspace = true\n\
            tokio = { workspace = true, features = [\"net\"] }\n";
        assert_eq!(of(rest), []);
    }

    #[test]
    fn missing_lints_are_found() {
        assert_eq!(of("").len(), 1);
    }

    #[test]
    fn a_version_in_a_crate_is_found_in_every_table() {
        let rest = "[lints]\nworkspace = true\n[dependencies]\na = \"1\"\n[dev-dependencies]\n\
            b = { path = \"../b\" }\n[target.'cfg(unix)'.build-dependencies]\nc = { version = \"2\" }\n";
        assert_eq!(of(rest).len(), 3);
    }

    #[test]
    fn what_nothing_names_is_found() {
        let manifest: Table = "[dependencies]\na-b.workspace = true\nc.workspace = true\n\
            prost.workspace = true\n"
            .parse()
            .unwrap();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(unused("x", &manifest, &words(&["a_b", "c", "prost"])), []);
        assert_eq!(unused("x", &manifest, &words(&["a_b", "c", "include"])), []);
        assert_eq!(unused("x", &manifest, &words(&["a_b"])).len(), 2);
        let root = "[workspace.dependencies]\nc = \"1\"\nd = \"1\"\n".parse().unwrap();
        let found = unclaimed(&root, &[manifest]);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.starts_with("d "), "{}", found[0]);
    }

    #[test]
    fn a_foreign_name_and_own_fields_are_found() {
        let manifest = "[package]\nname = \"x\"\nversion = \"1.0.0\"\n[lints]\nworkspace = true\n";
        assert_eq!(strays("x/Cargo.toml", &manifest.parse().unwrap()).len(), INHERITED.len() + 2);
    }
}
