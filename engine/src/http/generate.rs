//! Chat and completion requests, from the first byte to the reply.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request as HttpRequest;
use axum::response::{IntoResponse, Json, Response};
use hearth_prompt::{Endpoint, Prompt, Request, Streaming};

use super::account::Account;
use super::completion::{Completion, Progress};
use super::error::ApiError;
use super::reply::Head;
use super::{Face, Health, INTAKE_REQUESTS_MAX, body, stream};
use crate::request::{EngineError, GenRequest, GenStream, RequestId, Sampling};

/// Serves a request. Dropping the future cancels what it started.
pub(super) async fn serve(face: &Arc<Face>, endpoint: Endpoint, request: HttpRequest) -> Response {
    let mut account = Account::open(face, endpoint, request.headers());
    match start(face, endpoint, request, &mut account).await {
        Ok(running) => match running.streaming {
            Streaming::Off => whole(running, account).await,
            Streaming::On { usage } => stream::response(running, account, usage),
        },
        Err(error) => {
            account.failed(&error);
            error.into_response()
        }
    }
}

/// A request that the engine works on and whose first token is certain.
pub(super) struct Running {
    pub(super) head: Head,
    pub(super) completion: Completion,
    pub(super) events: GenStream,
    streaming: Streaming,
}

async fn start(
    face: &Arc<Face>,
    endpoint: Endpoint,
    request: HttpRequest,
    account: &mut Account,
) -> Result<Running, ApiError> {
    let (request, tokens) = intake(face, endpoint, request).await?;
    account.model.clone_from(&request.model);
    account.usage.prompt_tokens = tokens.len();
    let new_tokens_max = request.completion_tokens(tokens.len(), face.context_tokens_max())?;

    let id = face.engine.new_id();
    account.id = Some(id);
    let stop_tokens = if request.ignore_eos { vec![] } else { face.config.stop_tokens.clone() };
    let mut events = face.engine.submit(GenRequest {
        id,
        tokens,
        new_tokens_max,
        sampling: sampling(face, &request, id),
        stop_tokens,
        salt: request.cache_salt,
    })?;

    let mut completion = Completion::new(Arc::clone(&face.prompt), request.stop);
    let first = events.next().await;
    match completion.apply(first) {
        Progress::Text(_) => account.usage = completion.usage(),
        Progress::Failed(error) => return Err(error),
        Progress::End { .. } => return Err(ApiError::EngineGone),
    }
    let prefix = match endpoint {
        Endpoint::Chat => "chatcmpl",
        Endpoint::Completions => "cmpl",
    };
    let head = Head {
        endpoint,
        id: format!("{prefix}-{:016x}{:08x}", face.config.instance, id.0),
        created: unix_seconds(),
        model: request.model,
        system_fingerprint: face.config.system_fingerprint.clone(),
    };
    Ok(Running { head, completion, events, streaming: request.streaming })
}

/// Reads, parses, checks and tokenizes a request.
async fn intake(
    face: &Arc<Face>,
    endpoint: Endpoint,
    request: HttpRequest,
) -> Result<(Request, Vec<u32>), ApiError> {
    match face.health() {
        Health::Ready => {}
        Health::Draining => return Err(EngineError::ShuttingDown.into()),
        Health::Failed => return Err(ApiError::EngineGone),
    }
    let _reading =
        face.intake.try_acquire().map_err(|_| ApiError::IntakeFull { requests_max: INTAKE_REQUESTS_MAX })?;
    let body = body::read(request).await?;
    let place = Arc::clone(&face.tokenize).acquire_owned().await.map_err(|_| ApiError::Internal)?;
    let worker = Arc::clone(face);
    let tokenized = tokio::task::spawn_blocking(move || {
        // Held by the work itself, which goes on when the client leaves.
        let _place = place;
        tokenize(&worker.prompt, endpoint, &worker.config.model_names, &body)
    });
    tokenized.await.map_err(|_| ApiError::Internal)?
}

fn tokenize(
    prompt: &Prompt,
    endpoint: Endpoint,
    served: &[String],
    body: &Bytes,
) -> Result<(Request, Vec<u32>), ApiError> {
    let request = Request::parse(endpoint, body)?;
    request.check_model(served)?;
    let tokens = prompt.tokens(&request)?;
    Ok((request, tokens))
}

/// The request's settings, the model's defaults for what it leaves open, and the API's for the rest.
fn sampling(face: &Face, request: &Request, id: RequestId) -> Sampling {
    let asked = face.prompt.sampling_defaults().fill(request.sampling);
    Sampling {
        temperature: asked.temperature.unwrap_or(1.0),
        top_p: asked.top_p.unwrap_or(1.0),
        top_k: asked.top_k.filter(|&k| k > 0),
        min_p: asked.min_p.unwrap_or(0.0),
        seed: Some(asked.seed.unwrap_or_else(|| face.config.instance.wrapping_add(id.0))),
        presence_penalty: asked.presence_penalty,
        frequency_penalty: asked.frequency_penalty,
    }
}

/// One reply with the whole text.
async fn whole(mut running: Running, mut account: Account) -> Response {
    let mut text = String::new();
    loop {
        let event = running.events.next().await;
        account.note(&event);
        let progress = running.completion.apply(event);
        account.usage = running.completion.usage();
        match progress {
            Progress::Text(piece) => text.push_str(&piece),
            Progress::End { text: piece, finish_reason } => {
                text.push_str(&piece);
                account.served(finish_reason);
                return Json(running.head.whole(&text, finish_reason, account.usage)).into_response();
            }
            Progress::Failed(error) => {
                account.failed(&error);
                return error.into_response();
            }
        }
    }
}

/// The date, in seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the API reports the date of a reply")]
pub(crate) fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
