//! Frames on a unix stream.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use hearth_proto::frame::{self, FRAME_HEADER_BYTES, FrameError, FrameHeader};
use hearth_transfer::send_with_fds;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The connection cannot go on.
#[derive(Debug, Error)]
pub(super) enum WireError {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("the client did not answer or read in time")]
    Timeout,
    #[error("the client sent descriptors, which no request carries")]
    Descriptors,
}

/// Reads frames. Not cancel-safe: a frame that was begun must be finished.
#[derive(Debug)]
pub(super) struct FrameReader {
    stream: Arc<UnixStream>,
}

impl FrameReader {
    pub(super) fn new(stream: Arc<UnixStream>) -> Self {
        Self { stream }
    }

    /// The next message, or none when the client left between two.
    pub(super) async fn next<M: prost::Message + Default>(&mut self) -> Result<Option<M>, WireError> {
        let mut header = [0; FRAME_HEADER_BYTES];
        if !self.fill(&mut header).await? {
            return Ok(None);
        }
        let header = FrameHeader::decode(header)?;
        if header.descriptors > 0 {
            return Err(WireError::Descriptors);
        }
        let mut body = vec![0; header.body_bytes];
        if !self.fill(&mut body).await? && header.body_bytes > 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Some(frame::decode(&body)?))
    }

    /// Fills the buffer; false when the stream ended before its first byte.
    async fn fill(&self, buffer: &mut [u8]) -> Result<bool, WireError> {
        let mut at = 0;
        while at < buffer.len() {
            self.stream.readable().await?;
            match self.stream.try_read(&mut buffer[at..]) {
                Ok(0) if at == 0 => return Ok(false),
                Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => at += n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// Sends one message, with descriptors beside its first byte. Only one task of a connection sends.
pub(super) async fn send<M: prost::Message>(
    stream: &UnixStream,
    message: &M,
    descriptors: &[BorrowedFd<'_>],
    timeout: Duration,
) -> Result<(), WireError> {
    let frame = frame::encode(message, descriptors.len())?;
    let write = async {
        let mut at =
            stream.async_io(Interest::WRITABLE, || send_with_fds(stream, &frame, descriptors)).await?;
        while at < frame.len() {
            at += stream.async_io(Interest::WRITABLE, || stream.try_write(&frame[at..])).await?;
        }
        Ok(())
    };
    tokio::time::timeout(timeout, write).await.map_err(|_| WireError::Timeout)?
}
