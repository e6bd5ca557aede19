//! The index against a model that keeps every entry in a map and answers by asking for each block.

use std::collections::{BTreeMap, BTreeSet};

use hearth_proto::identity::{AttentionGroup, LAYOUT_CANONICAL};
use hearth_proto::key::pack;
use hearth_proto::v1::{self, SnapshotBegin, SnapshotEnd};
use hearth_proto::version::BLOCK_FORMAT;
use proptest::prelude::*;

use super::*;

const HOLDERS: [&str; 3] = ["http://e0", "http://e1", "http://e2"];

/// A key whose first eight bytes are spread over the whole range.
fn key(n: u64) -> BlockKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    BlockKey(bytes)
}

/// A forest of chains: each chain leaves its parent chain at some block.
fn chain(of: usize, depth: usize) -> Vec<BlockKey> {
    // Chain n shares its first 5 * n blocks with chain 0.
    let shared = 5 * of;
    (0..depth).map(|i| key(if i < shared { i as u64 } else { 1000 * (of as u64 + 1) + i as u64 })).collect()
}

fn message(shard: u32, seq: u64, body: Body) -> FeedMessage {
    FeedMessage { incarnation: 7, shard, seq, body: Some(body) }
}

fn begin() -> Body {
    Body::SnapshotBegin(SnapshotBegin { shards: 2 })
}

fn end(seq: u64) -> Body {
    Body::SnapshotEnd(SnapshotEnd { seq })
}

fn stored(tier: Tier, holder: &str, keys: &[BlockKey], parent: &[BlockKey]) -> Body {
    Body::Stored(Stored {
        tier: tier.into(),
        holder: holder.into(),
        parent: pack(parent),
        depth: 0,
        keys: pack(keys),
    })
}

fn removed(tier: Tier, holder: &str, keys: &[BlockKey]) -> Body {
    Body::Removed(Removed { tier: tier.into(), holder: holder.into(), keys: pack(keys) })
}

fn joined() -> Index {
    let mut index = Index::default();
    index.apply(message(0, 0, begin())).expect("legal");
    index.apply(message(0, 0, end(0))).expect("legal");
    index
}

/// The same knowledge, without any cleverness.
#[derive(Default)]
struct Model(BTreeMap<BlockKey, BTreeSet<(i32, String)>>);

impl Model {
    fn matches(&self, keys: &[BlockKey]) -> Match {
        let has = |key: &BlockKey, tier: Tier, holder: &str| {
            self.0.get(key).is_some_and(|at| at.contains(&(tier as i32, holder.to_owned())))
        };
        let store = |key: &BlockKey| [Tier::Pinned, Tier::Nvme].into_iter().find(|&tier| has(key, tier, ""));
        let held: BTreeMap<&str, usize> = HOLDERS
            .iter()
            .map(|&h| (h, keys.iter().take_while(|key| has(key, Tier::Engine, h)).count()))
            .filter(|(_, blocks)| *blocks > 0)
            .collect();
        let deepest = held.values().copied().max().unwrap_or(0);
        let mut spans: Vec<StoreSpan> = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            match (store(key), spans.last_mut()) {
                (None, _) if i >= deepest => break,
                (None, _) => {}
                (Some(tier), Some(span)) if span.end == i && span.tier == tier => span.end += 1,
                (Some(tier), _) => spans.push(StoreSpan { first: i, end: i + 1, tier }),
            }
        }
        let engines = held.iter().map(|(&h, &blocks)| HolderMatch { holder: h.into(), blocks }).collect();
        Match { engines, store: spans }
    }

    fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        for (key, places) in &self.0 {
            for (tier, holder) in places {
                digest.add(key, Tier::try_from(*tier).expect("known"), holder);
            }
        }
        digest
    }
}

fn sorted(mut found: Match) -> Match {
    found.engines.sort_by(|a, b| a.holder.cmp(&b.holder));
    found
}

#[derive(Clone, Debug)]
struct Step {
    add: bool,
    place: usize,
    chain: usize,
    from: usize,
    blocks: usize,
}

fn place(n: usize) -> (Tier, &'static str) {
    [
        (Tier::Pinned, ""),
        (Tier::Nvme, ""),
        (Tier::Engine, HOLDERS[0]),
        (Tier::Engine, HOLDERS[1]),
        (Tier::Engine, HOLDERS[2]),
    ][n]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (prop::bool::weighted(0.65), 0usize..5, 0usize..4, 0usize..40, 1usize..40)
        .prop_map(|(add, place, chain, from, blocks)| Step { add, place, chain, from, blocks });
    // Starting at the root half of the time makes long matches likely; the other half makes holes.
    let rooted = step.clone().prop_map(|s| Step { from: 0, ..s });
    prop::collection::vec(prop_oneof![step, rooted], 1..60)
}

