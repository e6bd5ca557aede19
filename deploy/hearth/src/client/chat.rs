//! Streaming chat completions, with the time to the first token taken at the client.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::sse::{Events, SseError};

/// Longest that one request may take; prefill of a long document on a slow core is the longest part.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(300);
/// Most bytes of an error body that are read.
const ERROR_BYTES_MAX: usize = 4 << 10;
/// Names the engine that a request is to go to, as Envoy's endpoint subset does.
const SUBSET_HEADER: &str = "x-gateway-destination-endpoint-subset";
const ENDPOINT_HEADER: &str = "x-hearth-endpoint";
const DECISION_HEADER: &str = "x-hearth-decision";
/// The last event of a stream.
const DONE: &str = "[DONE]";

/// A question about a document.
#[derive(Debug, Clone)]
pub(crate) struct Question<'a> {
    /// Who asks.
    pub(crate) user: &'a str,
    /// What the answer is to be drawn from; the same for all users.
    pub(crate) document: &'a str,
    /// What is asked.
    pub(crate) text: &'a str,
    /// Tokens of the answer at most.
    pub(crate) new_tokens_max: usize,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The generated text.
    pub(crate) text: String,
    /// Tokens, and where the KV of the prompt came from.
    pub(crate) usage: Usage,
    /// From sending the request to the first piece of text.
    pub(crate) first_token: Duration,
    /// Which engine answered, as the router says.
    pub(crate) endpoint: String,
    /// Why that one.
    pub(crate) decision: String,
}

/// The `usage` of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Usage {
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u64,
    /// Tokens generated.
    pub(crate) completion_tokens: u64,
    /// Where the KV of the prompt came from.
    pub(crate) hearth: Sources,
}

/// Prompt tokens by where their KV came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Sources {
    /// Computed for this request.
    pub(crate) computed_tokens: u64,
    /// Found.
    pub(crate) loaded_tokens: Loaded,
}

