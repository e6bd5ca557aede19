//! From what was sent to what may be run: ranges, limits, and what is not supported.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::{
    Endpoint, Input, MESSAGES_MAX, Message, Request, Role, STOP_BYTES_MAX, Sampling, Streaming, wire,
};
use crate::error::RequestError;

/// The length of a cache salt in bytes.
const CACHE_SALT_BYTES_MAX: usize = 512;
/// The length of a model's name in bytes.
const MODEL_BYTES_MAX: usize = 512;
/// How many variables a request may hand to a chat template.
const TEMPLATE_VARS_MAX: usize = 32;

pub(super) fn request(endpoint: Endpoint, mut wire: wire::Request) -> Result<Request, RequestError> {
    refuse_unsupported(&wire)?;
    let model = wire.model.take().ok_or_else(|| missing("model"))?;
    within("model", model.len(), MODEL_BYTES_MAX, "bytes")?;
    if let Some(salt) = &wire.cache_salt {
        if salt.is_empty() {
            return Err(RequestError::Empty { param: "cache_salt".to_owned() });
        }
        within("cache_salt", salt.len(), CACHE_SALT_BYTES_MAX, "bytes")?;
    }
    Ok(Request {
        model,
        sampling: sampling(&wire)?,
        completion_tokens_max: completion_tokens_max(&wire)?,
        stop: stop(wire.stop.take())?,
        ignore_eos: wire.ignore_eos.unwrap_or(false),
        streaming: streaming(&wire)?,
        cache_salt: wire.cache_salt.take(),
        input: match endpoint {
            Endpoint::Chat => chat(wire)?,
            Endpoint::Completions => completion(wire)?,
        },
    })
}

/// Fields that the API has and this server does not, where they ask for something.
fn refuse_unsupported(wire: &wire::Request) -> Result<(), RequestError> {
    let asked = |field: &Option<wire::Asked>| *field == Some(wire::Asked::Something);
    let more_than_one = |field: Option<i64>| field.is_some_and(|n| n > 1);
    let not_text = wire.response_format.as_ref().is_some_and(|format| format.kind != "text");
    // `logprobs: 0` of a completion asks for that of the chosen token.
    let logprobs = asked(&wire.logprobs) || wire.logprobs == Some(wire::Asked::Zero);
    let refused = [
        ("n", more_than_one(wire.n), "one choice is made per request; send the request several times"),
        (
            "best_of",
            more_than_one(wire.best_of),
            "one choice is made per request; send the request several times",
        ),
        ("logprobs", logprobs, "leave it out; probabilities are not reported"),
        ("top_logprobs", asked(&wire.top_logprobs), "leave it out; probabilities are not reported"),
        ("logit_bias", asked(&wire.logit_bias), "leave it out; use `stop` to end on a text"),
        ("tools", asked(&wire.tools), "leave it out and describe the tools in a message"),
        ("functions", asked(&wire.functions), "leave it out and describe the functions in a message"),
        ("response_format", not_text, "only `text` can be asked for"),
        ("echo", wire.echo == Some(true), "leave it out; the prompt is known to the caller"),
        (
            "suffix",
            wire.suffix.as_ref().is_some_and(|s| !s.is_empty()),
            "leave it out; text is only continued",
        ),
        (
            "repetition_penalty",
            wire.repetition_penalty.is_some_and(|p| p != 1.0),
            "use `presence_penalty` or `frequency_penalty`",
        ),
    ];
    match refused.into_iter().find(|(_, asked, _)| *asked) {
        Some((param, _, advice)) => Err(RequestError::Unsupported { param, advice }),
        None => positive("n", wire.n).and(positive("best_of", wire.best_of)).map(|_| ()),
    }
}

fn sampling(wire: &wire::Request) -> Result<Sampling, RequestError> {
    let top_p = in_range("top_p", wire.top_p, 0.0..=1.0, "above 0 and at most 1")?;
    if wire.top_p == Some(0.0) {
        return Err(RequestError::OutOfRange { param: "top_p", value: 0.0, range: "above 0 and at most 1" });
    }
    // -1 is what vLLM's clients send for "all".
    let top_k = match wire.top_k {
        Some(k) if k < -1 => {
            return Err(RequestError::OutOfRange { param: "top_k", value: k as f64, range: "-1 or more" });
        }
        k => k.map(|k| usize::try_from(k).unwrap_or(0)),
    };
    let penalty = |param, value| in_range(param, value, -2.0..=2.0, "between -2 and 2");
    Ok(Sampling {
        temperature: in_range("temperature", wire.temperature, 0.0..=2.0, "between 0 and 2")?,
        top_p,
        top_k,
        min_p: in_range("min_p", wire.min_p, 0.0..=1.0, "between 0 and 1")?,
        // The bits of a negative seed are as good as any.
        seed: wire.seed.map(i64::cast_unsigned),
        presence_penalty: penalty("presence_penalty", wire.presence_penalty)?.unwrap_or(0.0),
        frequency_penalty: penalty("frequency_penalty", wire.frequency_penalty)?.unwrap_or(0.0),
    })
}

