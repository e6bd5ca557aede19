//! The reverse proxy: takes OpenAI requests, picks an engine for each, and passes the answer through as it comes.

mod answer;
mod body;
mod generate;
mod headers;
mod record;
mod relay;
#[cfg(test)]
mod tests;
mod upstream;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hearth_prompt::{Endpoint, ErrorBody, RequestError};
use http::{StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::decide::Weights;
use crate::fleet::{Fleet, State as EngineState};
use crate::index::SharedIndex;
use crate::load::Loads;
use crate::metrics::{GatewayMetrics, IndexMetrics};
use crate::request::Reader;
use crate::retry::Budget;

pub use self::headers::SUBSET_HEADER;
use self::upstream::Upstream;

/// Requests that are being answered at a time. More are told to come again.
pub const REQUESTS_MAX: usize = 4096;
/// Bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Requests whose prompts are being tokenized at a time. More wait.
const READERS_MAX: usize = 8;
/// Longest silence of an engine, before its answer and within.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// The content type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The gateway's parts.
#[derive(Debug)]
pub struct Gateway {
    fleet: Arc<Fleet>,
    loads: Arc<Loads>,
    reader: Arc<Reader>,
    index: SharedIndex,
    weights: Weights,
    budget: Budget,
    upstream: Upstream,
    metrics: GatewayMetrics,
    index_metrics: IndexMetrics,
    registry: Registry,
    places: Arc<Semaphore>,
    reading: Semaphore,
    ids: RequestIds,
}

/// What a gateway is made of.
#[derive(Debug)]
pub struct Parts {
    /// The endpoints.
    pub fleet: Arc<Fleet>,
    /// Reads requests.
    pub reader: Arc<Reader>,
    /// Who has what.
    pub index: SharedIndex,
    /// Where metrics are registered and read.
    pub registry: Registry,
    /// Distinguishes this router's request ids from those of others.
    pub seed: u64,
}

impl Gateway {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { fleet, reader, index, mut registry, seed } = parts;
        let metrics = GatewayMetrics::register(&mut registry);
        let index_metrics = IndexMetrics::register(&mut registry);
        Arc::new(Self {
            loads: Arc::new(Loads::new(fleet.snapshot().len())),
            fleet,
            reader,
            index,
            weights: Weights::default(),
            budget: Budget::default(),
            upstream: Upstream::new(SILENCE_MAX),
            metrics,
            index_metrics,
            registry,
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
            reading: Semaphore::new(READERS_MAX),
            ids: RequestIds { seed, next: AtomicU64::new(0) },
        })
    }

    /// All that the gateway answers.
    pub fn routes(self: Arc<Self>) -> Router {
        Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/v1/completions", post(completions))
            .route("/v1/models", get(models))
            .route("/v1/models/{*id}", get(model))
            .route("/health", get(health))
            .route("/metrics", get(metrics))
            .fallback(unknown_path)
            .method_not_allowed_fallback(wrong_method)
            .with_state(self)
    }

    /// The models of all engines that take requests, each once.
    fn models(&self) -> Vec<Value> {
        let mut models: Vec<Value> = Vec::new();
        for endpoint in self.fleet.snapshot().iter().filter(|endpoint| endpoint.state == EngineState::Up) {
            for model in endpoint.models.list() {
                if !models.iter().any(|known| known["id"] == model["id"]) {
                    models.push(model.clone());
                }
            }
        }
        models
    }

    fn engines_up(&self) -> usize {
        self.fleet.snapshot().iter().filter(|endpoint| endpoint.state == EngineState::Up).count()
    }
}

async fn chat(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    generate::generate(gateway, Endpoint::Chat, request).await
}

async fn completions(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    generate::generate(gateway, Endpoint::Completions, request).await
}

async fn models(State(gateway): State<Arc<Gateway>>) -> Response {
    if gateway.engines_up() == 0 {
        return answer::unavailable("no engine is up; try again shortly".to_owned());
    }
    axum::Json(json!({ "object": "list", "data": gateway.models() })).into_response()
}

async fn model(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Response {
    let models = gateway.models();
    if let Some(model) = models.iter().find(|model| model["id"] == id.as_str()) {
        return axum::Json(model.clone()).into_response();
    }
    let served = models.iter().filter_map(|model| model["id"].as_str()).map(str::to_owned).collect();
    answer::refused(&RequestError::UnknownModel { model: id, served })
}

async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let (up, known) = (gateway.engines_up(), gateway.fleet.snapshot().len());
    let following = gateway.index.read().unwrap_or_else(PoisonError::into_inner).complete();
    let (code, status) =
        if up > 0 { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "no engine is up") };
    let body = json!({ "status": status, "engines_up": up, "engines": known, "follows_store": following });
    (code, axum::Json(body)).into_response()
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let loads = gateway.loads.snapshot();
    for endpoint in gateway.fleet.snapshot() {
        let requests = loads[endpoint.id.index()].requests;
        gateway.metrics.endpoint(&endpoint.authority, requests, endpoint.state == EngineState::Up);
    }
    let (blocks, bytes) = {
        let index = gateway.index.read().unwrap_or_else(PoisonError::into_inner);
        (index.blocks(), index.bytes())
    };
    gateway.index_metrics.blocks.set(i64::try_from(blocks).unwrap_or(i64::MAX));
    gateway.index_metrics.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    let mut text = String::new();
    match encode(&mut text, &gateway.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn unknown_path(request: Request) -> Response {
    let message = format!(
        "there is no {}; there are /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics",
        request.uri().path()
    );
    answer::error(StatusCode::NOT_FOUND, &ErrorBody::new("invalid_request_error", message))
}

async fn wrong_method(request: Request) -> Response {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    answer::error(StatusCode::METHOD_NOT_ALLOWED, &ErrorBody::new("invalid_request_error", message))
}

/// Names for requests that come without one.
#[derive(Debug)]
struct RequestIds {
    seed: u64,
    next: AtomicU64,
}

impl RequestIds {
    fn next(&self) -> String {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        format!("req-{:016x}-{n}", self.seed)
    }
}
