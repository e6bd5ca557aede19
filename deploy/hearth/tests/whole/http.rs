//! Requests byte by byte, to send what no client library would send.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::checkpoint::NAME;
use crate::run::{folder, until};
use crate::up::{self, Up};

const PATIENCE: Duration = Duration::from_secs(120);
const CHAT: &str = "/v1/chat/completions";

/// What a server answered.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// A chat completion request.
pub(crate) fn question(model: &str, max_tokens: usize) -> String {
    question_about(model, "You are brief.", max_tokens)
}

/// A chat completion request about a document.
pub(crate) fn question_about(model: &str, document: &str, max_tokens: usize) -> String {
    let messages = serde_json::json!([
        {"role": "system", "content": document},
        {"role": "user", "content": "What is light?"},
    ]);
    serde_json::json!({"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0})
        .to_string()
}

/// Posts a JSON body on a connection of its own.
pub(crate) fn post(address: &str, path: &str, body: &str) -> Reply {
    let mut stream = connect(address);
    stream.write_all(request(address, path, body.len()).as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    read_reply(stream)
}

/// Whether the server at this address answers its health check with 200.
pub(crate) fn try_health(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = stream.write_all(
        format!("GET /health HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes(),
    );
    let mut line = String::new();
    asked.is_ok() && BufReader::new(stream).read_line(&mut line).is_ok() && line.contains(" 200 ")
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn request(address: &str, path: &str, body_bytes: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {body_bytes}\r\n\r\n"
    )
}

fn read_reply(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    // A server that refuses a body may close before it has read all of it.
    stream.read_to_end(&mut bytes).ok();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no reply: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { body[body.find('{').unwrap_or(0)..].to_owned() } else { body.to_owned() };
    Reply { status, body }
}

fn refused(up: &Up, body: &str) -> (u16, serde_json::Value) {
    let reply = post(up.address(), CHAT, body);
    let json = serde_json::from_str(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.body));
    (reply.status, json)
}

#[test]
fn bad_requests_get_an_openai_error_and_disturb_nobody() {
    let up = up::start(folder(), &[]);
    let long = question_about(NAME, &"light ".repeat(30_000), 4);
    let mut absurd: serde_json::Value = serde_json::from_str(&question(NAME, 4)).unwrap();
    absurd["temperature"] = serde_json::json!(-3);
    for (body, status) in [
        ("{\"model\": ", 400),
        ("[]", 400),
        (question("no-such-model", 4).as_str(), 404),
        (long.as_str(), 400),
        (absurd.to_string().as_str(), 400),
    ] {
        let (got, json) = refused(&up, body);
        let shown: String = body.chars().take(80).collect();
        assert_eq!(got, status, "{shown}: {json}");
        assert!(
            json["error"]["message"].as_str().is_some_and(|message| message.len() > 10),
            "{shown}: {json}"
        );
        assert!(json["error"]["type"].is_string(), "{shown}: {json}");
    }
    assert_eq!(post(up.address(), CHAT, &question(NAME, 4)).status, 200);
}

#[test]
fn a_body_of_100_mb_is_refused() {
    let up = up::start(folder(), &["--engines", "1"]);
    let mut stream = connect(up.address());
    stream.write_all(request(up.address(), CHAT, 100 << 20).as_bytes()).unwrap();
    // The server may close while this is on its way.
    let piece = vec![b' '; 1 << 20];
    (0..100).try_for_each(|_| stream.write_all(&piece)).ok();
    assert_eq!(read_reply(stream).status, 413);
    assert_eq!(post(up.address(), CHAT, &question(NAME, 4)).status, 200);
}

#[test]
fn a_client_that_leaves_is_forgotten() {
    let up = up::start(folder(), &["--engines", "1"]);
    let mut body: serde_json::Value = serde_json::from_str(&question(NAME, 3000)).unwrap();
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    let body = body.to_string();
    let mut stream = connect(up.address());
    stream.write_all(request(up.address(), CHAT, body.len()).as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("data: ")), "no event came");
    drop(lines);
    assert_eq!(post(up.address(), CHAT, &question(NAME, 4)).status, 200);
    let engine = up.ready["engines"][0].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    until("the engine runs no request", || running_requests(&engine) == 0.0);
}

/// Requests that an engine says it is working on.
fn running_requests(engine: &str) -> f64 {
    let mut stream = connect(engine);
    stream
        .write_all(format!("GET /metrics HTTP/1.1\r\nhost: {engine}\r\nconnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let sample = |line: &&str| line.starts_with("hearth_engine_requests{") && line.contains("running");
    let line = text.lines().find(sample).unwrap_or_else(|| panic!("no such metric: {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
