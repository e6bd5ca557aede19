//! The record of one request: opened when it arrives, closed whatever becomes of it, then counted and
//! written to the log as one line.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use hearth_prompt::{Endpoint, RequestError};
use tokio::time::Instant;

use super::Face;
use super::error::ApiError;
use super::metrics::RequestLabels;
use crate::request::{GenEvent, GenUsage, RequestId};

/// The status of a client that left before its request was done; no such answer is ever sent.
const CLIENT_LEFT: u16 = 499;
/// How much of a client's own request id goes into the log.
const CLIENT_ID_CHARS_MAX: usize = 128;

/// What is known of a request so far. Dropping it closes the record.
#[derive(Debug)]
pub(super) struct Account {
    face: Arc<Face>,
    endpoint: Endpoint,
    arrived: Instant,
    first_token_after: Option<Duration>,
    client_id: String,
    status: u16,
    outcome: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    /// The engine's name for it, once submitted.
    pub(super) id: Option<RequestId>,
    /// The model asked for, once read.
    pub(super) model: String,
    /// What it took so far.
    pub(super) usage: GenUsage,
}

impl Account {
    pub(super) fn open(face: &Arc<Face>, endpoint: Endpoint, headers: &HeaderMap) -> Self {
        face.metrics.in_flight.inc();
        Self {
            face: Arc::clone(face),
            endpoint,
            arrived: Instant::now(),
            first_token_after: None,
            client_id: client_id(headers),
            status: CLIENT_LEFT,
            outcome: "client left",
            code: None,
            param: None,
            id: None,
            model: String::new(),
            usage: GenUsage::default(),
        }
    }

    /// Notes when the first token came.
    pub(super) fn note(&mut self, event: &Option<GenEvent>) {
        if matches!(event, Some(GenEvent::Token { .. })) {
            self.first_token_after.get_or_insert_with(|| self.arrived.elapsed());
        }
    }

    /// The request was served to its end.
    pub(super) fn served(&mut self, finish_reason: &'static str) {
        (self.status, self.outcome) = (200, finish_reason);
    }

    /// The request was refused or broke off.
    pub(super) fn failed(&mut self, error: &ApiError) {
        self.status = error.status().as_u16();
        self.outcome = if error.status().is_client_error() { "refused" } else { "failed" };
        // The message may quote the prompt, which is nobody's business but the caller's.
        let body = error.body().error;
        (self.code, self.param) = (body.code, body.param);
        if let ApiError::Request(RequestError::UnknownModel { model, .. }) = error {
            self.model.clone_from(model);
        }
        self.face.note_failure(error);
        if error.is_fault() {
            tracing::error!(id = self.id.map(|id| id.0), error = causes(error), "request failed");
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let total = self.arrived.elapsed();
        let metrics = &self.face.metrics;
        let endpoint = match self.endpoint {
            Endpoint::Chat => "chat",
            Endpoint::Completions => "completions",
        };
        metrics.in_flight.dec();
        metrics.requests.get_or_create(&RequestLabels { endpoint, status: self.status }).inc();
        metrics.duration_seconds.observe(total.as_secs_f64());
        if let Some(ttft) = self.first_token_after {
            metrics.ttft_seconds.observe(ttft.as_secs_f64());
        }
        let usage = &self.usage;
        tracing::info!(
            id = self.id.map(|id| id.0),
            client_id = (!self.client_id.is_empty()).then_some(self.client_id.as_str()),
            endpoint,
            model = self.model,
            status = self.status,
            outcome = self.outcome,
            code = self.code,
            param = self.param,
            prompt_tokens = usage.prompt_tokens,
            computed_tokens = usage.computed_tokens,
            loaded_engine = usage.loaded.engine,
            loaded_pinned = usage.loaded.pinned,
            loaded_nvme = usage.loaded.nvme,
            completion_tokens = usage.completion_tokens,
            ttft_ms = self.first_token_after.map(|ttft| ttft.as_millis() as u64),
            total_ms = total.as_millis() as u64,
            "request"
        );
    }
}

/// An error with everything below it, outermost first.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// `x-request-id` as far as it can be written to a log: visible ASCII, at most [`CLIENT_ID_CHARS_MAX`].
fn client_id(headers: &HeaderMap) -> String {
    let sent = headers.get("x-request-id").map(|id| id.as_bytes()).unwrap_or_default();
    sent.iter()
        .filter(|byte| byte.is_ascii_graphic())
        .take(CLIENT_ID_CHARS_MAX)
        .map(|&b| char::from(b))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_cut_and_cleaned() {
        let mut headers = HeaderMap::new();
        assert_eq!(client_id(&headers), "");
        headers.insert("x-request-id", "a b\tc-1".parse().expect("a header"));
        assert_eq!(client_id(&headers), "abc-1");
        headers.insert("x-request-id", "x".repeat(4000).parse().expect("a header"));
        assert_eq!(client_id(&headers).len(), CLIENT_ID_CHARS_MAX);
    }
}
