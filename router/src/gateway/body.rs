//! A request's body, read to its end and not beyond its limit.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use hearth_prompt::ErrorBody;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use thiserror::Error;
use tokio::time::timeout;

use super::BODY_BYTES_MAX;

/// Longest time for a body to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// Bytes beyond the limit that are read and thrown away: many clients read the answer only when they have sent all.
const DISCARD_BYTES_MAX: usize = 256 << 20;
/// Memory taken at once because a header says that it will be needed.
const TRUSTED_BYTES_MAX: usize = 64 << 10;

/// The body could not be taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum BodyError {
    #[error("the body is larger than {} MiB; send a shorter prompt", BODY_BYTES_MAX >> 20)]
    TooLarge,
    #[error("the body did not arrive within {} s; send it again", BODY_PATIENCE.as_secs())]
    TooSlow,
    #[error("the body broke off; send it again")]
    Broken,
}

impl BodyError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) fn body(&self) -> ErrorBody {
        ErrorBody::new("invalid_request_error", self.to_string())
    }
}

/// Reads the whole body.
pub(super) async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, BodyError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let announced: usize = announced.unwrap_or(0);
    if announced > BODY_BYTES_MAX && headers.contains_key(header::EXPECT) {
        // The client asks before it sends; it need not.
        return Err(BodyError::TooLarge);
    }
    timeout(BODY_PATIENCE, collect(body, announced)).await.unwrap_or(Err(BodyError::TooSlow))
}

async fn collect(mut body: Body, announced: usize) -> Result<Bytes, BodyError> {
    let mut whole = BytesMut::with_capacity(announced.min(TRUSTED_BYTES_MAX));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        if announced.max(whole.len() + data.len()) > BODY_BYTES_MAX {
            discard(body).await;
            return Err(BodyError::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

async fn discard(mut body: Body) {
    let mut left = DISCARD_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(bytes) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    async fn read_chunks(sizes: &[usize], announced: Option<usize>) -> Result<usize, BodyError> {
        let chunks: Vec<_> =
            sizes.iter().map(|&n| Ok::<_, std::io::Error>(Bytes::from(vec![0; n]))).collect();
        let mut headers = HeaderMap::new();
        if let Some(announced) = announced {
            headers.insert(header::CONTENT_LENGTH, announced.into());
        }
        read(&headers, Body::from_stream(stream::iter(chunks))).await.map(|body| body.len())
    }

    #[tokio::test]
    async fn a_body_is_taken_up_to_its_limit() {
        assert_eq!(read_chunks(&[], None).await, Ok(0));
        assert_eq!(read_chunks(&[BODY_BYTES_MAX / 2, BODY_BYTES_MAX / 2], None).await, Ok(BODY_BYTES_MAX));
        assert_eq!(read_chunks(&[BODY_BYTES_MAX, 1], None).await, Err(BodyError::TooLarge));
        assert_eq!(read_chunks(&[1], Some(BODY_BYTES_MAX + 1)).await, Err(BodyError::TooLarge));
    }

    #[tokio::test]
    async fn a_client_that_asks_first_is_answered_without_its_body() {
        let headers: HeaderMap = [(header::CONTENT_LENGTH, "100000000"), (header::EXPECT, "100-continue")]
            .map(|(name, value)| (name, value.parse().expect("a header")))
            .into_iter()
            .collect();
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(read(&headers, never).await, Err(BodyError::TooLarge));
    }
}
