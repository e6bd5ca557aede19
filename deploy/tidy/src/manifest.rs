//! Lints, versions and package fields come from the workspace root.

use toml::{Table, Value};

use crate::Finding;

const INHERITED: &[&str] = &["version", "edition", "rust-version", "license", "publish"];
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

fn own_versions(path: &str, manifest: &Table) -> Vec<Finding> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    std::iter::once(manifest)
        .chain(targets.filter_map(Value::as_table))
        .flat_map(|scope| DEPENDENCY_TABLES.iter().filter_map(|name| scope.get(*name)?.as_table()))
        .flatten()
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
    fn a_foreign_name_and_own_fields_are_found() {
        let manifest = "[package]\nname = \"x\"\nversion = \"1.0.0\"\n[lints]\nworkspace = true\n";
        assert_eq!(strays("x/Cargo.toml", &manifest.parse().unwrap()).len(), INHERITED.len() + 2);
    }
}
