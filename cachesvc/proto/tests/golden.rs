//! Fingerprints and keys equal the golden vectors, which `golden/verify.py` computes independently.
//!
//! The vectors are the contract: a change of one is a change of the block format. `HEARTH_GOLDEN_WRITE=1` writes the
//! file anew.

use std::path::PathBuf;

use hearth_proto::identity::{AttentionGroup, CacheIdentity};
use hearth_proto::key::KeyChain;
use hearth_proto::tenant::TenantSecret;
use serde_json::{Value, json};

fn identity(model: &str, groups: Vec<AttentionGroup>, block_tokens: u32, adapter: &str) -> CacheIdentity {
    CacheIdentity {
        model: model.to_owned(),
        revision: "4f2a".to_owned(),
        tokenizer: "sha256:77".to_owned(),
        compute_dtype: "bf16".to_owned(),
        kv_dtype: "bf16".to_owned(),
        kv_scale: "none".to_owned(),
        groups,
        block_tokens,
        rope: "theta=500000;scaling=llama3,8,1,4,8192".to_owned(),
        adapter: adapter.to_owned(),
        adapter_revision: String::new(),
        layout: "canonical".to_owned(),
        format: 1,
    }
}

fn group(kind: &str, layers: u32) -> AttentionGroup {
    AttentionGroup { kind: kind.to_owned(), layers, kv_heads: 8, head_dim: 128 }
}

fn vector(name: &str, identity: &CacheIdentity, salt: &str, tokens: Vec<u32>) -> Value {
    let secret: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).expect("below 32") ^ 0x5a);
    let secret = TenantSecret::from_bytes(secret);
    let chain = KeyChain::new(&secret, identity);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let groups: Vec<Value> = identity
        .groups
        .iter()
        .map(|g| json!({"kind": g.kind, "layers": g.layers, "kv_heads": g.kv_heads, "head_dim": g.head_dim}))
        .collect();
    json!({
        "name": name,
        "identity": {
            "model": identity.model, "revision": identity.revision, "tokenizer": identity.tokenizer,
            "compute_dtype": identity.compute_dtype, "kv_dtype": identity.kv_dtype, "kv_scale": identity.kv_scale,
            "groups": groups, "block_tokens": identity.block_tokens, "rope": identity.rope,
            "adapter": identity.adapter, "adapter_revision": identity.adapter_revision, "layout": identity.layout,
            "format": identity.format,
        },
        "secret": secret.to_hex(),
        "salt": salt,
        "fingerprint": hex(&identity.fingerprint().0),
        "keys": chain.keys(salt.as_bytes(), &tokens).iter().map(|key| hex(&key.0)).collect::<Vec<_>>(),
        "tokens": tokens,
    })
}

#[test]
fn fingerprints_and_keys_equal_the_golden_vectors() {
    let plain = identity("llama", vec![group("full", 32)], 16, "");
    let hybrid = identity("gemma ü", vec![group("full", 4), group("sliding:1024", 20)], 4, "lora-a");
    let vectors = json!([
        vector("three blocks and a rest", &plain, "", (0..53).collect()),
        vector("salted", &plain, "tenant-7 / session ü", (0..32).collect()),
        vector(
            "large tokens, small blocks, two groups, adapter",
            &hybrid,
            "",
            vec![u32::MAX, 0, 1, 7, 128_000, 2, 3, 4]
        ),
        vector("no full block", &plain, "x", vec![1, 2, 3]),
    ]);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/keys.json");
    if std::env::var_os("HEARTH_GOLDEN_WRITE").is_some() {
        let text = serde_json::to_string_pretty(&vectors).expect("plain data");
        std::fs::write(&path, text + "\n").expect("the golden file can be written");
    }
    let golden: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("the golden file is carried")).unwrap();
    assert_eq!(golden, vectors);
}
