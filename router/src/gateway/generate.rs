//! One request from its arrival to the begin of its answer.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use hearth_prompt::{Endpoint, ErrorBody, RequestError};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::record::{Outcome, Record};
use super::relay::Relay;
use super::upstream::{Begun, Outgoing, TryError};
use super::{Gateway, answer, body, headers};
use crate::decide::{Ask, Candidate, Decision, Refusal, Subset, decide};
use crate::fleet::EndpointId;
use crate::load::{Claim, Reservation};
use crate::request::Reading;
use crate::retry::TRIES_MAX;

/// Answers a request to generate text. Dropping the future ends the request at the engine, too.
pub(super) async fn generate(gateway: Arc<Gateway>, endpoint: Endpoint, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let id = headers::request_id(&head.headers).unwrap_or_else(|| gateway.ids.next());
    let id_value = HeaderValue::from_str(&id).expect("came from a header, or is plain text");
    let place = Arc::clone(&gateway.places).try_acquire_owned().ok();
    let full = place.is_none();
    let record = Record::new(id, gateway.metrics.clone(), place);
    let mut response = if full {
        let busy = "the router is answering as many requests as it may; try again shortly";
        refuse(record, answer::unavailable(busy.to_owned()))
    } else {
        gateway.budget.deposit();
        match Job::read(&gateway, endpoint, (head.headers, body), &id_value).await {
            Ok(job) => job.run(&gateway, record).await,
            Err(response) => refuse(record, response),
        }
    };
    response.headers_mut().insert(headers::REQUEST_ID, id_value);
    response
}

fn refuse(record: Record, response: Response) -> Response {
    record.refused(response.status());
    response
}

/// A request that has been read.
struct Job {
    reading: Reading,
    subset: Option<Subset>,
    outgoing: Outgoing,
}

/// A place at an endpoint, decided and reserved.
struct Placement {
    decision: Decision,
    authority: Arc<str>,
    reservation: Reservation,
}

impl Job {
    /// Reads the body and what matters in it.
    async fn read(
        gateway: &Arc<Gateway>,
        endpoint: Endpoint,
        (from_client, body): (HeaderMap, Body),
        id: &HeaderValue,
    ) -> Result<Self, Response> {
        let body = body::read(&from_client, body).await.map_err(|error| {
            let mut response = answer::error(error.status(), &error.body());
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        })?;
        let reading = read_prompt(gateway, endpoint, body.clone()).await?;
        let subset = Subset::parse(&headers::subset(&from_client));
        let path = match endpoint {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
        };
        Ok(Self {
            reading,
            subset,
            outgoing: Outgoing { path, headers: headers::to_engine(from_client, id), body },
        })
    }

    /// Sends the request to one endpoint after the other until one begins to answer.
    async fn run(self, gateway: &Arc<Gateway>, mut record: Record) -> Response {
        record.model.clone_from(&self.reading.model);
        let mut tried: Vec<EndpointId> = Vec::new();
        loop {
            let mut placement = match self.place(gateway, &tried) {
                Ok(placement) => placement,
                Err(refusal) => return stamp_tries(refuse(record, refused(refusal)), tried.len()),
            };
            tried.push(placement.decision.endpoint);
            record.tries = tried.len();
            record.endpoint = Some(Arc::clone(&placement.authority));
            record.decision = placement.decision.explain.to_string();
            gateway.metrics.routed(&placement.decision.explain);
            match gateway.upstream.begin(&placement.authority, &self.outgoing).await {
                Ok(begun) => {
                    placement.reservation.answered();
                    return relay(gateway, begun, (record, placement));
                }
                Err(error) => {
                    tracing::debug!(request = %record.id, %error, "try failed");
                    if let Some(response) = give_up(gateway, &error, (&placement, tried.len())) {
                        return stamp_tries(refuse(record, response), tried.len());
                    }
                }
            }
        }
    }

