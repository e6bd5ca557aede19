//! One line and one count per request, whatever becomes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;

use crate::metrics::{GatewayMetrics, NO_ENDPOINT};

/// The status in the metrics of a request whose client left before there was one.
const CLIENT_LEFT: u16 = 499;

/// What is known about a request. It is written down once: by [`Record::end`], or when it is dropped.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) endpoint: Option<Arc<str>>,
    pub(super) decision: String,
    pub(super) tries: usize,
    pub(super) bytes: u64,
    status: Option<StatusCode>,
    begun: Instant,
    first_byte: Option<Duration>,
    ended: bool,
    metrics: GatewayMetrics,
    /// The request's place among those that are answered.
    _place: Option<OwnedSemaphorePermit>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered to the end.
    Complete,
    /// Answered by the router itself.
    Refused,
    /// The engine broke off within its answer.
    EngineBroke,
    /// The engine fell silent within its answer.
    EngineSilent,
    /// The client left.
    ClientLeft,
}

impl Record {
    pub(super) fn new(id: String, metrics: GatewayMetrics, place: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            id,
            model: String::new(),
            endpoint: None,
            decision: String::new(),
            tries: 0,
            bytes: 0,
            status: None,
            begun: Instant::now(),
            first_byte: None,
            ended: false,
            metrics,
            _place: place,
        }
    }

    /// An engine has begun to answer.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.first_byte = Some(self.begun.elapsed());
    }

    /// The router answers itself.
    pub(super) fn refused(mut self, status: StatusCode) {
        self.status = Some(status);
        self.end(Outcome::Refused);
    }

    /// Writes it down.
    pub(super) fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let code = self.status.map_or(CLIENT_LEFT, |status| status.as_u16());
        let endpoint = self.endpoint.as_deref().unwrap_or(NO_ENDPOINT);
        self.metrics.request(code, endpoint);
        tracing::info!(
            request = %self.id,
            model = %self.model,
            endpoint,
            code,
            outcome = ?outcome,
            tries = self.tries,
            decision = %self.decision,
            first_byte_ms = self.first_byte.map(millis),
            total_ms = millis(self.begun.elapsed()),
            bytes = self.bytes,
            "request"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.end(Outcome::ClientLeft);
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}
