//! A real store node keeps what a store promises: the connector's suite over a real socket, real shared memory and a
//! real disk, with one shard and with several, on both ways to drive the disk, with `kill -9` in between.

mod feed;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hearth_connector::conformance::{self, BLOCKS_MIN, Bed, payload_bytes};
use hearth_connector::proto::key::BlockKey;
use hearth_connector::proto::tenant::{TenantName, TenantSecret};
use hearth_connector::{Store, StoreConfig};

/// Shards of the largest node here.
const SHARDS_MAX: usize = 4;

/// A node in a process of its own, killed when dropped.
struct Node {
    dir: tempfile::TempDir,
    options: Vec<String>,
    process: Mutex<Child>,
}

impl Node {
    fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let tenants = dir.path().join("tenants");
        std::fs::create_dir(&tenants).expect("a directory");
        for number in 0..2 {
            let (name, secret) = tenant(number);
            write_secret(&tenants.join(format!("{name}.key")), &secret);
        }
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let process = Mutex::new(spawn(dir.path(), &options));
        Self { dir, options, process }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let process = self.process.get_mut().expect("no panic while it was locked");
        process.kill().ok();
        process.wait().ok();
    }
}

/// Starts a node on the directory and waits until it serves.
fn spawn(dir: &Path, options: &Vec<String>) -> Child {
    let ready = dir.join("ready.json");
    std::fs::remove_file(&ready).ok();
    // Memory is split between tenants and shards, and a run may lie in one shard.
    let pinned = 2 * SHARDS_MAX * (BLOCKS_MIN + 16) * (payload_bytes() + 4096);
    let process = Command::new(env!("CARGO_BIN_EXE_hearth"))
        .arg("cachesvc")
        .args(["--grpc", "127.0.0.1:0", "--listen", "127.0.0.1:0"])
        .args(["--pinned-bytes", &pinned.to_string(), "--nvme-bytes", "256MiB"])
        .args(options)
        .arg("--data-dir")
        .arg(dir.join("data"))
        .arg("--tenants")
        .arg(dir.join("tenants"))
        .arg("--socket")
        .arg(dir.join("s"))
        .arg("--ready-file")
        .arg(&ready)
        .env("RUST_LOG", "error")
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let until = Instant::now() + Duration::from_secs(30);
    while !ready.exists() {
        assert!(Instant::now() < until, "the node is not ready in time");
        std::thread::sleep(Duration::from_millis(5));
    }
    process
}

fn tenant(number: usize) -> (TenantName, TenantSecret) {
    let name = ["default", "other"][number].parse().expect("a valid name");
    (name, TenantSecret::from_bytes([u8::try_from(number).expect("0 or 1") + 1; 32]))
}

fn write_secret(path: &Path, secret: &TenantSecret) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    writeln!(file.expect("a new file"), "{}", secret.to_hex()).expect("written");
}

impl Bed for Node {
    fn tenant(&self, number: usize) -> (TenantName, TenantSecret) {
        tenant(number)
    }

    fn blocks(&self) -> usize {
        SHARDS_MAX * BLOCKS_MIN
    }

    fn open(&self, mut config: StoreConfig) -> Store {
        config.socket = Some(self.dir.path().join("s"));
        Store::open(config)
    }

    fn restart(&self) -> bool {
        let mut process = self.process.lock().expect("no panic while it was locked");
        process.kill().expect("SIGKILL is sent");
        process.wait().expect("it ends");
        *process = spawn(self.dir.path(), &self.options);
        true
    }

    fn advertised(&self) -> Option<Vec<(String, BlockKey)>> {
        let ready = std::fs::read(self.dir.path().join("ready.json")).expect("the node is ready");
        let ready: serde_json::Value = serde_json::from_slice(&ready).expect("JSON");
        Some(feed::advertised(ready["grpc"].as_str().expect("an address"), tenant(0)))
    }
}

#[test]
fn one_shard_keeps_every_promise() {
    conformance::run(&Node::start(&["--shards", "1"]));
}

#[test]
fn several_shards_keep_every_promise() {
    conformance::run(&Node::start(&["--shards", "4"]));
}

#[test]
fn plain_reads_and_writes_keep_every_promise() {
    conformance::run(&Node::start(&["--shards", "2", "--nvme-io", "psync"]));
}