    /// Picks an endpoint and takes a place there, in one step.
    fn place(&self, gateway: &Arc<Gateway>, tried: &[EndpointId]) -> Result<Placement, Refusal> {
        let begun = Instant::now();
        let fleet = gateway.fleet.snapshot();
        let ask = Ask {
            model: &self.reading.model,
            prompt: &self.reading.prompt,
            subset: self.subset.as_ref(),
            tried,
        };
        let (reservation, decision) = gateway.loads.reserve(|loads| {
            let candidates: Vec<Candidate<'_>> =
                fleet.iter().zip(loads).map(|(endpoint, &load)| Candidate { endpoint, load }).collect();
            let decision = decide(&ask, &candidates, &gateway.weights)?;
            Ok((Claim { endpoint: decision.endpoint, tokens: decision.work_tokens }, decision))
        })?;
        gateway.metrics.decided(begun.elapsed());
        let authority = Arc::clone(&fleet[decision.endpoint.index()].authority);
        Ok(Placement { decision, authority, reservation })
    }
}

/// Parses and tokenizes where blocking is allowed; so many at a time.
async fn read_prompt(gateway: &Arc<Gateway>, endpoint: Endpoint, body: Bytes) -> Result<Reading, Response> {
    let _turn = gateway.reading.acquire().await.expect("is never closed");
    let begun = Instant::now();
    let reader = Arc::clone(&gateway.reader);
    let read = tokio::task::spawn_blocking(move || reader.read(endpoint, &body)).await;
    gateway.metrics.tokenized(begun.elapsed());
    match read {
        Ok(read) => read.map_err(|error| answer::refused(&error)),
        Err(_) => {
            let message = "reading this request failed in the router; its log says more".to_owned();
            Err(answer::error(StatusCode::INTERNAL_SERVER_ERROR, &ErrorBody::new("server_error", message)))
        }
    }
}

/// After a failed try: the answer, or nothing when another endpoint is to be tried.
fn give_up(gateway: &Gateway, error: &TryError, (placement, tries): (&Placement, usize)) -> Option<Response> {
    if !error.is_dead() {
        return Some(answer::timed_out(error.to_string()));
    }
    // A request that broke says nothing about the next one, and one that breaks every engine must not take the fleet
    // down. Where nobody listens, no request will get through.
    if matches!(error, TryError::Refused(..)) {
        gateway.fleet.eject(placement.decision.endpoint);
    }
    if tries >= TRIES_MAX {
        return Some(answer::unavailable(format!(
            "{tries} engines failed this request; the last one: {error}"
        )));
    }
    if !gateway.budget.withdraw() {
        return Some(answer::unavailable(format!(
            "too many engines are failing to try another one; {error}"
        )));
    }
    gateway.metrics.retried(error.label());
    None
}

fn refused(refusal: Refusal) -> Response {
    match refusal {
        Refusal::UnknownModel { model, served } => {
            answer::refused(&RequestError::UnknownModel { model, served })
        }
        none @ Refusal::NoEndpoint { .. } => answer::unavailable(none.to_string()),
    }
}

/// The engine's answer, with the headers that say where it came from and why.
fn relay(gateway: &Arc<Gateway>, begun: Begun, (mut record, placement): (Record, Placement)) -> Response {
    let Begun { mut head, first, rest } = begun;
    record.answered(head.status);
    headers::strip_hop_by_hop(&mut head.headers);
    for (name, value) in [(headers::ENDPOINT, &*placement.authority), (headers::DECISION, &*record.decision)]
    {
        if let Ok(value) = HeaderValue::from_str(value) {
            head.headers.insert(name, value);
        }
    }
    let tries = record.tries;
    if first.is_none() {
        record.end(Outcome::Complete);
    }
    let relay = Relay::new(first, rest, gateway.upstream.silence_max, (record, placement.reservation));
    stamp_tries(Response::from_parts(head, Body::new(relay)), tries)
}

fn stamp_tries(mut response: Response, tries: usize) -> Response {
    response.headers_mut().insert(headers::TRIES, tries.into());
    response
}
