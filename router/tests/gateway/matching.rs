//! Requests follow what the store says about who has what, and go on without it.

use std::path::Path;

use hearth_proto::v1::Tier;
use http::StatusCode;
use serde_json::json;

use crate::client::{Answer, ask, chat, completion, get, post_json};
use crate::engine::{Engine, Script};
use crate::router::Router;
use crate::store::{ScriptedStore, heartbeat, keys, message, removed, secret, snapshot, stored};
use crate::until;

const COMPLETIONS: &str = "/v1/completions";

/// Two engines, a store, and a router that knows the model.
struct Cluster {
    engines: [Engine; 2],
    store: ScriptedStore,
    router: Router,
    _dir: tempfile::TempDir,
}

/// The tokens of a prompt of so many blocks, and a rest.
fn prompt(blocks: u32) -> Vec<u32> {
    (0..blocks * 16 + 5).map(|i| i * 7 % 100).collect()
}

/// A model directory that holds no more than the router reads.
fn model(dir: &Path) {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..100).map(|n| (format!("w{n}"), n.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" }
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("written");
}

impl Cluster {
    /// The scripts get the engines' addresses: an engine's name in the feed is its URL.
    async fn start(scripts: impl FnOnce([String; 2]) -> Vec<Vec<hearth_proto::v1::FeedMessage>>) -> Self {
        let engines =
            [Engine::start("demo", Script::Whole).await, Engine::start("demo", Script::Whole).await];
        let urls = [0, 1].map(|n: usize| format!("http://{}/", engines[n].address));
        let store = ScriptedStore::start(scripts(urls.clone())).await;
        let dir = tempfile::tempdir().expect("a directory");
        model(dir.path());
        let key = dir.path().join("default.key");
        std::fs::write(&key, secret().to_hex()).expect("written");
        let router = Router::start(&[
            "--engine",
            &urls[0],
            "--engine",
            &urls[1],
            "--store-grpc",
            &store.address,
            "--tenant-secret",
            key.to_str().expect("text"),
            "--model",
            dir.path().to_str().expect("text"),
            "--served-model-name",
            "demo",
            "--served-model-name",
            "alias",
        ])
        .await;
        Self { engines, store, router, _dir: dir }
    }

    async fn complete(&self, tokens: &[u32]) -> Answer {
        let answer = ask(post_json(&self.router.address, COMPLETIONS, &completion(tokens))).await;
        assert_eq!(answer.status, StatusCode::OK);
        answer
    }

    async fn decision(&self, tokens: &[u32]) -> String {
        self.complete(tokens).await.header("x-hearth-decision").to_owned()
    }

    async fn metrics(&self) -> String {
        String::from_utf8_lossy(&get(&self.router.address, "/metrics").await.body).into_owned()
    }
}

#[tokio::test]
async fn the_longest_match_is_picked_and_explained() {
    let all = prompt(20);
    let chain = keys(&all);
    let cluster = Cluster::start(|urls| {
        vec![snapshot(vec![
            stored(Tier::Engine, &urls[0], &chain[..4]),
            stored(Tier::Engine, &urls[1], &chain[..19]),
        ])]
    })
    .await;
    for _ in 0..3 {
        let answer = cluster.complete(&all).await;
        assert_eq!(answer.header("x-hearth-endpoint"), cluster.engines[1].address);
        let why = "match=304/325 engine=304 store=0 load=0 requests=0 candidates=2";
        assert_eq!(answer.header("x-hearth-decision"), why);
    }
    // Text and tokens are the same prompt.
    let text: Vec<String> = all.iter().map(|token| format!("w{token}")).collect();
    let text = json!({ "model": "demo", "prompt": text.join(" ") });
    let answer = ask(post_json(&cluster.router.address, COMPLETIONS, &text)).await;
    assert_eq!(answer.header("x-hearth-endpoint"), cluster.engines[1].address);
    // So it is by another name of the model.
    let alias = json!({ "model": "alias", "prompt": all });
    let answer = ask(post_json(&cluster.router.address, COMPLETIONS, &alias)).await;
    assert_eq!(answer.header("x-hearth-endpoint"), cluster.engines[1].address);
    // A salt makes it another one.
    let salted = json!({ "model": "demo", "prompt": all, "cache_salt": "s" });
    let answer = ask(post_json(&cluster.router.address, COMPLETIONS, &salted)).await;
    assert!(answer.header("x-hearth-decision").starts_with("match=0/325 "));
    let metrics = cluster.metrics().await;
    assert!(metrics.contains("hearth_router_feed_connected 1"), "{metrics}");
    assert!(metrics.contains("hearth_router_index_blocks 19"), "{metrics}");
    assert!(metrics.contains("hearth_router_prompt_tokens_total{source=\"engine\"} 1520"), "{metrics}");
}

#[tokio::test]
async fn what_the_store_holds_counts_for_every_engine_and_changes_are_followed() {
    let all = prompt(20);
    let chain = keys(&all);
    let cluster = Cluster::start(|_| vec![snapshot(vec![stored(Tier::Pinned, "", &chain)])]).await;
    assert_eq!(
        cluster.decision(&all).await,
        "match=320/325 engine=0 store=320 load=0 requests=0 candidates=2"
    );
    cluster.store.send(message(11, removed(Tier::Pinned, "", &chain[10..]))).await;
    cluster.store.send(message(0, heartbeat(11, &chain[..10]))).await;
    until("the removal", || async {
        cluster.decision(&all).await.starts_with("match=160/325 engine=0 store=160")
    })
    .await;
    assert_eq!(cluster.store.joined(), 1);
    let picked: std::collections::BTreeSet<String> =
        [cluster.complete(&all).await, cluster.complete(&all).await]
            .iter()
            .map(|a| a.header("x-hearth-endpoint").to_owned())
            .collect();
    assert_eq!(picked.len(), 2, "equals take turns");
}

#[tokio::test]
async fn lost_events_and_wrong_digests_make_it_join_again() {
    let all = prompt(20);
    let chain = keys(&all);
    let cluster = Cluster::start(|_| {
        let of = |blocks: usize| snapshot(vec![stored(Tier::Pinned, "", &chain[..blocks])]);
        vec![of(5), of(10), of(15)]
    })
    .await;
    assert!(cluster.decision(&all).await.starts_with("match=80/325"));
    cluster.store.send(message(12, removed(Tier::Pinned, "", &chain[..1]))).await;
    until("the second joining", || async { cluster.decision(&all).await.starts_with("match=160/325") }).await;
    cluster.store.send(message(0, heartbeat(10, &chain[..9]))).await;
    until("the third joining", || async { cluster.decision(&all).await.starts_with("match=240/325") }).await;
    let metrics = cluster.metrics().await;
    for reason in ["gap", "digest"] {
        let line = format!("hearth_router_feed_rejoins_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[tokio::test]
async fn without_the_store_requests_go_by_load() {
    let all = prompt(20);
    let chain = keys(&all);
    let cluster = Cluster::start(|_| vec![snapshot(vec![stored(Tier::Pinned, "", &chain)])]).await;
    assert!(cluster.decision(&all).await.starts_with("match=320/325"));
    cluster.store.hang_up();
    until("the loss", || async { cluster.decision(&all).await.starts_with("match=unknown(no-feed)") }).await;
    let metrics = cluster.metrics().await;
    assert!(metrics.contains("hearth_router_feed_connected 0"), "{metrics}");
    assert!(metrics.contains("hearth_router_index_blocks 0"), "{metrics}");
    assert_eq!(get(&cluster.router.address, "/health").await.json()["follows_store"], false);
}

#[tokio::test]
async fn a_store_that_was_never_there_is_no_obstacle() {
    let engine = Engine::start("demo", Script::Whole).await;
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("default.key");
    std::fs::write(&key, secret().to_hex()).expect("written");
    let args = [
        "--engine",
        &engine.address,
        "--store-grpc",
        "127.0.0.1:1",
        "--tenant-secret",
        key.to_str().expect("text"),
    ];
    let router = Router::start(&args).await;
    let answer = ask(post_json(&router.address, "/v1/chat/completions", &chat("demo"))).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.header("x-hearth-decision").starts_with("match=unknown(no-tokenizer)"));
}

#[tokio::test]
async fn a_prompt_that_cannot_be_tokenized_is_the_engines_to_judge() {
    let cluster = Cluster::start(|_| vec![snapshot(vec![])]).await;
    // The model has no chat template.
    let answer = ask(post_json(&cluster.router.address, "/v1/chat/completions", &chat("demo"))).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.header("x-hearth-decision").starts_with("match=unknown(not-tokenized)"));
    assert_eq!(cluster.engines.iter().map(Engine::requests).sum::<usize>(), 1);
}

#[tokio::test]
async fn the_feed_comes_over_a_unix_socket_too() {
    let engine = Engine::start("demo", Script::Whole).await;
    let dir = tempfile::tempdir().expect("a directory");
    let (socket, key) = (dir.path().join("grpc.sock"), dir.path().join("default.key"));
    std::fs::write(&key, secret().to_hex()).expect("written");
    let store = ScriptedStore::start_unix(&socket, vec![snapshot(vec![])]);
    let args = ["--engine", &engine.address, "--store-grpc", &store.address, "--tenant-secret"];
    let router = Router::start(&[&args[..], &[key.to_str().expect("text")]].concat()).await;
    assert_eq!(get(&router.address, "/health").await.json()["follows_store"], true);
}
