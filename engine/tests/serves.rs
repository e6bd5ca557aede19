//! An engine as an operator runs it, from the command line's settings to replies over HTTP: a generated
//! checkpoint, no store.

use std::net::SocketAddr;
use std::path::Path;

use clap::Parser;
use hearth_engine::cli::{Args, RunError, run};
use hearth_engine::generate::{TinyShape, generate_shape};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(dir: &Path, more: &[&str]) -> Args {
    let (model, ready) = (dir.join("tiny"), dir.join("ready.json"));
    let fixed = ["engine", "--model", path(&model), "--ready-file", path(&ready), "--listen", "127.0.0.1:0"];
    Cli::parse_from(fixed.into_iter().chain(more.iter().copied())).args
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A running engine.
struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
}

impl Running {
    async fn start(dir: &Path) -> Self {
        let args = args(dir, &["--kv-bytes", "64MiB", "--served-model-name", "tiny", "--threads", "2"]);
        let ready = args.ready_file.clone().expect("given");
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(run(args, async move { drop(stopped.await) }));
        while !ready.exists() {
            assert!(!ended.is_finished(), "it did not start: {:?}", ended.await);
            tokio::task::yield_now().await;
        }
        let json: Value = serde_json::from_slice(&std::fs::read(ready).expect("read")).expect("JSON");
        let address = json["http"].as_str().expect("an address").parse().expect("an address");
        Self { address, stop, ended }
    }

    async fn post(&self, path: &str, body: Value) -> String {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        stream.write_all((head + &body).as_bytes()).await.expect("written");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.expect("a reply");
        reply
    }

    async fn complete(&self, more: Value) -> Value {
        let mut body = json!({"model": "tiny", "prompt": "the cat sat on the mat", "max_tokens": 12});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let reply = self.post("/v1/completions", body).await;
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{reply}");
        serde_json::from_str(body).expect("JSON")
    }
}

fn checkpoint() -> tempfile::TempDir {
    const SHAPE: TinyShape = TinyShape {
        hidden: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 128,
        context_tokens_max: 1024,
    };
    let dir = tempfile::tempdir().expect("a directory");
    generate_shape(&dir.path().join("tiny"), &text(), &SHAPE).expect("a checkpoint");
    dir
}

/// Enough different words to train the tokenizer's vocabulary on.
fn text() -> String {
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut text = String::from("the cat sat on the mat and then another cat came in. ");
    for _ in 0..20_000 {
        for _ in 0..1 + random(3) {
            text.push(char::from(b"bcdfghjklmnprstvw"[random(17) as usize]));
            text.push(char::from(b"aeiou"[random(5) as usize]));
        }
        text.push(if random(9) == 0 { '\n' } else { ' ' });
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_serves_what_a_client_sees() {
    let dir = checkpoint();
    let engine = Running::start(dir.path()).await;

    // Greedy and seeded draws are repeatable, and requests at once do not change each other.
    let greedy = engine.complete(json!({"temperature": 0})).await;
    let text = greedy["choices"][0]["text"].clone();
    let seeded = json!({"temperature": 1.5, "seed": 7});
    let (again, first, second) = tokio::join!(
        engine.complete(json!({"temperature": 0})),
        engine.complete(seeded.clone()),
        engine.complete(seeded.clone())
    );
    assert_eq!(again["choices"][0]["text"], text);
    assert_eq!(first["choices"][0]["text"], second["choices"][0]["text"]);
    assert_ne!(first["choices"][0]["text"], text);

    // The streamed text is the same.
    let body = json!({"model": "tiny", "prompt": "the cat sat on the mat", "max_tokens": 12, "temperature": 0, "stream": true});
    let reply = engine.post("/v1/completions", body).await;
    let chunks = reply
        .split("data: ")
        .skip(1)
        .filter_map(|event| serde_json::from_str::<Value>(event.split('\n').next()?).ok());
    let streamed: String =
        chunks.filter_map(|chunk| Some(chunk["choices"][0]["text"].as_str()?.to_owned())).collect();
    assert_eq!(Value::from(streamed), text);
    assert!(reply.contains("data: [DONE]"), "{reply}");

    // A repeated long prompt is found in the engine's own pages.
    let long = json!({"prompt": "the cat sat on the mat and then another cat came in ".repeat(20), "temperature": 0});
    let cold = engine.complete(long.clone()).await;
    let warm = engine.complete(long).await;
    assert_eq!(cold["usage"]["hearth"]["loaded_tokens"]["engine"], 0);
    assert!(warm["usage"]["hearth"]["loaded_tokens"]["engine"].as_u64().is_some_and(|n| n >= 64), "{warm}");
    assert_eq!(warm["choices"], cold["choices"]);

    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4});
    let reply = engine.post("/v1/chat/completions", chat).await;
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("\"role\":\"assistant\""), "{reply}");

    // A second engine is told that the address is taken.
    let taken = engine.address.to_string();
    let error = run(Args { listen: engine.address, ..args(dir.path(), &[]) }, std::future::pending()).await;
    let error = error.expect_err("in use").to_string();
    assert!(error.contains(&taken) && error.contains("--listen"), "{error}");

    engine.stop.send(()).expect("it runs");
    engine.ended.await.expect("no panic").expect("it ends well");
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let never = std::future::pending::<()>;
    let error = run(args(dir.path(), &[]), never()).await.expect_err("no model").to_string();
    assert!(error.contains("tiny"), "names the directory: {error}");
    let error =
        run(args(dir.path(), &["--store", "require"]), never()).await.expect_err("no store").to_string();
    assert!(error.contains("--store-socket"), "{error}");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "short").expect("written");
    let more = ["--store-socket", "s", "--tenant-secret", path(&secret)];
    let error = run(args(dir.path(), &more), never()).await.expect_err("no secret").to_string();
    assert!(error.contains("64 hexadecimal digits"), "{error}");
}
