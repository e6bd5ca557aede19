//! An engine's answer on its way to the client, piece by piece.
//!
//! A piece is asked of the engine only when the client's connection takes one, so a slow client slows its engine down
//! and nothing piles up here. When the client leaves, the relay is dropped, and with it the engine's connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::time::{Instant, Sleep, sleep};

use super::record::{Outcome, Record};
use crate::load::Reservation;

/// The rest of an answer.
#[derive(Debug)]
pub(super) struct Relay {
    first: Option<Frame<Bytes>>,
    rest: Incoming,
    silence: Pin<Box<Sleep>>,
    silence_max: Duration,
    record: Record,
    /// Given back when the answer has ended.
    _reservation: Reservation,
}

/// The answer breaks off. The client sees its connection end early.
#[derive(Debug, Error)]
pub(super) enum Broken {
    #[error("the engine broke off within its answer")]
    Engine(#[source] hyper::Error),
    #[error("the engine fell silent within its answer")]
    Silent,
}

impl Relay {
    pub(super) fn new(
        first: Option<Frame<Bytes>>,
        rest: Incoming,
        silence_max: Duration,
        (record, reservation): (Record, Reservation),
    ) -> Self {
        let silence = Box::pin(sleep(silence_max));
        Self { first, rest, silence, silence_max, record, _reservation: reservation }
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        self.record.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if let Some(frame) = this.first.take() {
            this.count(&frame);
            return Poll::Ready(Some(Ok(frame)));
        }
        match Pin::new(&mut this.rest).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.count(&frame);
                this.silence.as_mut().reset(Instant::now() + this.silence_max);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.record.end(Outcome::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.record.end(Outcome::EngineBroke);
                Poll::Ready(Some(Err(Broken::Engine(error))))
            }
            Poll::Pending => {
                ready!(this.silence.as_mut().poll(context));
                this.record.end(Outcome::EngineSilent);
                Poll::Ready(Some(Err(Broken::Silent)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.rest.size_hint();
        let first = self.first.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
        // An engine's answer has a length that it announced or none; adding the first piece cannot overflow it.
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint.set_lower(hint.lower().saturating_add(first));
        hint
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // An answer of known length may be dropped at its end without being asked whether there is more.
        if self.is_end_stream() {
            self.record.end(Outcome::Complete);
        }
    }
}
