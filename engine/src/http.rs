//! The engine's HTTP face: the OpenAI API over an [`EngineHandle`], with health and metrics.
//!
//! A request is read within limits, turned into tokens on a thread that may block, and submitted to the
//! step loop. The status line is held back until the first token is certain, so that an engine that is
//! full or fails says so with the right status, and a router in front can still choose another. A client
//! that leaves drops the request's stream, which cancels it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use hearth_prompt::{Endpoint, Prompt, RequestError};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

use crate::request::{EngineError, EngineHandle};

mod account;
mod body;
mod completion;
mod error;
mod generate;
mod listen;
mod metrics;
mod reply;
mod stream;

pub(crate) use generate::unix_seconds;
pub use listen::{CONNECTIONS_MAX, Limited};
pub use metrics::Metrics;

use error::ApiError;

/// Requests whose bodies are read or tokenized at one time; further ones are told to retry.
const INTAKE_REQUESTS_MAX: usize = 64;

/// What the face of one engine needs to know.
#[derive(Debug)]
pub struct FaceConfig {
    /// The names under which the model is served. At least one; the first is the model's own.
    pub model_names: Vec<String>,
    /// Tokens that end a completion unless the request ignores them.
    pub stop_tokens: Vec<u32>,
    /// Reported with each reply as `system_fingerprint`: changes when the weights do.
    pub system_fingerprint: String,
    /// When the engine started, in seconds since 1970.
    pub started_unix_seconds: u64,
    /// Tells the ids and the unseeded draws of this process from those of others.
    pub instance: u64,
    /// Bodies that are parsed and tokenized at one time, each on a thread of its own.
    pub tokenize_threads: usize,
}

/// The OpenAI API of one engine. Shared by all its connections.
#[derive(Debug)]
pub struct Face {
    config: FaceConfig,
    engine: EngineHandle,
    prompt: Arc<Prompt>,
    metrics: Metrics,
    registry: Registry,
    health: AtomicU8,
    intake: Semaphore,
    tokenize: Arc<Semaphore>,
}

/// Whether the engine takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// It does.
    Ready,
    /// It finishes what it has and takes nothing new.
    Draining,
    /// Its step loop is gone.
    Failed,
}

impl Face {
    /// Registers its metrics and keeps the registry, which already holds those of the engine.
    pub fn new(
        config: FaceConfig,
        engine: EngineHandle,
        prompt: Arc<Prompt>,
        mut registry: Registry,
    ) -> Arc<Self> {
        let metrics = Metrics::register(&mut registry);
        let tokenize = Arc::new(Semaphore::new(config.tokenize_threads.max(1)));
        let intake = Semaphore::new(INTAKE_REQUESTS_MAX);
        let health = AtomicU8::new(Health::Ready as u8);
        Arc::new(Self { config, engine, prompt, metrics, registry, health, intake, tokenize })
    }

    /// Changes what `/health` says. A failed engine stays failed.
    pub fn set_health(&self, health: Health) {
        self.health.fetch_max(health as u8, Ordering::Relaxed);
    }

    fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Ready,
            1 => Health::Draining,
            _ => Health::Failed,
        }
    }

    /// Notes an engine that is gone, from what it did to a request.
    fn note_failure(&self, error: &ApiError) {
        let gone = match error {
            ApiError::EngineGone => true,
            ApiError::Engine(EngineError::ShuttingDown) => self.health() == Health::Ready,
            _ => false,
        };
        if gone {
            self.set_health(Health::Failed);
        }
    }

    /// Tokens of prompt and completion that this engine can hold at most.
    fn context_tokens_max(&self) -> usize {
        let limits = self.engine.limits();
        limits.context_tokens_max.min(limits.pages_max.saturating_mul(limits.page_tokens))
    }
}

/// The routes of a face.
pub fn router(face: Arc<Face>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(complete))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/health", get(health))
        .route("/metrics", get(metrics_text))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(face)
}

async fn chat(State(face): State<Arc<Face>>, request: axum::extract::Request) -> Response {
    generate::serve(&face, Endpoint::Chat, request).await
}

async fn complete(State(face): State<Arc<Face>>, request: axum::extract::Request) -> Response {
    generate::serve(&face, Endpoint::Completions, request).await
}

async fn models(State(face): State<Arc<Face>>) -> Response {
    let data = face.config.model_names.iter().map(|name| reply::Model::new(name, &face)).collect();
    Json(reply::ModelList { object: "list", data }).into_response()
}

async fn model(State(face): State<Arc<Face>>, Path(name): Path<String>) -> Response {
    if face.config.model_names.contains(&name) {
        return Json(reply::Model::new(&name, &face)).into_response();
    }
    let served = face.config.model_names.clone();
    ApiError::Request(RequestError::UnknownModel { model: name, served }).into_response()
}

async fn health(State(face): State<Arc<Face>>) -> Response {
    let (status, word) = match face.health() {
        Health::Ready => (StatusCode::OK, "ok"),
        Health::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        Health::Failed => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
    };
    (status, Json(serde_json::json!({ "status": word }))).into_response()
}

async fn metrics_text(State(face): State<Arc<Face>>) -> Response {
    const OPEN_METRICS: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &face.registry).expect("a String takes any text");
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}

async fn no_such_path() -> Response {
    ApiError::NoSuchPath.into_response()
}

async fn no_such_method() -> Response {
    ApiError::NoSuchMethod.into_response()
}

#[cfg(test)]
pub(crate) mod tests;