/// Prompt tokens found, by tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Loaded {
    /// In the engine's own pages.
    pub(crate) engine: u64,
    /// In the store's pinned memory.
    pub(crate) pinned: u64,
    /// On the store's NVMe.
    pub(crate) nvme: u64,
}

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChatError {
    /// The connection failed.
    #[error("the request to {url} failed")]
    Http {
        /// Where it went.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server answered with an error.
    #[error("{url} answered {status}: {message}")]
    Refused {
        /// Where the request went.
        url: String,
        /// The HTTP status.
        status: reqwest::StatusCode,
        /// What it said.
        message: String,
    },
    /// The stream is damaged.
    #[error("the reply is no event stream")]
    Stream(#[from] SseError),
    /// An event is not what OpenAI's API sends.
    #[error("the reply holds an event that is no chat completion chunk: {event}")]
    Chunk {
        /// The event.
        event: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// An error in mid-stream.
    #[error("the reply broke off: {0}")]
    Failed(String),
    /// It ended early.
    #[error("the reply ended without {0}")]
    Incomplete(&'static str),
}

/// A client of one OpenAI-compatible server.
#[derive(Debug, Clone)]
pub(crate) struct Chat {
    http: reqwest::Client,
    url: String,
    model: String,
}

impl Chat {
    /// A client for the server at `base_url`.
    pub(crate) fn new(base_url: &str, model: &str) -> Result<Self, ChatError> {
        let url = format!("{base_url}/v1/chat/completions");
        match reqwest::Client::builder().no_proxy().timeout(REQUEST_TIME_MAX).build() {
            Ok(http) => Ok(Self { http, url, model: model.to_owned() }),
            Err(source) => Err(ChatError::Http { url, source }),
        }
    }

    /// The HTTP client, for other requests to the same machine.
    pub(crate) fn http(&self) -> reqwest::Client {
        self.http.clone()
    }

    /// Asks, at the engine with this `host:port` or at one the router picks. Cancel-safe: dropping the
    /// future closes the connection, and the engine stops.
    pub(crate) async fn ask(
        &self,
        question: &Question<'_>,
        engine: Option<&str>,
    ) -> Result<Answer, ChatError> {
        let http_error = |source| ChatError::Http { url: self.url.clone(), source };
        let mut request = self.http.post(&self.url).json(&self.body(question));
        if let Some(engine) = engine {
            request = request.header(SUBSET_HEADER, engine);
        }
        let start = Instant::now();
        let response = request.send().await.map_err(http_error)?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let header = |name| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or("-").to_owned()
        };
        let (endpoint, decision) = (header(ENDPOINT_HEADER), header(DECISION_HEADER));
        let mut reply = Reply::default();
        let mut bytes = response.bytes_stream();
        let mut events = Events::default();
        while let Some(piece) = bytes.next().await {
            for event in events.feed(&piece.map_err(http_error)?)? {
                reply.take(&event, start)?;
            }
        }
        reply.finish(endpoint, decision)
    }

    fn body(&self, question: &Question<'_>) -> serde_json::Value {
        serde_json::json!({
            "model": self.model,
            "messages": [
                {"role": "system", "content": format!("Answer from this document.\n\n{}", question.document)},
                {"role": "user", "content": question.text},
            ],
            "user": question.user,
            "temperature": 0,
            "max_tokens": question.new_tokens_max,
            "stream": true,
            "stream_options": {"include_usage": true},
        })
    }

    async fn refused(&self, response: reqwest::Response) -> ChatError {
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let body = &body[..body.len().min(ERROR_BYTES_MAX)];
        let message = serde_json::from_slice::<ErrorBody>(body)
            .map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |body| body.error.message);
        ChatError::Refused { url: self.url.clone(), status, message }
    }
}

/// The parts of a reply as they come.
#[derive(Debug, Default)]
struct Reply {
    text: String,
    first_token: Option<Duration>,
    usage: Option<Usage>,
    done: bool,
}

impl Reply {
    fn take(&mut self, event: &str, start: Instant) -> Result<(), ChatError> {
        if event == DONE {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(event)
            .map_err(|source| ChatError::Chunk { event: event.chars().take(200).collect(), source })?;
        if let Some(error) = chunk.error {
            return Err(ChatError::Failed(error.message));
        }
        for piece in chunk.choices.into_iter().filter_map(|choice| choice.delta.content) {
            if !piece.is_empty() {
                self.first_token.get_or_insert_with(|| start.elapsed());
                self.text.push_str(&piece);
            }
        }
        self.usage = chunk.usage.or(self.usage);
        Ok(())
    }

    fn finish(self, endpoint: String, decision: String) -> Result<Answer, ChatError> {
        if !self.done {
            return Err(ChatError::Incomplete("its last event"));
        }
        let usage = self.usage.ok_or(ChatError::Incomplete("usage"))?;
        let first_token = self.first_token.ok_or(ChatError::Incomplete("any text"))?;
        Ok(Answer { text: self.text, usage, first_token, endpoint, decision })
    }
}

#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<ErrorMessage>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    error: ErrorMessage,
}

#[derive(Debug, Deserialize)]
struct ErrorMessage {
    message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":2,
        "prompt_tokens_details":{"cached_tokens":16},
        "hearth":{"computed_tokens":4,"loaded_tokens":{"engine":0,"pinned":16,"nvme":0}}}}"#;

    fn reply(events: &[&str]) -> Result<Answer, ChatError> {
        let (mut reply, start) = (Reply::default(), Instant::now());
        for event in events {
            reply.take(event, start)?;
        }
        reply.finish("e".to_owned(), "d".to_owned())
    }

    #[test]
    fn pieces_add_up() {
        let role = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
        let a = r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}"#;
        let b = r#"{"choices":[{"index":0,"delta":{"content":"b"}}]}"#;
        let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#;
        let answer = reply(&[role, a, b, end, USAGE, DONE]).unwrap();
        assert_eq!(answer.text, "ab");
        assert_eq!((answer.usage.completion_tokens, answer.usage.hearth.loaded_tokens.pinned), (2, 16));
    }

    #[test]
    fn what_is_cut_short_or_fails_is_an_error() {
        let a = r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
        assert!(matches!(reply(&[a, USAGE]), Err(ChatError::Incomplete("its last event"))));
        assert!(matches!(reply(&[a, DONE]), Err(ChatError::Incomplete("usage"))));
        assert!(matches!(reply(&[USAGE, DONE]), Err(ChatError::Incomplete("any text"))));
        assert!(matches!(reply(&["nonsense"]), Err(ChatError::Chunk { .. })));
        let error = r#"{"error":{"message":"the engine went away","type":"server_error"}}"#;
        assert!(matches!(reply(&[a, error]), Err(ChatError::Failed(message)) if message.contains("away")));
    }
}
