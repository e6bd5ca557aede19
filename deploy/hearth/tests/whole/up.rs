//! `hearth up`: what it says, what it refuses, what it survives.

use std::fs;
use std::net::TcpListener;

use rustix::process::Signal;

use crate::checkpoint;
use crate::http;
use crate::run::{Run, folder, kill, until};

/// A stack that runs, and its addresses.
pub(crate) struct Up {
    pub(crate) run: Run,
    pub(crate) ready: serde_json::Value,
}

/// `hearth up` with a small checkpoint, on a free port.
pub(crate) fn begin(folder: tempfile::TempDir, extra: &[&str]) -> Run {
    // What an earlier run in the folder wrote would be taken for this one's.
    fs::remove_file(folder.path().join("ready.json")).ok();
    let model = checkpoint::small().to_str().unwrap();
    let mut args = vec!["up", "--model", model, "--data-dir", "data", "--ready-file", "ready.json"];
    args.extend([
        "--pinned-bytes",
        "64MiB",
        "--nvme-bytes",
        "256MiB",
        "--kv-bytes",
        "64MiB",
        "--threads",
        "1",
    ]);
    if !extra.contains(&"--listen") {
        args.extend(["--listen", "127.0.0.1:0"]);
    }
    args.extend(extra);
    Run::start(folder, &args)
}

/// As [`begin`], and waits until it is ready.
pub(crate) fn start(folder: tempfile::TempDir, extra: &[&str]) -> Up {
    let mut run = begin(folder, extra);
    let path = run.path().join("ready.json");
    until("the stack is ready", || path.exists() || run.has_ended());
    let text = fs::read_to_string(&path).unwrap_or_else(|_| panic!("{}", run.output()));
    Up { ready: serde_json::from_str(&text).unwrap(), run }
}

impl Up {
    /// `host:port` of the router.
    pub(crate) fn address(&self) -> &str {
        self.ready["url"].as_str().unwrap().strip_prefix("http://").unwrap()
    }

    fn ask(&self) -> http::Reply {
        http::post(self.address(), "/v1/chat/completions", &http::question(checkpoint::NAME, 4))
    }
}

#[test]
fn it_serves_until_it_is_asked_to_stop() {
    let mut up = start(folder(), &["--engines", "1"]);
    assert_eq!(up.ready["model"], checkpoint::NAME);
    assert_eq!(up.ready["engines"].as_array().unwrap().len(), 1);
    for key in ["socket", "grpc", "http"] {
        assert!(up.ready["store"][key].is_string(), "{key}");
    }
    assert_eq!(up.ask().status, 200);
    up.run.signal(Signal::TERM);
    assert!(up.run.wait().success(), "{}", up.run.output());
    assert_eq!(up.run.processes(), Vec::<u32>::new());
}

#[test]
fn the_curl_line_that_it_prints_works() {
    let up = start(folder(), &["--engines", "1"]);
    let output = up.run.output();
    let lines: Vec<&str> = output.lines().collect();
    let curls: Vec<String> = (0..lines.len())
        .filter(|&at| lines[at].trim_start().starts_with("curl "))
        .map(|at| format!("{}\n{}", lines[at], lines[at + 1]))
        .collect();
    assert_eq!(curls.len(), 2, "{output}");
    for curl in curls {
        let script = curl.replacen("curl", "curl --silent --show-error --fail", 1);
        let reply = std::process::Command::new("sh").arg("-c").arg(&script).output().unwrap();
        let text = String::from_utf8_lossy(&reply.stdout);
        assert!(reply.status.success() && text.contains("choices"), "{script}\n{reply:?}");
    }
}

#[test]
fn a_part_that_dies_is_started_again() {
    let up = start(folder(), &["--engines", "1"]);
    assert_eq!(up.ask().status, 200);
    for part in ["engine", "cachesvc", "router"] {
        let before = up.run.part(part);
        kill(before, Signal::KILL);
        until("the part runs again", || up.run.find_part(part).is_some_and(|now| now != before));
        until("it answers again", || http::try_health(up.address()));
        until("a request is served again", || up.ask().status == 200);
    }
}

#[test]
fn killing_it_kills_its_parts() {
    let mut up = start(folder(), &[]);
    up.run.signal(Signal::KILL);
    up.run.wait();
    up.run.wait_all_gone();
}

#[test]
fn a_port_in_use_is_refused_with_a_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut run = begin(folder(), &["--listen", &taken.local_addr().unwrap().to_string()]);
    assert_eq!(run.wait().code(), Some(1));
    let output = run.output();
    assert!(output.contains("is in use") && output.contains("--listen"), "{output}");
    assert_eq!(run.processes(), Vec::<u32>::new());
}

#[test]
fn a_data_directory_in_use_is_refused_and_the_first_goes_on() {
    let up = start(folder(), &["--engines", "1"]);
    let data = up.run.path().join("data");
    let mut second =
        Run::start(folder(), &["up", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()]);
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.output().contains("is in use by another `hearth up`"), "{}", second.output());
    assert_eq!(up.ask().status, 200);
}

#[test]
fn what_is_stored_is_found_by_the_next_start() {
    let mut up = start(folder(), &["--engines", "1"]);
    let ask = |up: &Up| {
        let body = http::question_about(checkpoint::NAME, &"Light is refracted. ".repeat(100), 4);
        let reply = http::post(up.address(), "/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        serde_json::from_str::<serde_json::Value>(&reply.body).unwrap()["usage"]["hearth"].clone()
    };
    let first = ask(&up);
    assert_eq!(first["loaded_tokens"]["nvme"], 0, "{first}");
    up.run.signal(Signal::INT);
    assert!(up.run.wait().success(), "{}", up.run.output());
    let folder = up.run.into_folder();
    let second = ask(&start(folder, &["--engines", "1"]));
    assert!(second["loaded_tokens"]["nvme"].as_u64().unwrap() > 100, "{second}");
}