/// The newer name wins when both are there.
fn completion_tokens_max(wire: &wire::Request) -> Result<Option<usize>, RequestError> {
    let old = positive("max_tokens", wire.max_tokens)?;
    let new = positive("max_completion_tokens", wire.max_completion_tokens)?;
    Ok(new.or(old))
}

fn stop(stop: Option<wire::Stop>) -> Result<Vec<String>, RequestError> {
    let stops = stop.map_or_else(Vec::new, |stop| stop.0);
    for (i, stop) in stops.iter().enumerate() {
        if stop.is_empty() {
            return Err(RequestError::Empty { param: format!("stop[{i}]") });
        }
        within("stop", stop.len(), STOP_BYTES_MAX, "bytes")?;
    }
    Ok(stops)
}

fn streaming(wire: &wire::Request) -> Result<Streaming, RequestError> {
    let usage = wire.stream_options.as_ref().and_then(|options| options.include_usage);
    match (wire.stream.unwrap_or(false), usage) {
        (true, usage) => Ok(Streaming::On { usage: usage.unwrap_or(false) }),
        (false, Some(true)) => Err(RequestError::Unsupported {
            param: "stream_options",
            advice: "set `stream` to true to use it",
        }),
        (false, _) => Ok(Streaming::Off),
    }
}

fn chat(wire: wire::Request) -> Result<Input, RequestError> {
    let messages = wire.messages.ok_or_else(|| missing("messages"))?;
    if messages.is_empty() {
        return Err(RequestError::Empty { param: "messages".to_owned() });
    }
    within("messages", messages.len(), MESSAGES_MAX, "messages")?;
    let messages = messages.into_iter().enumerate().map(|(i, m)| message(i, m)).collect::<Result<_, _>>()?;
    let template_vars = wire.chat_template_kwargs.unwrap_or_default();
    check_template_vars(&template_vars)?;
    Ok(Input::Chat { messages, template_vars })
}

fn message(i: usize, wire: wire::Message) -> Result<Message, RequestError> {
    let content = match (wire.content, wire.role) {
        (Some(content), _) => content.0,
        (None, Role::Assistant) => String::new(),
        (None, _) => return Err(missing(&format!("messages[{i}].content"))),
    };
    Ok(Message {
        role: wire.role,
        content,
        name: wire.name,
        tool_calls: wire.tool_calls.unwrap_or_default(),
        tool_call_id: wire.tool_call_id,
    })
}

fn check_template_vars(vars: &Map<String, Value>) -> Result<(), RequestError> {
    within("chat_template_kwargs", vars.len(), TEMPLATE_VARS_MAX, "variables")?;
    if vars.values().any(|value| value.is_array() || value.is_object()) {
        let advice = "give strings, numbers and booleans, not lists or objects";
        return Err(RequestError::Unsupported { param: "chat_template_kwargs", advice });
    }
    Ok(())
}

fn completion(wire: wire::Request) -> Result<Input, RequestError> {
    let input = match wire.prompt.ok_or_else(|| missing("prompt"))? {
        wire::Prompt::Text(text) => Input::Text(text),
        wire::Prompt::Tokens(tokens) => Input::Tokens(tokens),
    };
    match &input {
        Input::Text(text) if text.is_empty() => Err(RequestError::Empty { param: "prompt".to_owned() }),
        Input::Tokens(tokens) if tokens.is_empty() => Err(RequestError::Empty { param: "prompt".to_owned() }),
        _ => Ok(input),
    }
}

fn missing(param: &str) -> RequestError {
    RequestError::Missing { param: param.to_owned() }
}

fn within(param: &'static str, found: usize, limit: usize, unit: &'static str) -> Result<(), RequestError> {
    if found > limit {
        return Err(RequestError::TooLarge { param, found, limit, unit });
    }
    Ok(())
}

fn positive(param: &'static str, value: Option<i64>) -> Result<Option<usize>, RequestError> {
    let Some(value) = value else { return Ok(None) };
    match usize::try_from(value) {
        Ok(value) if value > 0 => Ok(Some(value)),
        _ => Err(RequestError::OutOfRange { param, value: value as f64, range: "1 or more" }),
    }
}

fn in_range(
    param: &'static str,
    value: Option<f64>,
    allowed: RangeInclusive<f64>,
    range: &'static str,
) -> Result<Option<f32>, RequestError> {
    match value {
        Some(value) if !allowed.contains(&value) => Err(RequestError::OutOfRange { param, value, range }),
        value => Ok(value.map(|value| value as f32)),
    }
}
