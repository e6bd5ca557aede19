//! One try at one engine: from sending the request to the first piece of its answer.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, response};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use thiserror::Error;
use tokio::time::timeout;

/// Longest wait for a connection. Engines are near.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// Idle connections kept per engine, and for how long.
const IDLE_CONNECTIONS_MAX: usize = 256;
const IDLE_CONNECTION_AGE: Duration = Duration::from_secs(30);

/// Connections to all engines.
#[derive(Debug)]
pub(super) struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
    pub(super) silence_max: Duration,
}

/// What every try sends.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) path: &'static str,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// The begin of an engine's answer.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) head: response::Parts,
    /// `None` when the answer has no body.
    pub(super) first: Option<Frame<Bytes>>,
    pub(super) rest: Incoming,
}

/// There is no answer from this engine.
#[derive(Debug, Error)]
pub(super) enum TryError {
    #[error("{0}: no connection: {1}")]
    Refused(String, hyper_util::client::legacy::Error),
    #[error("{0}: the connection broke before the first byte of the answer")]
    Died(String),
    #[error("{engine}: no answer within {} s", silence_max.as_secs())]
    Silent { engine: String, silence_max: Duration },
}

impl TryError {
    /// A word for the metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Refused(..) => "refused",
            Self::Died(_) => "died",
            Self::Silent { .. } => "silent",
        }
    }

    /// Whether the engine is gone, so that another one may be asked. One that is silent may still be working.
    pub(super) fn is_dead(&self) -> bool {
        !matches!(self, Self::Silent { .. })
    }
}

impl Upstream {
    pub(super) fn new(silence_max: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_PATIENCE));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION_AGE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Self { client, silence_max }
    }

    /// Sends a request and waits for the first piece of the answer. Nothing has been shown to the client by then, so
    /// after an error another engine can be asked. Dropping the future ends the request.
    pub(super) async fn begin(&self, engine: &str, outgoing: &Outgoing) -> Result<Begun, TryError> {
        let died = || TryError::Died(engine.to_owned());
        let answer = async {
            let request = outgoing.request(engine).ok_or_else(died)?;
            let (head, mut rest) = match self.client.request(request).await {
                Ok(response) => Response::into_parts(response),
                Err(error) if error.is_connect() => return Err(TryError::Refused(engine.to_owned(), error)),
                Err(_) => return Err(died()),
            };
            let first = rest.frame().await.transpose().map_err(|_| died())?;
            Ok(Begun { head, first, rest })
        };
        let silence_max = self.silence_max;
        let silent = |_| Err(TryError::Silent { engine: engine.to_owned(), silence_max });
        timeout(silence_max, answer).await.unwrap_or_else(silent)
    }
}

impl Outgoing {
    fn request(&self, engine: &str) -> Option<Request<Full<Bytes>>> {
        let uri = Uri::builder().scheme("http").authority(engine).path_and_query(self.path).build().ok()?;
        let mut request =
            Request::builder().method(Method::POST).uri(uri).body(Full::new(self.body.clone())).ok()?;
        *request.headers_mut() = self.headers.clone();
        Some(request)
    }
}
