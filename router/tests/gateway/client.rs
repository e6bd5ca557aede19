//! A plain HTTP client.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::soon;

/// An answer whose body has been read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        header(&self.headers, name)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the answer is JSON")
    }

    /// The message of an answer that is an error in the OpenAI shape.
    pub(crate) fn error(&self) -> String {
        let error = &self.json()["error"];
        assert!(
            error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some(),
            "{error}"
        );
        error["message"].as_str().expect("a message").to_owned()
    }
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().expect("text"))
}

pub(crate) fn chat(model: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "hello" }] })
}

/// A completion whose prompt is given in tokens.
pub(crate) fn completion(tokens: &[u32]) -> Value {
    json!({ "model": "demo", "prompt": tokens })
}

/// Sends a request on a connection of its own and gives back the head of the answer.
pub(crate) async fn send(request: Request<Full<Bytes>>) -> http::Response<Incoming> {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    soon("an answer", client.request(request)).await.expect("the router answers")
}

/// Asks the router at `address` and reads the whole answer.
pub(crate) async fn ask(request: Request<Full<Bytes>>) -> Answer {
    let (head, body) = send(request).await.into_parts();
    let body = soon("the answer's end", body.collect()).await.expect("a whole answer").to_bytes();
    Answer { status: head.status, headers: head.headers, body }
}

pub(crate) fn post(address: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}{path}"))
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .expect("a request")
}

pub(crate) fn post_json(address: &str, path: &str, body: &Value) -> Request<Full<Bytes>> {
    post(address, path, body.to_string())
}

pub(crate) async fn get(address: &str, path: &str) -> Answer {
    let request = Request::builder().uri(format!("http://{address}{path}"));
    ask(request.body(Full::default()).expect("a request")).await
}