proptest! {
    #[test]
    fn any_history_matches_the_model(steps in steps()) {
        let mut index = joined();
        let mut model = Model::default();
        for (seq, step) in (1..).zip(&steps) {
            let keys = chain(step.chain, step.from + step.blocks);
            let (parents, keys) = keys.split_at(step.from);
            let (tier, holder) = place(step.place);
            let entry = (tier as i32, holder.to_owned());
            if step.add {
                let parent = parents.last().map(std::slice::from_ref).unwrap_or_default();
                index.apply(message(0, seq, stored(tier, holder, keys, parent))).expect("legal");
                keys.iter().for_each(|key| { model.0.entry(*key).or_default().insert(entry.clone()); });
            } else {
                index.apply(message(0, seq, removed(tier, holder, keys))).expect("legal");
                for key in keys {
                    model.0.entry(*key).or_default().remove(&entry);
                }
                model.0.retain(|_, places| !places.is_empty());
            }
            for of in 0..4 {
                let asked = chain(of, 80);
                prop_assert_eq!(sorted(index.matches(&asked)), model.matches(&asked));
            }
            prop_assert_eq!(index.blocks(), model.0.len());
            let digest = model.digest();
            let beat = Heartbeat { seq, entries: digest.entries, digest: digest.bits };
            prop_assert!(index.apply(message(0, 0, Body::Heartbeat(beat))).is_ok());
        }
        index.apply(message(0, 0, begin())).expect("legal");
        prop_assert_eq!(index.blocks(), 0);
        prop_assert_eq!(index.matches(&chain(0, 80)), Match::default());
    }
}

/// Messages that keep to no rule: keys that are no chain, parents that are none, wrong numbers and shards.
fn any_message() -> impl Strategy<Value = FeedMessage> {
    let keys = || prop::collection::vec((0u64..12).prop_map(key), 0..12);
    let body = (0u8..6, keys(), keys(), -1i32..5, 0u64..3).prop_map(|(kind, keys, parent, tier, seq)| {
        let (holder, keys, parent) = (format!("e{}", keys.len() % 3), pack(&keys), pack(&parent));
        match kind {
            0 => Body::SnapshotBegin(SnapshotBegin { shards: u32::try_from(seq).expect("small") + 1 }),
            1 => Body::SnapshotEnd(SnapshotEnd { seq }),
            2 => Body::Removed(Removed { tier, holder, keys }),
            _ => Body::Stored(Stored { tier, holder, parent, depth: 0, keys }),
        }
    });
    let seq = prop_oneof![3 => Just(0u64), 1 => 0u64..4];
    (0u32..2, seq, body).prop_map(|(shard, seq, body)| message(shard, seq, body))
}

proptest! {
    #[test]
    fn whatever_a_store_sends_is_survived(messages in prop::collection::vec(any_message(), 1..80), asked in prop::collection::vec((0u64..12).prop_map(key), 0..20)) {
        let mut index = joined();
        index.apply(message(0, 0, begin())).expect("legal");
        for message in messages {
            // Going on after an error is what a router never does; nothing may break even so.
            let _refused = index.apply(message);
            let found = index.matches(&asked);
            prop_assert!(found.engines.iter().all(|held| held.blocks <= asked.len()));
            prop_assert!(found.store.iter().all(|span| span.first < span.end && span.end <= asked.len()));
        }
    }
}

#[test]
fn a_long_chain_spans_many_runs_and_costs_few_bytes() {
    let mut index = joined();
    let keys: Vec<BlockKey> = (0..100_000).map(key).collect();
    for (n, keys_64) in keys.chunks(64).enumerate() {
        let parent = if n == 0 { &[] } else { &keys[64 * n - 1..64 * n] };
        let seq = 2 * n as u64 + 1;
        index.apply(message(0, seq, stored(Tier::Pinned, "", keys_64, parent))).expect("legal");
        index.apply(message(0, seq + 1, stored(Tier::Engine, HOLDERS[0], keys_64, parent))).expect("legal");
    }
    let found = index.matches(&keys);
    assert_eq!(found.held_by(|holder| holder == HOLDERS[0]), 100_000);
    assert_eq!(found.store, [StoreSpan { first: 0, end: 100_000, tier: Tier::Pinned }]);
    let per_block = index.bytes() / index.blocks();
    assert!(per_block <= 24, "{per_block} bytes per block");
}

#[test]
fn shards_are_forgotten_one_by_one() {
    let mut index = joined();
    assert!(!index.complete());
    index.apply(message(1, 0, begin())).expect("legal");
    assert!(!index.complete());
    let keys = chain(0, 20);
    index.apply(message(1, 0, stored(Tier::Pinned, "", &keys[10..], &keys[9..10]))).expect("legal");
    index.apply(message(1, 0, end(4))).expect("legal");
    assert!(index.complete());
    index.apply(message(0, 1, stored(Tier::Pinned, "", &keys[..10], &[]))).expect("legal");
    assert_eq!(index.matches(&keys).loadable_after(0), Loadable { pinned: 20, nvme: 0 });
    index.apply(message(1, 0, begin())).expect("legal");
    assert_eq!(index.matches(&keys).loadable_after(0), Loadable { pinned: 10, nvme: 0 });
}

