//! Asks an engine how it is, again and again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{EndpointId, Fleet, Models, Probe, State};

/// Time from one probe to the next.
const PROBE_PERIOD: Duration = Duration::from_millis(500);
/// Longest that a probe waits for its answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// The list of models is read again with every so many-th probe.
const MODELS_EVERY: u32 = 20;
/// Bytes of an answer to a probe.
const ANSWER_BYTES_MAX: usize = 1 << 20;

type ProbeClient = Client<HttpConnector, Empty<Bytes>>;

/// Probes every endpoint once, all at the same time.
pub async fn probe_all(fleet: &Fleet) {
    let probes = fleet.snapshot().into_iter().map(|endpoint| async move {
        let client = client();
        let probe = timeout(PROBE_PATIENCE, probe(&client, &endpoint.authority, true)).await;
        fleet.record(endpoint.id, probe.unwrap_or(Probe::Slow), &mut 0);
    });
    futures_util::future::join_all(probes).await;
}

/// Probes one endpoint for ever. Ends only by being dropped.
pub async fn watch(fleet: Arc<Fleet>, id: EndpointId) {
    let client = client();
    let authority = fleet.endpoint(id).authority;
    let mut ticks = interval(PROBE_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut slow = 0;
    for round in 0u32.. {
        ticks.tick().await;
        let fresh = fleet.endpoint(id).state != State::Up || round.is_multiple_of(MODELS_EVERY);
        let probe = timeout(PROBE_PATIENCE, probe(&client, &authority, fresh)).await.unwrap_or(Probe::Slow);
        fleet.record(id, probe, &mut slow);
    }
}

/// Connections are not kept, so that each probe shows whether the engine still accepts them.
fn client() -> ProbeClient {
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http()
}

async fn probe(client: &ProbeClient, authority: &str, with_models: bool) -> Probe {
    let models = match ask(client, authority, "/health").await {
        Some((StatusCode::OK, _)) if with_models => ask(client, authority, "/v1/models").await,
        Some((StatusCode::OK, _)) => None,
        Some((_, body)) if says_draining(&body) => return Probe::Draining,
        _ => return Probe::Failed,
    };
    Probe::Good(models.filter(|(status, _)| status.is_success()).and_then(|(_, body)| Models::parse(&body)))
}

fn says_draining(body: &[u8]) -> bool {
    let body: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    body.is_some_and(|body| body.get("status").and_then(|status| status.as_str()) == Some("draining"))
}

/// The answer's status and body, or nothing when none came.
async fn ask(client: &ProbeClient, authority: &str, path: &str) -> Option<(StatusCode, Bytes)> {
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build().ok()?;
    let request = Request::builder().method(Method::GET).uri(uri).body(Empty::new()).ok()?;
    let (head, body) = client.request(request).await.ok()?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.ok()?.to_bytes();
    Some((head.status, body))
}
