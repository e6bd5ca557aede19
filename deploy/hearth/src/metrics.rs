//! Reads what a process's `/metrics` says: the counters of blocks asked, and whether the router sees an engine.

use std::collections::BTreeMap;

/// Whether the router sends requests to an endpoint.
const ENGINE_UP: &str = "hearth_router_engine_up";
/// The counter with one denominator that every client of the store exports.
const BLOCKS_ASKED: &str = "hearth_blocks_asked_total";

/// Blocks asked for, by what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct BlocksAsked {
    /// Found, by tier.
    pub(crate) hits: BTreeMap<String, u64>,
    /// Not found, by reason.
    pub(crate) misses: BTreeMap<String, u64>,
}

impl BlocksAsked {
    /// Takes the counters from a Prometheus text; lines that are something else are passed over.
    pub(crate) fn parse(text: &str) -> Self {
        let mut asked = Self::default();
        for (labels, value) in samples(text, BLOCKS_ASKED) {
            let Ok(count) = value.parse::<u64>() else { continue };
            let (outcomes, name) = match label(labels, "result") {
                Some("hit") => (&mut asked.hits, label(labels, "tier")),
                Some("miss") => (&mut asked.misses, label(labels, "reason")),
                _ => continue,
            };
            *outcomes.entry(name.unwrap_or_default().to_owned()).or_default() += count;
        }
        asked.hits.retain(|_, count| *count > 0);
        asked.misses.retain(|_, count| *count > 0);
        asked
    }

    /// Adds another process's counts.
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in [(&mut self.hits, &other.hits), (&mut self.misses, &other.misses)] {
            for (name, count) in theirs {
                *mine.entry(name.clone()).or_default() += count;
            }
        }
    }

    /// All blocks asked for.
    pub(crate) fn total(&self) -> u64 {
        self.hits.values().chain(self.misses.values()).sum()
    }

    /// Found in this tier.
    pub(crate) fn hits_in(&self, tier: &str) -> u64 {
        self.hits.get(tier).copied().unwrap_or_default()
    }

    /// Not found for this reason.
    pub(crate) fn misses_for(&self, reason: &str) -> u64 {
        self.misses.get(reason).copied().unwrap_or_default()
    }
}

/// Whether a router's metrics say that it sends requests to the engine at this `host:port`.
pub(crate) fn sees_engine(text: &str, address: &str) -> bool {
    samples(text, ENGINE_UP).any(|(labels, value)| label(labels, "endpoint") == Some(address) && value == "1")
}

/// The labels and the value of each labelled sample of a metric, as written.
fn samples<'a>(text: &'a str, name: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    text.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.split_once('}')?;
        Some((labels, value.split_whitespace().next()?))
    })
}

/// The value of a label. Tiers and reasons hold no quotes and no commas.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP hearth_blocks_asked Blocks asked for.
# TYPE hearth_blocks_asked counter
hearth_blocks_asked_total{result=\"hit\",tier=\"engine\",reason=\"\"} 280
hearth_blocks_asked_total{result=\"hit\",tier=\"pinned\",reason=\"\"} 20
hearth_blocks_asked_total{result=\"hit\",tier=\"nvme\",reason=\"\"} 0
hearth_blocks_asked_total{reason=\"absent\",result=\"miss\",tier=\"\"} 9
hearth_blocks_asked_total{reason=\"corrupt\",result=\"miss\",tier=\"nvme\"} 1
hearth_blocks_asked_total 5
hearth_blocks_asked_total{result=\"hit\"
hearth_requests_total{result=\"hit\",tier=\"engine\"} 7
";

    #[test]
    fn counters_are_taken_by_tier_and_reason() {
        let asked = BlocksAsked::parse(TEXT);
        assert_eq!((asked.hits_in("engine"), asked.hits_in("pinned"), asked.hits_in("nvme")), (280, 20, 0));
        assert_eq!((asked.misses_for("absent"), asked.misses_for("corrupt")), (9, 1));
        assert_eq!(asked.total(), 310);
    }

    #[test]
    fn an_engine_is_seen_when_its_gauge_is_one() {
        let text =
            "hearth_router_engine_up{endpoint=\"a:1\"} 1\nhearth_router_engine_up{endpoint=\"b:2\"} 0\n";
        assert!(sees_engine(text, "a:1"));
        assert!(!sees_engine(text, "b:2") && !sees_engine(text, "c:3") && !sees_engine("", "a:1"));
    }

    #[test]
    fn processes_add_up() {
        let mut sum = BlocksAsked::parse(TEXT);
        sum.add(&BlocksAsked::parse(TEXT));
        assert_eq!(sum.total(), 620);
        assert_eq!(BlocksAsked::parse("").total(), 0);
    }
}
