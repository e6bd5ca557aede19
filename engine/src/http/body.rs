//! Reads request bodies within limits of size and time.

use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::header;
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::error::ApiError;

/// The longest body that is taken: a prompt of about two million tokens.
pub(super) const BODY_BYTES_MAX: usize = 8 << 20;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a body that is too large is still read, and thrown away, so that its sender gets to read
/// the answer instead of a broken connection.
const DISCARD_BYTES_MAX: usize = 256 << 20;
/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// The whole body. Memory is taken as bytes arrive, never for what a header announces.
pub(super) async fn read(request: Request) -> Result<Bytes, ApiError> {
    let announced: Option<usize> =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    // Its sender waits for a word before it sends, so it need not be heard out.
    let waits = request.headers().contains_key(header::EXPECT);
    let mut body = request.into_body().into_data_stream();
    if announced.is_some_and(|bytes| bytes > BODY_BYTES_MAX) {
        if !waits {
            discard(&mut body).await;
        }
        return Err(ApiError::BodyTooLarge { bytes_max: BODY_BYTES_MAX });
    }
    match timeout(BODY_TIMEOUT, collect(&mut body)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            if matches!(error, ApiError::BodyTooLarge { .. }) {
                discard(&mut body).await;
            }
            Err(error)
        }
        Err(_) => Err(ApiError::BodyTooSlow { timeout: BODY_TIMEOUT }),
    }
}

async fn collect(body: &mut BodyDataStream) -> Result<Bytes, ApiError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.next().await {
        let frame = frame.map_err(|_| ApiError::BodyBroken)?;
        if bytes.len() + frame.len() > BODY_BYTES_MAX {
            return Err(ApiError::BodyTooLarge { bytes_max: BODY_BYTES_MAX });
        }
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes.into())
}

/// Reads on without keeping anything, within bounds.
async fn discard(body: &mut BodyDataStream) {
    let mut left = DISCARD_BYTES_MAX;
    let all = async {
        while let Some(Ok(frame)) = body.next().await {
            left = left.saturating_sub(frame.len());
            if left == 0 {
                break;
            }
        }
    };
    // Past the bounds the connection is closed under its sender, who was told the limit.
    let _ = timeout(DISCARD_TIMEOUT, all).await;
}
