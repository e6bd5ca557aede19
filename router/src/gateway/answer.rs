//! What the gateway answers itself, in the shape of the OpenAI API.

use axum::response::{IntoResponse, Response};
use hearth_prompt::{ErrorBody, RequestError};
use http::{HeaderValue, StatusCode, header};

/// Seconds after which a client may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// An error of this status.
pub(super) fn error(status: StatusCode, body: &ErrorBody) -> Response {
    (status, axum::Json(body)).into_response()
}

/// What is wrong with a request.
pub(super) fn refused(reason: &RequestError) -> Response {
    let status = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::BAD_REQUEST);
    error(status, &reason.body())
}

/// Nobody can answer now; somebody may in a moment.
pub(super) fn unavailable(message: String) -> Response {
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, &ErrorBody::new("server_error", message));
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    response
}

/// The engine has said nothing for too long.
pub(super) fn timed_out(message: String) -> Response {
    error(StatusCode::GATEWAY_TIMEOUT, &ErrorBody::new("server_error", message))
}
