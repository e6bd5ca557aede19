//! What an HTTP caller is told when a request cannot be served, as OpenAI shapes it.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use hearth_prompt::{ErrorBody, RequestError};

use crate::request::EngineError;

/// When to come back to an engine that is full: about the time a short request takes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The request is wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The engine refused it, or failed on it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The step loop is gone without a word.
    #[error("the engine stopped before the request was done; send it to another engine or restart this one")]
    EngineGone,
    /// Too many requests are being read.
    #[error("{requests_max} requests are being read already; retry in a moment")]
    IntakeFull {
        /// The limit.
        requests_max: usize,
    },
    /// The body is over the limit.
    #[error("the body has more than {bytes_max} bytes; send a shorter prompt")]
    BodyTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The body did not come in time.
    #[error("the body was not complete after {} seconds; send it faster", timeout.as_secs())]
    BodyTooSlow {
        /// The limit.
        timeout: Duration,
    },
    /// The connection broke inside the body.
    #[error("the body ended early; send it whole")]
    BodyBroken,
    /// No route.
    #[error(
        "there is nothing at this path; there are /v1/chat/completions, /v1/completions, /v1/models, /health \
         and /metrics"
    )]
    NoSuchPath,
    /// A route, but not for this method.
    #[error("this path takes another method; the Allow header names it")]
    NoSuchMethod,
    /// Our bug.
    #[error("the server failed to prepare the request; its log says why")]
    Internal,
}

impl ApiError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Request(error) => {
                StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::Engine(error) => match error {
                EngineError::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
                EngineError::ContextLength { .. }
                | EngineError::KvTooSmall { .. }
                | EngineError::Empty
                | EngineError::UnknownToken { .. } => StatusCode::BAD_REQUEST,
                EngineError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
                EngineError::Compute(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            Self::EngineGone => StatusCode::SERVICE_UNAVAILABLE,
            Self::IntakeFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::NoSuchMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether something here is broken, rather than the request or the moment.
    pub(super) fn is_fault(&self) -> bool {
        matches!(self, Self::EngineGone) || self.status() == StatusCode::INTERNAL_SERVER_ERROR
    }

    pub(super) fn body(&self) -> ErrorBody {
        if let Self::Request(error) = self {
            return error.body();
        }
        let status = self.status();
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let code = match self {
            Self::Engine(EngineError::ContextLength { .. } | EngineError::KvTooSmall { .. }) => {
                Some("context_length_exceeded")
            }
            Self::Engine(EngineError::QueueFull { .. }) | Self::IntakeFull { .. } => Some("queue_full"),
            Self::Engine(EngineError::ShuttingDown) | Self::EngineGone => Some("engine_unavailable"),
            Self::BodyTooLarge { .. } => Some("body_too_large"),
            Self::NoSuchPath => Some("unknown_url"),
            Self::NoSuchMethod => Some("method_not_allowed"),
            _ => None,
        };
        ErrorBody::new(kind, self.to_string()).code(code)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self.body())).into_response();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER.as_secs()));
        }
        response
    }
}