#[test]
fn the_store_fills_in_after_what_an_engine_holds() {
    let mut index = joined();
    let keys = chain(0, 30);
    index.apply(message(0, 1, stored(Tier::Engine, HOLDERS[0], &keys[..10], &[]))).expect("legal");
    index.apply(message(0, 2, stored(Tier::Nvme, "", &keys[5..15], &keys[4..5]))).expect("legal");
    index.apply(message(0, 3, stored(Tier::Pinned, "", &keys[15..20], &keys[14..15]))).expect("legal");
    let found = index.matches(&keys);
    assert_eq!(found.held_by(|holder| holder == HOLDERS[0]), 10);
    assert_eq!(found.loadable_after(10), Loadable { pinned: 5, nvme: 5 });
    assert_eq!(found.loadable_after(0), Loadable::default());
    assert_eq!(found.loadable_after(17), Loadable { pinned: 3, nvme: 0 });
}

#[test]
fn whatever_makes_the_copy_doubtful_asks_to_join_again() {
    let keys = chain(0, 4);
    let label = |messages: Vec<FeedMessage>| {
        let mut index = joined();
        messages.into_iter().find_map(|m| index.apply(m).err()).expect("must be refused").label()
    };
    let add = |seq| message(0, seq, stored(Tier::Pinned, "", &keys, &[]));
    assert_eq!(label(vec![add(1), add(3)]), "gap");
    assert_eq!(label(vec![add(1), add(1)]), "gap");
    assert_eq!(label(vec![FeedMessage { incarnation: 8, ..add(1) }]), "incarnation");
    let beat = |seq, entries| message(0, 0, Body::Heartbeat(Heartbeat { seq, entries, digest: 0 }));
    assert_eq!(label(vec![add(1), beat(1, 3)]), "digest");
    assert_eq!(label(vec![add(1), beat(2, 4)]), "gap");
    assert_eq!(label(vec![message(1, 1, stored(Tier::Pinned, "", &keys, &[]))]), "protocol");
    assert_eq!(label(vec![message(SHARDS_MAX, 0, begin())]), "protocol");
    assert_eq!(label(vec![message(2, 0, begin())]), "protocol");
    assert_eq!(label(vec![message(0, 0, end(1))]), "protocol");
    assert_eq!(label(vec![FeedMessage { body: None, ..add(1) }]), "protocol");
    let torn = Body::Removed(Removed { tier: 2, holder: String::new(), keys: vec![0; 33] });
    assert_eq!(label(vec![message(0, 1, torn)]), "protocol");
    let unknown = Body::Removed(Removed { tier: 9, holder: String::new(), keys: vec![] });
    assert_eq!(label(vec![message(0, 1, unknown)]), "protocol");
    let moved = message(1, 0, stored(Tier::Pinned, "", &keys, &[]));
    assert_eq!(label(vec![add(1), message(1, 0, begin()), moved]), "protocol");
}

#[test]
fn identities_are_found_by_model_latest_first() {
    let identity = |revision: &str| CacheIdentity {
        model: "demo".into(),
        revision: revision.into(),
        tokenizer: String::new(),
        compute_dtype: "f32".into(),
        kv_dtype: "f32".into(),
        kv_scale: "none".into(),
        groups: vec![AttentionGroup { kind: "full".into(), layers: 1, kv_heads: 1, head_dim: 2 }],
        block_tokens: 16,
        rope: String::new(),
        adapter: String::new(),
        adapter_revision: String::new(),
        layout: LAYOUT_CANONICAL.into(),
        format: BLOCK_FORMAT,
    };
    let registered = |identity: &CacheIdentity| {
        Body::Registered(Registered {
            identity: Some(v1::Identity::from(identity)),
            fingerprint: identity.fingerprint().0.to_vec(),
        })
    };
    let mut index = joined();
    for (seq, revision) in (1..).zip(["r1", "r2", "r1"]) {
        index.apply(message(0, seq, registered(&identity(revision)))).expect("legal");
    }
    let revisions: Vec<String> = index.identities("demo").iter().map(|i| i.revision.clone()).collect();
    assert_eq!(revisions, ["r1", "r2"]);
    assert!(index.identities("other").is_empty());
    let lie = Body::Registered(Registered {
        identity: Some(v1::Identity::from(&identity("r3"))),
        fingerprint: vec![0; 32],
    });
    assert!(matches!(index.apply(message(0, 4, lie)), Err(Rejoin::Protocol(ProtocolError::Fingerprint(_)))));
}
