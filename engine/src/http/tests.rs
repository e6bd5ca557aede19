//! The face against a scripted engine: every reply, every refusal, and clients that misbehave.

use std::path::Path;
use std::sync::mpsc::Receiver;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request as HttpRequest};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::request::{EngineLimits, FinishReason, GenEvent, GenUsage, LoadedTokens, Submission};

mod observed;
mod refused;
mod served;
mod socket;
mod streamed;

fn limits() -> EngineLimits {
    EngineLimits { context_tokens_max: 128, requests_max: 2, pages_max: 64, page_tokens: 16, vocab: 330 }
}

pub(crate) fn model_dir() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cachesvc/prompt/tests/model")
}

/// A face and the inbox of the engine that the test plays.
pub(crate) fn stage() -> (Arc<Face>, Receiver<Submission>) {
    stage_for(&model_dir())
}

fn stage_for(model: &Path) -> (Arc<Face>, Receiver<Submission>) {
    let prompt = Arc::new(Prompt::load(model).expect("the test model"));
    let (engine, inbox) = EngineHandle::detached(limits());
    let config = FaceConfig {
        model_names: vec!["tiny".to_owned(), "org/tiny".to_owned()],
        stop_tokens: vec![1],
        system_fingerprint: "fp_test".to_owned(),
        started_unix_seconds: 1_700_000_000,
        instance: 0xabc,
        tokenize_threads: 2,
    };
    (Face::new(config, engine, prompt, Registry::default()), inbox)
}

/// Plays the engine on a thread of its own until the face is gone.
fn play(inbox: Receiver<Submission>, script: impl Fn(Submission) + Send + 'static) {
    let run = move || inbox.into_iter().for_each(script);
    std::thread::Builder::new().name("scripted engine".to_owned()).spawn(run).expect("a thread");
}

/// A face whose engine answers every request with this text.
fn face_saying(text: &'static str) -> Arc<Face> {
    let (face, inbox) = stage();
    let prompt = Arc::clone(&face.prompt);
    play(inbox, move |submission| say(&prompt, &submission, text, FinishReason::Stop));
    face
}

/// What a prompt took: all but 20 tokens of it computed.
fn usage(submission: &Submission) -> GenUsage {
    let prompt_tokens = submission.request.tokens.len();
    let loaded = LoadedTokens { engine: 2, pinned: 3, nvme: 1 };
    let computed_tokens = prompt_tokens.saturating_sub(loaded.total());
    GenUsage { prompt_tokens, completion_tokens: 0, computed_tokens, loaded }
}

pub(crate) fn say(prompt: &Prompt, submission: &Submission, text: &str, reason: FinishReason) {
    let usage = usage(submission);
    let tokens = prompt.tokenizer().encode(text, hearth_prompt::Specials::InText).expect("tokens");
    send(submission, GenEvent::Prompt { usage });
    for &id in tokens.iter().take(submission.request.new_tokens_max) {
        send(submission, GenEvent::Token { id });
    }
    let completion_tokens = tokens.len() + usize::from(reason == FinishReason::Stop);
    send(submission, GenEvent::Finished { reason, usage: GenUsage { completion_tokens, ..usage } });
}

fn send(submission: &Submission, event: GenEvent) {
    // A face that has seen enough is gone.
    let _ = submission.events.try_send(event);
}

/// A reply, read to its end.
struct Reply {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The data of a stream's events.
    fn events(&self) -> Vec<&str> {
        self.text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect()
    }

    /// The chunks of a stream, which must end with its end mark.
    fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.text);
        events.into_iter().map(|event| serde_json::from_str(event).expect("a chunk")).collect()
    }

    /// `(status, type, param, code)` of an error, whose message must say something.
    fn error(&self) -> (u16, String, Value, Value) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{}", self.text);
        let kind = error["type"].as_str().expect("a type").to_owned();
        (self.status, kind, error["param"].clone(), error["code"].clone())
    }
}

async fn ask(face: &Arc<Face>, request: HttpRequest<Body>) -> Reply {
    let response = router(Arc::clone(face)).oneshot(request).await.expect("infallible");
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
    Reply { status: parts.status.as_u16(), headers: parts.headers, text }
}

async fn get(face: &Arc<Face>, path: &str) -> Reply {
    ask(face, HttpRequest::get(path).body(Body::empty()).expect("a request")).await
}

async fn post(face: &Arc<Face>, path: &str, body: impl Into<Body>) -> Reply {
    ask(face, HttpRequest::builder().method(Method::POST).uri(path).body(body.into()).expect("a request"))
        .await
}

async fn chat(face: &Arc<Face>, extra: Value) -> Reply {
    post(face, "/v1/chat/completions", chat_body(extra)).await
}

pub(crate) fn chat_body(extra: Value) -> String {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello there"}]});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body.to_string()
}

async fn complete(face: &Arc<Face>, extra: Value) -> Reply {
    let mut body = json!({"model": "tiny", "prompt": "hello there"});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    post(face, "/v1/completions", body.to_string()).await
}

/// A chat request as it goes over a connection of its own.
pub(crate) fn over_http(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// The next request to the scripted engine, waited for without blocking the face.
pub(crate) async fn submission(inbox: Receiver<Submission>) -> (Submission, Receiver<Submission>) {
    let wait = move || (inbox.recv().expect("a submission"), inbox);
    tokio::task::spawn_blocking(wait).await.expect("the wait")
}
