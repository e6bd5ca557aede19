//! Engines that do what the test says.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

/// Another name for the model of every engine.
pub(crate) const ALIAS: &str = "alias";

/// What an engine answers.
pub(crate) enum Script {
    /// `{"engine": NAME}`.
    Whole,
    /// The pieces that the test sends, one by one; an error breaks the answer off.
    Pieces(Mutex<Option<mpsc::Receiver<Result<Bytes, Broken>>>>),
    /// Nothing, ever.
    Nothing,
    /// An error of its own.
    Error,
}

/// An answer breaks off.
#[derive(Debug, thiserror::Error)]
#[error("broken by the test")]
pub(crate) struct Broken;

/// An engine on a port of its own.
pub(crate) struct Engine {
    pub(crate) address: String,
    inner: Arc<Inner>,
    server: JoinHandle<()>,
}

struct Inner {
    model: &'static str,
    script: Script,
    requests: AtomicUsize,
    headers: Mutex<HeaderMap>,
    abandoned: Notify,
}

impl Engine {
    pub(crate) async fn start(model: &'static str, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let inner = Arc::new(Inner {
            model,
            script,
            requests: AtomicUsize::new(0),
            headers: Mutex::default(),
            abandoned: Notify::new(),
        });
        let routes = Router::new()
            .route("/health", get(|| async { "ok" }))
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(generate))
            .route("/v1/completions", post(generate))
            .with_state(Arc::clone(&inner));
        let server = tokio::spawn(async move {
            axum::serve(listener, routes).await.expect("serves");
        });
        Self { address, inner, server }
    }

    /// One that sends the pieces put into the channel.
    pub(crate) async fn streaming() -> (Self, mpsc::Sender<Result<Bytes, Broken>>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self::start("demo", Script::Pieces(Mutex::new(Some(receiver)))).await, sender)
    }

    /// Requests to generate that came.
    pub(crate) fn requests(&self) -> usize {
        self.inner.requests.load(Ordering::SeqCst)
    }

    /// Headers of the last one.
    pub(crate) fn last_headers(&self) -> HeaderMap {
        self.inner.headers.lock().expect("not poisoned").clone()
    }

    /// An answer was given up before its end.
    pub(crate) async fn abandoned(&self) {
        self.inner.abandoned.notified().await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn models(State(engine): State<Arc<Inner>>) -> Response {
    let names = [engine.model, ALIAS].map(|id| json!({ "id": id, "object": "model" }));
    axum::Json(json!({ "object": "list", "data": names })).into_response()
}

async fn generate(State(engine): State<Arc<Inner>>, request: Request) -> Response {
    engine.requests.fetch_add(1, Ordering::SeqCst);
    *engine.headers.lock().expect("not poisoned") = request.headers().clone();
    let guard = Abandon { engine: Arc::clone(&engine), armed: true };
    match &engine.script {
        Script::Whole => {
            guard.disarm();
            axum::Json(json!({ "engine": engine.model })).into_response()
        }
        Script::Error => {
            guard.disarm();
            let body = json!({ "error": { "message": "too long", "type": "x", "param": null, "code": "y" } });
            (StatusCode::BAD_REQUEST, [("x-engine", "1"), ("keep-alive", "9")], axum::Json(body))
                .into_response()
        }
        Script::Nothing => std::future::pending().await,
        Script::Pieces(pieces) => {
            let pieces = pieces.lock().expect("not poisoned").take().expect("one request only");
            let end = stream::once(async move {
                guard.disarm();
                None
            });
            let pieces = ReceiverStream::new(pieces).map(Some).chain(end).filter_map(std::future::ready);
            ([("content-type", "text/event-stream")], Body::from_stream(pieces)).into_response()
        }
    }
}

/// Tells when it is dropped too early.
struct Abandon {
    engine: Arc<Inner>,
    armed: bool,
}

impl Abandon {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        if self.armed {
            self.engine.abandoned.notify_one();
        }
    }
}

/// An engine that is healthy and hangs up on every request to generate, without a byte.
pub(crate) async fn hanging_up() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let hung_up = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&hung_up);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let Ok(bytes) = stream.read(&mut head).await else { return };
                let body = match &head[..bytes] {
                    head if head.starts_with(b"GET /health") => "{}",
                    head if head.starts_with(b"GET /v1/models") => r#"{"data":[{"id":"demo"}]}"#,
                    _ => {
                        count.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                };
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _: Result<(), _> = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (address, hung_up)
}

/// Keeps a piece's type out of the tests.
pub(crate) fn piece(text: &'static str) -> Result<Bytes, Broken> {
    Ok::<_, Infallible>(Bytes::from_static(text.as_bytes())).map_err(|never| match never {})
}
