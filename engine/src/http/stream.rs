//! Streamed replies: server-sent events, a chunk for each piece of text.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use serde::Serialize;

use super::account::Account;
use super::completion::Completion;
use super::completion::Progress;
use super::generate::Running;
use super::reply::{Head, UsageField};
use crate::request::{GenEvent, GenStream};

/// A comment is sent after this long without text, so that proxies do not take the stream for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Streams the rest of a request. The stream owns it: when the client leaves, the connection drops the
/// stream, and with it the request.
pub(super) fn response(running: Running, account: Account, include_usage: bool) -> Response {
    let mut response = Sse::new(events(Chunks::new(running, account, include_usage)))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    // nginx would hold chunks back otherwise.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn events(chunks: Chunks) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(chunks, |mut chunks| async move { chunks.next().await.map(|event| (Ok(event), chunks)) })
}

/// The chunks of one reply.
struct Chunks {
    head: Head,
    completion: Completion,
    /// `None` after the end: the engine is told at once, not when the client has read everything.
    events: Option<GenStream>,
    account: Account,
    include_usage: bool,
    /// At most four: last text, reason, usage, end mark.
    ready: VecDeque<Event>,
}

impl Chunks {
    fn new(running: Running, account: Account, include_usage: bool) -> Self {
        let Running { head, completion, events, .. } = running;
        let mut chunks =
            Self { head, completion, events: Some(events), account, include_usage, ready: VecDeque::new() };
        let opening = chunks.head.opening(chunks.usage_later()).map(|chunk| event(&chunk));
        chunks.ready.extend(opening);
        chunks
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let event = self.events.as_mut()?.next().await;
            self.apply(event);
        }
    }

    fn apply(&mut self, event: Option<GenEvent>) {
        self.account.note(&event);
        let progress = self.completion.apply(event);
        self.account.usage = self.completion.usage();
        match progress {
            Progress::Text(text) if text.is_empty() => {}
            Progress::Text(text) => self.push_text(&text, None),
            Progress::End { text, finish_reason } => {
                if !text.is_empty() {
                    self.push_text(&text, None);
                }
                self.push_text("", Some(finish_reason));
                if self.include_usage {
                    self.ready.push_back(self::event(&self.head.usage_chunk(self.account.usage)));
                }
                self.ready.push_back(Event::default().data("[DONE]"));
                self.account.served(finish_reason);
                self.events = None;
            }
            Progress::Failed(error) => {
                // The status is out; what is left is to say it in the stream and to end it unfinished.
                self.ready.push_back(self::event(&error.body()));
                self.account.failed(&error);
                self.events = None;
            }
        }
    }

    fn push_text(&mut self, text: &str, finish_reason: Option<&'static str>) {
        let chunk = event(&self.head.chunk(text, finish_reason, self.usage_later()));
        self.ready.push_back(chunk);
    }

    fn usage_later(&self) -> UsageField {
        if self.include_usage { UsageField::Later(()) } else { UsageField::LeftOut }
    }
}

fn event(data: &impl Serialize) -> Event {
    Event::default().json_data(data).expect("replies are plain data")
}
