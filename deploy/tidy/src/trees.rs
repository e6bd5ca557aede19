//! Which foreign crates may never reach a crate, at any depth.

use crate::Finding;

/// A crate of ours, the edges of its tree that count, and what may not be in it.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// Package whose tree is looked at.
    pub package: &'static str,
    /// Edge kinds as `cargo tree --edges` names them.
    pub edges: &'static str,
    /// Beginnings of crate names, or of a word in one (`cuda` finds `cudarc` and `cubecl-cuda`).
    pub forbidden: &'static [&'static str],
    /// Why.
    pub reason: &'static str,
}

/// Every tree that is looked at.
pub const GUARDS: &[Guard] = &[
    Guard {
        package: "hearth-router",
        edges: "normal,build,dev",
        forbidden: &[
            "candle",
            "safetensors",
            "ucx",
            "rdma",
            "verbs",
            "ibverbs",
            "cuda",
            "hip",
            "io-uring",
            "tokio-uring",
            "memmap2",
            "sled",
        ],
        reason: "the router moves no KV bytes and runs where there is no device",
    },
    Guard {
        package: "hearth-proto",
        edges: "normal",
        forbidden: &["tokio", "tonic", "rustix", "libc", "mio", "socket2", "memmap2", "tracing"],
        reason: "the contract is pure data: no I/O, no async",
    },
    Guard {
        package: "hearth-connector",
        edges: "normal,build",
        forbidden: &["candle", "io-uring", "sled", "axum", "cuda", "hip"],
        reason: "the client is linked into foreign engines: it brings neither a store nor a tensor library",
    },
    Guard {
        package: "hearth-transfer",
        edges: "normal,build",
        forbidden: &["candle", "prost", "tonic", "io-uring"],
        reason: "transfer moves bytes and knows no message, no tensor and no disk",
    },
];

/// Crates of one tree (`name` or `name vX.Y.Z` per line) that its guard forbids.
pub fn forbidden(guard: &Guard, tree: &str) -> Vec<Finding> {
    let mut names: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .filter(|name| guard.forbidden.iter().any(|pattern| matches(name, pattern)))
        .map(|name| {
            let what = format!(
                "holds {name}: {} (cargo tree -p {} -i {name} shows the way in)",
                guard.reason, guard.package
            );
            Finding::of(guard.package, what)
        })
        .collect()
}

fn matches(name: &str, pattern: &str) -> bool {
    name.starts_with(pattern) || name.split(['-', '_']).any(|word| word.starts_with(pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_crate_deep_in_the_tree_is_found() {
        let tree = "hearth-router v0.1.0\ntokio v1.54.0\ncandle-core v0.11.1\ncubecl-cuda v0.9.0\ntokio v1.54.0 (*)\n";
        let found = forbidden(&GUARDS[0], tree);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].what.contains("candle-core"));
    }

    #[test]
    fn a_clean_tree_passes() {
        assert_eq!(forbidden(&GUARDS[0], "hearth-router v0.1.0\ntokio v1.54.0\nchip v1.0.0\n"), []);
    }

    #[test]
    fn async_under_the_contract_is_found() {
        assert_eq!(forbidden(&GUARDS[1], "hearth-proto v0.1.0\ntokio-stream v0.1.0\n").len(), 1);
    }
}
